import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import evaluation_worker
from helpers.evaluation_worker import BLOCK_SIZE, BLOCKS, RECORDS, attack, model, samples
from helpers.state_fakes import judged, same, undisturbed
from torch import Tensor, nn

from lightning_paf.attacks import PGD, Restarts, WorstOf
from lightning_paf.evaluation import evaluate as verdict_file
from lightning_paf.evaluation.evaluate import judge, stage_seed
from lightning_paf.evaluation.record import encode
from lightning_paf.evaluation.result import Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger, MemoryLedger


class Spy(PGD):
    """Remembers whom it met."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.met = []

    def perturb(self, forward, x, y, loss):
        self.met.append(x.clone())
        return super().perturb(forward, x, y, loss)


# ---- what the verdict says ----


def test_verdicts_are_what_the_model_says_of_the_images():
    judgement, net = undisturbed(), model()
    x, y = samples().fetch(samples().ids)
    with torch.no_grad():
        right = (net(x).argmax(1) == y).numpy()
    assert set(judgement.verdicts) == {Verdict.ROBUST, Verdict.BROKEN, Verdict.CLEAN_ERROR}, "the example is too easy"
    assert np.array_equal(judgement.verdicts == Verdict.CLEAN_ERROR, ~right)
    assert np.array_equal(judgement.labels, y.numpy())
    assert (judgement.clean.correct, judgement.clean.total) == (right.sum(), len(y))
    assert judgement.robust.correct == (judgement.verdicts == Verdict.ROBUST).sum()
    assert judgement.total == judgement.judged == len(y)


def test_each_broken_sample_has_an_image_that_breaks_it():
    judgement, net = undisturbed(), model()
    ids, x_adv = zip(*judgement.examples(), strict=True)
    ids, x_adv = np.concatenate(ids), torch.cat(x_adv)
    assert np.array_equal(ids, judgement.ids[judgement.verdicts == Verdict.BROKEN])
    x, y = samples().fetch(ids)
    with torch.no_grad():
        found = net(x_adv).argmax(1)
    assert bool((found != y).all())
    assert np.array_equal(found.numpy(), judgement.adversarial[judgement.verdicts == Verdict.BROKEN])
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1


def test_stages_add_up():
    judgement = undisturbed()
    clean, weak, strong = judgement.stages
    assert [stage.label for stage in judgement.stages] == ["clean", "slowpgd", "slowpgd"]
    assert clean.attacked == 23
    assert weak.attacked == clean.attacked - clean.broken
    assert strong.attacked == weak.attacked - weak.broken
    assert strong.attacked - strong.broken == judgement.robust.correct
    assert weak.broken == (judgement.broken_by == 1).sum() > 0
    assert strong.broken == (judgement.broken_by == 2).sum() > 0
    assert set(judgement.broken_by[judgement.verdicts != Verdict.BROKEN]) == {-1}
    # Clean predictions go through the untouched model once; the weak attack takes two gradients a sample.
    assert clean.exact == clean.attacked
    assert weak.backward == 2 * weak.attacked


def test_classes_add_up():
    judgement = undisturbed()
    rows = judgement.per_class()
    assert [row.label for row in rows] == sorted(set(judgement.labels.tolist()))
    assert sum(row.judged for row in rows) == judgement.judged
    assert sum(row.clean for row in rows) == judgement.clean.correct
    assert sum(row.robust for row in rows) == judgement.robust.correct
    for row in rows:
        assert row.robust <= row.clean <= row.judged
        assert row.robust == (judgement.verdicts[judgement.labels == row.label] == Verdict.ROBUST).sum()


def test_only_what_stands_is_attacked():
    spies = [Spy(0.05, step_size=0.02, steps=3), Spy(0.1, step_size=0.02, steps=5)]
    ledger = MemoryLedger()
    judgement = judge(model(), WorstOf(spies), samples(), ledger, block_size=BLOCK_SIZE)
    x, _ = samples().fetch(samples().ids)
    for number, spy in enumerate(spies, start=1):
        standing = (judgement.predictions == judgement.labels) & ~np.isin(judgement.broken_by, range(1, number))
        assert torch.equal(torch.cat(spy.met), x[torch.from_numpy(standing)])
    for spy in spies:
        spy.met.clear()
    judge(model(), WorstOf(spies), samples(), ledger, block_size=BLOCK_SIZE)
    assert not any(spy.met for spy in spies), "everything was recorded"


def test_each_stage_and_block_has_a_seed_of_its_own():
    seeds = {stage_seed(s, b, t, name) for s in (0, 1) for b in (0, 1, 11) for t in (0, 1) for name in ("a", "1a")}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stage_seed(0, 0, 0, "clean") == 0x3846B86BD5F43265  # kept: another formula would make other ledgers


def test_equal_restarts_differ():
    judgement = judge(model(), Restarts(PGD(0.05, steps=10), 3), samples(), MemoryLedger(), block_size=30)
    records = [judgement.ledger.read(0, stage) for stage in (1, 2, 3)]
    assert len({record.seed for record in records}) == 3


def test_another_seed_is_another_evaluation():
    assert not np.array_equal(
        *(np.concatenate([x.numpy() for _, x in judged(seed=seed).examples()])[:3] for seed in (0, 1))
    )


class Overflows(nn.Module):
    """Says class 0 rightly, but for bright images (clean) and for perturbed ones (attacked)."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) * self.weight
        limit = 0.5 if self.where == "clean" else 0.52
        scores = torch.stack([torch.ones_like(bright), bright], 1)
        return scores.masked_fill((bright > limit)[:, None], torch.nan)


@pytest.mark.parametrize(("where", "expected"), [("clean", Verdict.CLEAN_ERROR), ("attacked", Verdict.BROKEN)])
def test_logits_that_are_not_finite_never_count_as_correct(where, expected):
    x = torch.full((6, 1, 4, 4), 0.3)
    x[::2] = 0.51
    y = torch.zeros(6, dtype=torch.int64)
    with pytest.warns(UserWarning, match="logits of 3 samples are not finite") as caught:
        judgement = judge(Overflows(where), PGD(0.05, step_size=0.02), Samples.of(x, y), MemoryLedger(), block_size=2)
    assert len([w for w in caught if "not finite" in str(w.message)]) == 1
    assert judgement.verdicts.tolist() == [expected, Verdict.ROBUST] * 3
    assert (judgement.adversarial[::2] == -1).all()


class TooFar(PGD):
    def perturb(self, forward, x, y, loss):
        return 1 - x


class OutOfRange(PGD):
    def perturb(self, forward, x, y, loss):
        return x - 1


@pytest.mark.parametrize("wrong", [TooFar(0.1, step_size=0.1), OutOfRange(1.0, step_size=1.0)])
def test_an_image_outside_the_threat_model_is_never_recorded(wrong):
    ledger = MemoryLedger()
    with pytest.raises(ValueError, match="mistake in the attack"):
        judge(model(), wrong, samples(), ledger, block_size=23)
    assert ledger.recorded() == [(0, 0)]


# ---- how it is found ----


def test_on_disk_and_in_memory_find_the_same(tmp_path):
    disk = Ledger(tmp_path)
    assert same(judged(disk), undisturbed())
    assert disk.digest() == undisturbed().ledger.digest()


def test_the_order_of_the_blocks_does_not_matter(tmp_path, monkeypatch):
    expected = undisturbed()
    lease = Ledger.lease
    asked = []

    def last_first(self, block):
        """Refuses the first blocks for a while."""
        asked.append(block)
        return lease(self, block) if len(asked) > 40 or block > BLOCKS - 1 - len(asked) // BLOCKS else None

    monkeypatch.setattr(Ledger, "lease", last_first)
    monkeypatch.setattr(verdict_file, "_SHORTEST_WAIT", 0.0)
    ledger = Ledger(tmp_path)
    assert same(judged(ledger), expected)
    assert asked[:BLOCKS] == list(range(BLOCKS))
    assert ledger.digest() == expected.ledger.digest()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(0, RECORDS + 1, 3))
def test_an_interrupted_evaluation_continues_and_says_what_it_found(tmp_path, after):
    expected = undisturbed()
    lines = []

    def interrupt(line):
        lines.append(line)
        if len(lines) > after:
            raise Killed

    with pytest.raises(Killed):
        judged(Ledger(tmp_path), progress=interrupt)
    assert not list(tmp_path.glob("*.lease"))
    told = []
    ledger = Ledger(tmp_path)
    assert same(judged(ledger, progress=told.append), expected)
    assert ledger.digest() == expected.ledger.digest()
    found = {0: f"new, {RECORDS} records to make", RECORDS: f"all {RECORDS} records found"}
    assert told[0] == f"{ledger}: " + found.get(after, f"{after} of {RECORDS} records found, continuing")
    assert len(told) == 1 + RECORDS - after


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_torn_record_is_made_again(tmp_path, stage):
    expected = judged(Ledger(tmp_path))
    digest = expected.ledger.digest()
    path = tmp_path / f"block-00002.stage-{stage}.record"
    path.write_bytes(path.read_bytes()[:-5])
    told = []
    with pytest.warns(UserWarning, match=f"block-00002.stage-{stage}.record does not count"):
        again = judged(Ledger(tmp_path), progress=told.append)
    assert same(again, expected)
    assert again.ledger.digest() == digest
    assert len(told) == 2, "the other stages still count"


def test_a_record_that_follows_another_one_does_not_count(tmp_path):
    """Two machines that round differently may make different records of one place; nothing may rest on both."""
    ledger = judged(Ledger(tmp_path)).ledger
    weak, strong = ledger.read(2, 1), ledger.read(2, 2)
    assert len(weak.x_adv) > 0
    (tmp_path / "block-00002.stage-1.record").write_bytes(encode(replace(weak, x_adv=weak.x_adv * 0.999)))
    with pytest.warns(UserWarning, match=r"stage-2\.record does not count: .* follows a damaged record"):
        again = judged(Ledger(tmp_path))
    assert strong.after == weak.fingerprint
    assert again.ledger.read(2, 2).after == again.ledger.read(2, 1).fingerprint != weak.fingerprint
    assert same(again, undisturbed())


def test_progress_is_for_people():
    lines = []
    judgement = judged(progress=lines.append)
    assert lines[0] == "ledger in memory: new, 18 records to make"
    assert len(lines) == 1 + RECORDS
    robust = judgement.robust
    assert lines[-1].startswith(f"block {BLOCKS} of {BLOCKS}, slowpgd: ")
    assert f"robust so far {robust.correct} of {robust.total} ({100 * robust.value:.1f} %)" in lines[-1]
    assert all(re.search(r"; at most about \d+(\.\d)? s left$", line) for line in lines[1:-1]), "not 0 min"
    assert lines[-1].endswith("; nothing left")


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    net = model().train()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    judge(net, attack(), samples(), MemoryLedger(), block_size=BLOCK_SIZE)
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "surroundings", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_surroundings_do_not_matter(surroundings):
    net, what, ledgers = model(), samples(), (MemoryLedger(), MemoryLedger())
    judge(net, attack(), what, ledgers[0], block_size=BLOCK_SIZE)
    with surroundings():
        judge(net, attack(), what, ledgers[1], block_size=BLOCK_SIZE)
    assert ledgers[0].digest() == ledgers[1].digest()


# ---- misuse ----


def test_a_ledger_of_another_model_is_refused():
    ledger, other = MemoryLedger(), model()
    judged(ledger)
    with torch.no_grad():
        other[3].bias += 1
    with pytest.raises(ValueError, match="belongs to another evaluation: model: here"):
        judge(other, attack(), samples(), ledger, seed=3, block_size=BLOCK_SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "block_size=0"),
        ({"samples": Samples(np.array([], np.int64), lambda ids: None)}, "at least one sample"),
        ({"samples": Samples(np.array([1, 1]), lambda ids: None)}, "occur twice"),
        ({"attack": Restarts(PGD(), 128)}, "may have 127 stages"),
    ],
)
def test_impossible_evaluations_are_refused(settings, message):
    arguments = {"attack": attack(), "samples": samples(), "block_size": 4} | settings
    with pytest.raises(ValueError, match=message):
        judge(model(), ledger=MemoryLedger(), **arguments)


def test_nothing_is_fetched_twice_that_is_recorded():
    fetched = []
    whole = samples()
    spied = Samples(whole.ids, lambda ids: fetched.append(len(ids)) or whole.fetch(ids))
    ledger = MemoryLedger()
    judge(model(), attack(), spied, ledger, block_size=BLOCK_SIZE)
    fetched.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(model(), attack(), spied, ledger, block_size=BLOCK_SIZE)
    assert sum(fetched) == len(whole), "once, for the fingerprint"


def test_the_example_has_several_blocks_the_last_not_full():
    assert len(samples()) % BLOCK_SIZE
    assert -(-len(samples()) // BLOCK_SIZE) == BLOCKS
    assert evaluation_worker.attack(0.1).radius == pytest.approx(0.1)

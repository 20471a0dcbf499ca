"""The result of an evaluation, which interruptions and surroundings do not change."""

import re
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers.evaluation_worker import BLOCK_SIZE, BLOCKS, RECORDS, evaluation, model, samples
from helpers.state_fakes import fingerprints, same, undisturbed
from torch import Tensor, nn

from lightning_paf.attacks import FGSM, PGD, AutoAttack, Restarts, SmoothedPGD, Square, WorstOf, autoattack
from lightning_paf.evaluation import Evaluation, EvaluationState, MemoryState, Outcome, Samples
from lightning_paf.evaluation import evaluate as evaluate_file
from lightning_paf.evaluation.evaluate import sub_attack_seed
from lightning_paf.evaluation.state import encode


class Spy(PGD):
    """Keeps its images."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.seen = []

    def perturb(self, forward, x, y, loss):
        self.seen.append(x.clone())
        return super().perturb(forward, x, y, loss)


def test_outcomes_follow_from_the_predictions_of_the_model():
    result, net = undisturbed(), model()
    x, y = samples().fetch(samples().ids)
    with torch.no_grad():
        correct = (net(x).argmax(1) == y).numpy()
    assert set(result.outcomes) == {Outcome.ROBUST, Outcome.FOOLED, Outcome.MISCLASSIFIED}
    assert np.array_equal(result.outcomes == Outcome.MISCLASSIFIED, ~correct)
    assert np.array_equal(result.labels, y.numpy())
    assert (result.clean.correct, result.clean.total) == (correct.sum(), len(y))
    assert result.robust.correct == (result.outcomes == Outcome.ROBUST).sum()
    assert result.total == result.evaluated == len(y)
    assert len(y) % BLOCK_SIZE, "the last block must not be full"


def test_each_fooled_sample_has_an_adversarial_image():
    result, net = undisturbed(), model()
    ids, x_adv = zip(*result.examples(), strict=True)
    ids, x_adv = np.concatenate(ids), torch.cat(x_adv)
    fooled = result.outcomes == Outcome.FOOLED
    assert np.array_equal(ids, result.ids[fooled])
    x, y = samples().fetch(ids)
    with torch.no_grad():
        found = net(x_adv).argmax(1)
    assert bool((found != y).all())
    assert np.array_equal(found.numpy(), result.adversarial[fooled])
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1


def test_sub_attacks_and_classes_add_up():
    result = undisturbed()
    clean, weak, strong = result.sub_attacks
    assert [part.label for part in result.sub_attacks] == ["clean", "slowpgd", "slowpgd"]
    assert clean.attacked == clean.exact == 23
    assert weak.attacked == clean.attacked - clean.fooled
    assert strong.attacked == weak.attacked - weak.fooled
    assert strong.attacked - strong.fooled == result.robust.correct
    assert weak.fooled == (result.fooled_by == 1).sum() > 0
    assert strong.fooled == (result.fooled_by == 2).sum() > 0
    assert weak.backward == 2 * weak.attacked, "two steps"
    assert set(result.fooled_by[result.outcomes != Outcome.FOOLED]) == {-1}
    rows = result.per_class()
    assert [row.label for row in rows] == sorted(set(result.labels.tolist()))
    for name, total in (("evaluated", 23), ("clean", result.clean.correct), ("robust", result.robust.correct)):
        assert sum(getattr(row, name) for row in rows) == total


def test_only_robust_samples_are_attacked_and_only_once():
    spies = [Spy(0.05, step_size=0.02, steps=3), Spy(0.1, step_size=0.02, steps=5)]
    state = MemoryState()
    result = evaluation(attack=WorstOf(spies)).run(state)
    x, _ = samples().fetch(samples().ids)
    for number, spy in enumerate(spies, start=1):
        robust = (result.predictions == result.labels) & ~np.isin(result.fooled_by, range(1, number))
        assert torch.equal(torch.cat(spy.seen), x[torch.from_numpy(robust)])
        spy.seen.clear()
    evaluation(attack=WorstOf(spies)).run(state)
    assert not any(spy.seen for spy in spies), "all records are in the state"


def test_each_record_has_a_different_seed():
    seeds = {sub_attack_seed(s, b, t, name) for s in (0, 1) for b in (0, 1, 11) for t in (0, 1) for name in ("a", "1a")}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sub_attack_seed(0, 0, 0, "clean") == 0x3846B86BD5F43265, "another formula would change all results"
    state = MemoryState()
    evaluation(attack=Restarts(PGD(0.05, steps=2), 3), block_size=30).run(state)
    assert len({state.read(0, number).seed for number in (1, 2, 3)}) == 3
    first = [next(evaluation(seed=seed).run().examples())[1] for seed in (0, 1)]
    assert not torch.equal(first[0][:1], first[1][:1])


class Overflows(nn.Module):
    """Predicts class 0; logits are NaN for bright images (clean) or for perturbed ones (attacked)."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([torch.ones_like(bright), bright], 1).masked_fill((bright > self.limit)[:, None], torch.nan)


@pytest.mark.parametrize(("limit", "expected"), [(0.5, Outcome.MISCLASSIFIED), (0.52, Outcome.FOOLED)])
def test_logits_that_are_not_finite_never_count_as_correct(limit, expected):
    x = torch.full((6, 1, 4, 4), 0.3)
    x[::2] = 0.51
    data = Samples.of(x, torch.zeros(6, dtype=torch.int64))
    with pytest.warns(UserWarning, match="logits of 3 samples are not finite") as caught:
        result = Evaluation(Overflows(limit), PGD(0.05, step_size=0.02), data, block_size=2).run()
    assert len([w for w in caught if "not finite" in str(w.message)]) == 1
    assert result.outcomes.tolist() == [expected, Outcome.ROBUST] * 3
    assert (result.adversarial[::2] == -1).all()


class TooFar(PGD):
    def perturb(self, forward, x, y, loss):
        return 1 - x


class OutOfBounds(PGD):
    def perturb(self, forward, x, y, loss):
        return x - 1


@pytest.mark.parametrize("wrong", [TooFar(0.1, step_size=0.1), OutOfBounds(1.0, step_size=1.0)])
def test_an_image_outside_the_threat_model_is_never_recorded(wrong):
    state = MemoryState()
    with pytest.raises(ValueError, match="bug in the attack"):
        evaluation(attack=wrong, block_size=23).run(state)
    assert state.recorded() == [(0, 0)]


def test_the_order_of_the_blocks_has_no_influence(tmp_path, monkeypatch):
    claim, calls = EvaluationState.claim, []

    def last_first(self, block):
        """Refuse the first blocks for a while."""
        calls.append(block)
        return claim(self, block) if len(calls) > 40 or block > BLOCKS - 1 - len(calls) // BLOCKS else None

    monkeypatch.setattr(EvaluationState, "claim", last_first)
    monkeypatch.setattr(evaluate_file, "_MIN_WAIT", 0.0)
    state = EvaluationState(tmp_path)
    assert same(evaluation().run(state), undisturbed())
    assert calls[:BLOCKS] == list(range(BLOCKS))
    assert fingerprints(state) == fingerprints(undisturbed().state)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 5, RECORDS - 1, RECORDS])
def test_an_interrupted_evaluation_resumes(tmp_path, after):
    lines, resumed = [], []

    def interrupt(line):
        lines.append(line)
        if len(lines) > after:
            raise Killed

    with pytest.raises(Killed):
        evaluation().run(EvaluationState(tmp_path), progress=interrupt)
    assert not list(tmp_path.glob("*.claim"))
    state = EvaluationState(tmp_path)
    assert same(evaluation().run(state, progress=resumed.append), undisturbed())
    assert fingerprints(state) == fingerprints(undisturbed().state)
    assert resumed[0] == f"state {tmp_path}: {after} of {RECORDS} records found"
    assert len(resumed) == 1 + RECORDS - after


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_torn_record_is_made_again(tmp_path, number):
    expected = evaluation().run(EvaluationState(tmp_path))
    path = tmp_path / f"block-00002.sub-attack-{number}.record"
    path.write_bytes(path.read_bytes()[:-5])
    lines = []
    with pytest.warns(UserWarning, match=f"block-00002.sub-attack-{number}.record is damaged"):
        again = evaluation().run(EvaluationState(tmp_path), progress=lines.append)
    assert same(again, expected)
    assert fingerprints(again.state) == fingerprints(undisturbed().state)
    assert len(lines) == 2, "the other records are valid"


def test_a_record_that_follows_a_replaced_one_is_invalid(tmp_path):
    """Machines that round differently make different records, which must not be combined."""
    state = evaluation().run(EvaluationState(tmp_path)).state
    weak, strong = state.read(2, 1), state.read(2, 2)
    assert len(weak.x_adv) > 0
    path = tmp_path / "block-00002.sub-attack-1.record"
    path.write_bytes(encode(replace(weak, x_adv=weak.x_adv * 0.999)))
    with pytest.warns(UserWarning, match=r"sub-attack-2\.record follows a record that has been replaced"):
        again = evaluation().run(EvaluationState(tmp_path))
    assert strong.after == weak.fingerprint
    assert state.read(2, 2).after == state.read(2, 1).fingerprint != weak.fingerprint
    assert same(again, undisturbed())


def test_progress_lines():
    lines = []
    robust = evaluation().run(progress=lines.append).robust
    assert lines[0] == "state in memory: 0 of 18 records found"
    assert len(lines) == 1 + RECORDS
    assert lines[-1].startswith(f"block {BLOCKS} of {BLOCKS}, slowpgd: ")
    assert f"robust so far {robust.correct} of {robust.total} ({100 * robust.value:.1f} %)" in lines[-1]
    assert all(re.search(r"; at most about \d+(\.\d)? s left$", line) for line in lines[1:-1])
    assert lines[-1].endswith("; nothing left")


@pytest.mark.parametrize(
    "surroundings", [torch.enable_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_surroundings_have_no_influence_and_are_left_as_found(surroundings):
    net = model().train()
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    with surroundings():
        result = evaluation(model=net).run()
    assert same(result, undisturbed())
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_recorded_samples_are_not_read_again():
    fetched, state, data = [], MemoryState(), samples()
    spied = Samples(data.ids, lambda ids: fetched.append(len(ids)) or data.fetch(ids))
    evaluation(samples=spied).run(state)
    fetched.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation(samples=spied).run(state)
    assert sum(fetched) == 8 + len(data), "for the probe, and once for the identity"


def test_the_result_ends_with_the_first_blocks_that_satisfy_the_rule():
    calls, n = [], 2 * BLOCK_SIZE

    def stop(robust, evaluated, total):
        calls.append((robust, evaluated, total))
        return evaluated >= n

    complete, part = undisturbed(), evaluation().run(stop=stop)
    assert (part.evaluated, part.total) == (n, 23)
    assert np.array_equal(part.outcomes, complete.outcomes[:n])
    robust = [int((complete.outcomes[:k] == Outcome.ROBUST).sum()) for k in (BLOCK_SIZE, n)]
    assert calls == [(robust[0], BLOCK_SIZE, 23), (robust[1], n, 23)]
    assert np.concatenate([ids for ids, _ in part.examples()]).max() < n
    assert part.state.recorded()[-1][0] == 1, "later blocks are not evaluated"
    again = evaluation().run(complete.state, stop=stop)
    assert again.evaluated == n, "also with all records in the state"
    assert again.identity == complete.identity, "a rule without a reason is not a setting"
    assert evaluation().run(stop=lambda *counts: False).evaluated == 23


def test_a_process_stops_within_a_block_after_the_decision_of_another(tmp_path):
    """The first block belongs to another process, which completes it while this one works on the second."""
    other, lines = EvaluationState(tmp_path), []
    other.open(evaluation().identity)

    def progress(line):
        lines.append(line)
        if len(lines) == 2:  # one record of the second block is made
            for number in range(3):
                other.write(undisturbed().state.read(0, number))

    with other.claim(0):
        part = evaluation().run(EvaluationState(tmp_path), lambda *counts: True, progress)
    assert part.evaluated == BLOCK_SIZE
    assert [key for key in other.recorded() if key[0] > 0] == [(1, 0)]


def test_a_process_waits_for_the_others_and_logs_their_names(tmp_path, monkeypatch):
    other, lines = EvaluationState(tmp_path), []
    other.open(evaluation().identity)
    records = [undisturbed().state.read(BLOCKS - 1, number) for number in range(3)]
    monkeypatch.setattr(time, "sleep", lambda seconds: records and other.write(records.pop(0)))
    with other.claim(BLOCKS - 1):
        assert same(evaluation().run(EvaluationState(tmp_path), progress=lines.append), undisturbed())
    assert [line for line in lines if line.startswith(f"waiting for block {BLOCKS}: process ")] == [lines[-1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"samples": Samples(np.array([], np.int64), lambda ids: None)}, "at least one sample"),
        ({"samples": Samples(np.array([1, 1]), lambda ids: None)}, "must be distinct"),
        ({"attack": Restarts(PGD(), 128)}, "at most 127 sub-attacks, got 128"),
    ],
)
def test_invalid_evaluations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluation(**settings)


def test_a_slow_listing_of_many_records_does_not_slow_the_evaluation_down(monkeypatch):
    calls = []
    listed = MemoryState.recorded
    monkeypatch.setattr(MemoryState, "recorded", lambda self: calls.append(time.sleep(0.02)) or listed(self))
    result = evaluation(block_size=1).run()
    assert len(calls) <= len(result.outcomes)


def test_the_time_left_weighs_sub_attacks_by_their_budgets():
    attacks = AutoAttack(version="custom", attacks=["apgd-ce", "apgd-t", "apgd-dlr", "fab-t", "square"]).sub_attacks()
    budgets = [evaluate_file._budget(attack) for attack in (*attacks, SmoothedPGD(), FGSM())]
    assert budgets == [100, 900, 100, 900, 5000, 3 * 64 * 9, 1]


@pytest.mark.filterwarnings("ignore:AutoAttack leaves out")
def test_records_of_strong_begin_with_those_of_standard(monkeypatch):
    monkeypatch.setattr(autoattack, "_MAKE", {**autoattack._MAKE, "square": partial(Square, queries=20)})
    settings = {"samples": samples(8), "block_size": 8}
    standard, strong = (evaluation(attack=AutoAttack(0.1, version=v), **settings).run() for v in ("standard", "strong"))
    fooled = standard.outcomes == Outcome.FOOLED
    assert 0 < fooled.sum() < 8
    for name in ("outcomes", "adversarial", "fooled_by"):
        assert np.array_equal(getattr(standard, name)[fooled], getattr(strong, name)[fooled])
    for one, other in zip(standard.sub_attacks, strong.sub_attacks, strict=False):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    assert [part.label for part in strong.sub_attacks][-1] == "smoothed-pgd"

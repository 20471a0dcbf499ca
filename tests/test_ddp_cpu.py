"""Two and four processes (gloo, CPU) do what one does."""

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.ddp_worker import run_all
from helpers.fakes import write_npz_dataset
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import differences, last, rows

from lightning_paf.cli.training import train
from lightning_paf.evaluation import EvaluationResult

pytestmark = pytest.mark.slow

EVALUATED = 11  # on two ranks 6 and 5
BATCH, REAL_IN_BATCH = 16, 8


def of_class(class_path: str, **init_args) -> dict:
    return {"class_path": class_path, "init_args": init_args}


def pgd(**options) -> dict:
    """Without a random start the result does not depend on how samples are grouped."""
    return of_class("PGD", **{"eps": 0.1, "step_size": 0.05, "steps": 3, "start": "none", **options})


def settings(folder: Path) -> dict:
    """Without BatchNorm, augmentation and random starts, one process and two do the same."""
    return {
        "data": {
            "dataset": "npz",
            "num_classes": 3,
            "root": str(folder / "data"),
            "synthetic": str(folder / "pool.npz"),
            "real_fraction": REAL_IN_BATCH / BATCH,
            "batch_size": BATCH,
            "val_size": EVALUATED,
            "eval_batch_size": 5,  # 6 and 5 samples are 2 batches and 1, unless someone takes care
            "num_workers": 0,
        },
        "model": {
            "net": of_class("SmallConvNet", in_channels=3, width=4),
            # The penalty must not carry beta over zero, where its sign would hang on rounding.
            "activation": of_class("PSSiLU", beta=0.1, penalty_weight=0.1),
            "attack": pgd(),
            "objective": of_class("AdversarialCE"),
        },
        "val_attack": of_class("RobustEval", attack=pgd(eps=0.15, steps=10)),
        "checkpoint": of_class("ModelCheckpoint", filename="{epoch}", save_top_k=-1),
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "callbacks": [of_class("helpers.ddp_worker.Recorder")],
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def write_inputs(folder: Path) -> str:
    """Configuration and images; the first pixel of synthetic images, and of no other, is black."""
    write_npz_dataset(folder / "data", train=27 + EVALUATED, test=EVALUATED)
    image = np.random.default_rng(1).integers(20, 230, (40, 8, 8, 3)).astype(np.uint8)
    image[:, 0, 0] = 0
    np.savez(folder / "pool.npz", image=image, label=np.arange(40) % 3)
    (folder / "base.yaml").write_text(yaml.safe_dump(settings(folder)))
    return str(folder / "base.yaml")


DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
FOUR = ["--trainer.devices", "4", "--trainer.strategy", "ddp"]
TRUSTED = ["--trust-config"]  # the configurations name callbacks of the tests
ONE = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
AUTOATTACK = yaml.safe_dump(
    of_class(
        "RobustEval",
        name="aa",
        every_n_epochs=0,
        attack=of_class("AutoAttack", eps=0.1, version="custom", attacks=["apgd-ce"]),
    ),
    default_flow_style=True,
)
TINY = ["--model.net", "helpers.fakes.TinyNet", "--model.net.channels", "3"]
BATCH_NORM = [*TINY, "--model.attack.start", "uniform"]
BATCH_NORM += ["--data.val_size", "19", "--data.eval_batch_size", "9"]  # 10 and 9 samples: 2 batches and 1
AVERAGING = ["--averaging", "WarmupEMA", "--checkpoint.monitor", "val/acc_pgd", "--monitor", "ActivationMonitor"]
AVERAGING += ["--val_attack.max_examples", "1"]  # of which the second rank has none
SHARED = [*TINY, "--trainer.sync_batchnorm", "true"]
TRAIN_MODE = [*SHARED, "--model.attack.mode", "train", "--trainer.max_epochs", "1"]
COMPILED = ["--model.speed.compile", "true", "--trainer.max_steps", "2"]

SAVER = ["--trainer.callbacks+=helpers.resume_helpers.Saver"]
SAVED = ["step3", "step4"]  # at the end of an epoch, before its validation; in the middle of the next
SIGNALLED = ["--trainer.callbacks+=helpers.resume_helpers.SignalledAt", "--trainer.callbacks.step", "2"]
HELD = {"config.yaml": "model: another\n", "metrics.csv": "epoch\n0\n"}


def run_everything(folder: Path) -> None:
    """One process trains; two and four train the same, and resume, judge, and train what is random."""
    base = write_inputs(folder)

    def fit(run: str, *words: str) -> list[str]:
        return ["fit", "-c", base, "--run", str(folder / run), *words]

    def after(run: str, saved: str) -> list[str]:
        return ["--ckpt_path", str(folder / run / saved)]

    trained = str(folder / "together" / "checkpoints" / "epoch=1.ckpt")
    train(fit("alone"))
    train(fit("alone_shared", *SHARED))
    held = folder / "held"
    held.mkdir()
    for name, text in HELD.items():
        (held / name).write_text(text)
    well = [
        fit("together", *DDP),
        fit("resumed", *after("alone", "checkpoints/epoch=0.ckpt"), *DDP),
        ["test", *TRUSTED, "--ckpt_path", trained, "--autoattack", AUTOATTACK],
        ["predict", *TRUSTED, "--ckpt_path", trained],
        fit("averaged", *DDP, *BATCH_NORM, *AVERAGING, *SAVER),
        *(
            fit(f"after_{saved}", *DDP, *BATCH_NORM, *AVERAGING, *after("averaged", f"saved/{saved}.ckpt"))
            for saved in SAVED
        ),
        fit("trades", *DDP, *BATCH_NORM, "--model.objective", "TRADES"),
        fit("shared", *DDP, *SHARED),
        fit("train_mode", *DDP, *TRAIN_MODE),
        fit("compiled", *DDP, *SHARED, *COMPILED),
    ]
    slow = [
        "--val_attack.attack",
        "helpers.ddp_worker.SlowOnTheLastRank",
        "--trainer.callbacks+=helpers.ddp_worker.Impatient",
    ]
    well += [
        fit("patient", *DDP, *slow, "--trainer.max_epochs", "1"),
        ["test", *TRUSTED, *after("patient", "checkpoints/epoch=0.ckpt"), "--val_attack.batch_size", "6"],
    ]
    ill = [
        (fit("indivisible", *DDP, "--data.batch_size", "15"), 1),
        (fit("held", *DDP), 1),
        (fit("signalled", *DDP, *SIGNALLED), [75, 0]),  # Lightning's launcher would kill the first rank otherwise
    ]
    two = Ranks(2, folder / "logs2", run_all, [*((job, 0) for job in well), *ill], folder / "saved")
    (folder / "output").write_text("".join(two.succeed().output))
    four = [
        fit("together4", *FOUR),
        fit("trades4", *FOUR, *BATCH_NORM, "--model.objective", "TRADES"),
        ["test", *TRUSTED, "--ckpt_path", trained, "--run", str(folder / "judge4"), *FOUR],
        ["predict", *TRUSTED, "--ckpt_path", trained, "--run", str(folder / "judge4"), *FOUR],
    ]
    Ranks(4, folder / "logs4", run_all, [(job, 0) for job in four], folder / "saved4").succeed()
    for name in ("seen_rank0.pt", "seen_rank1.pt"):
        (folder / "signalled" / name).unlink(missing_ok=True)
    train(fit("signalled", *ONE, "--ckpt_path", "auto"))
    train(
        [
            "test",
            "--trust-config",
            "--ckpt_path",
            trained,
            "--autoattack",
            AUTOATTACK,
            "--run",
            str(folder / "judge"),
            *ONE,
        ]
    )
    train(["predict", *TRUSTED, "--ckpt_path", trained, "--run", str(folder / "judge"), *ONE])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of all runs; made once, also where several workers share the tests of this file."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "ddp"
    folder.mkdir(exist_ok=True)
    begun, done = folder / "begun", folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not begun.exists():
            begun.touch()
            run_everything(folder)
            done.touch()
    assert done.exists(), "the runs have failed for another worker"
    return folder


def seen(run: Path) -> list[SimpleNamespace]:
    """What each process of a training saw."""
    return [SimpleNamespace(**torch.load(path)) for path in sorted(run.glob("seen_rank*.pt"))]


def assert_same(ours: dict, theirs: dict, **tolerance) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def without_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("run/")}


FP32 = {"rtol": 1e-4, "atol": 1e-6}


several = pytest.mark.parametrize("run", ["together", "together4"])


@several
def test_ranks_share_each_batch_of_one_and_its_exact_mixture(runs, run):
    (alone,), together = seen(runs / "alone"), seen(runs / run)
    assert len(alone.images) == 8
    assert len(together) == (4 if run == "together4" else 2)
    for step, batch in enumerate(alone.images):
        assert torch.equal(torch.cat([rank.images[step] for rank in together]), batch)
        assert (batch[:, :, 0, 0].amax(1) > 0).sum() == REAL_IN_BATCH
    assert not torch.equal(alone.images[0], alone.images[4]), "the epochs do not differ"


@pytest.mark.parametrize(
    ("ours", "theirs"), [("alone", "together"), ("alone", "together4"), ("alone_shared", "shared")]
)
def test_ranks_train_as_one(runs, ours, theirs):
    (alone,), together = seen(runs / ours), seen(runs / theirs)
    for rank in together:
        assert_same(rank.start, alone.start, rtol=0, atol=0)
        assert_same(rank.gradients[0], alone.gradients[0], **FP32)
        for step, weights in enumerate(alone.weights):
            assert_same(rank.weights[step], weights, **FP32)  # with the statistics of BatchNorm
        assert_same(rank.weights[-1], together[0].weights[-1], rtol=0, atol=0)
    moved = [name for name, value in alone.start.items() if not torch.equal(value, alone.weights[-1][name])]
    assert len(moved) == len(alone.start), "something does not learn"


def test_without_shared_statistics_ranks_have_their_own(runs):
    first, second = seen(runs / "trades")
    assert not torch.equal(*(rank.weights[0]["model.net.bn.running_mean"] for rank in (first, second)))


@pytest.mark.parametrize("run", ["together", "trades", "shared", "train_mode", "compiled"])
def test_attacks_ask_no_other_rank(runs, run):
    for rank in seen(runs / run):
        assert len(rank.collectives) == len(rank.weights) >= 2
        assert set(rank.collectives) == {0}
        assert not torch.equal(rank.start["model.net.fc.weight"], rank.weights[-1]["model.net.fc.weight"])


@several
def test_ranks_log_the_numbers_of_one(runs, run):
    (alone,), together = seen(runs / "alone"), seen(runs / run)
    assert {"train/loss", "train/acc_adv", "train/clean_acc", "val/acc", "val/acc_pgd"} <= alone.metrics.keys()
    assert 0 < alone.metrics["val/acc_pgd"] < alone.metrics["val/acc"]
    assert alone.metrics["val/acc"] * EVALUATED == pytest.approx(round(alone.metrics["val/acc"] * EVALUATED))
    for rank in together:
        assert without_speed(rank.metrics) == pytest.approx(without_speed(alone.metrics), rel=1e-4)


def test_two_ranks_continue_what_one_began(runs):
    (alone,), resumed = seen(runs / "alone"), seen(runs / "resumed")
    for rank in resumed:
        assert len(rank.weights) == 4
        assert_same(rank.weights[-1], alone.weights[-1], **FP32)


@pytest.mark.parametrize("saved", SAVED)
def test_two_ranks_that_were_stopped_end_as_if_they_had_not_been(runs, saved):
    """With BatchNorm, whose statistics are each rank's own, and random starts."""
    whole, resumed = runs / "averaged", runs / f"after_{saved}"
    states = last(whole)["rank_states"]
    assert len(states) == 2
    assert not torch.equal(*(state["random"]["torch"] for state in states))
    assert differences(last(resumed), last(whole)) == []
    assert rows(resumed) == rows(whole)[-len(rows(resumed)) :]


def test_another_number_of_ranks_is_told_what_cannot_go_on(runs):
    assert (runs / "output").read_text().count("holds the random states of 1 ranks, not of 2") == 1


@pytest.mark.parametrize("run", ["together", "together4", "averaged"])
def test_uneven_shards_are_equally_many_batches(runs, run):
    assert len({rank.validation_batches for rank in seen(runs / run)}) == 1
    assert seen(runs / run)[0].validation_batches >= 2


@pytest.mark.parametrize("attack", ["pgd_linf_0.15", "aa_linf_0.1"])
def test_one_rank_and_two_judge_eleven_samples_alike(runs, attack):
    together, alone = (EvaluationResult.load(runs / name / "test" / f"{attack}.json") for name in ("together", "judge"))
    assert together.evaluated == alone.evaluated == len(together.outcomes) == EVALUATED
    assert together.clean == alone.clean
    assert 0 < together.robust.value < together.clean.value < 1
    if together.name == "pgd":  # AutoAttack draws its starts for each batch
        assert together.outcomes.tolist() == alone.outcomes.tolist()
    (logged,) = rows(runs / "together" / "test")
    assert float(logged[f"test/acc_{together.name}"]) == pytest.approx(together.robust.value)
    assert float(logged["test/acc"]) == pytest.approx(together.clean.value)


def test_four_ranks_judge_alike(runs):
    four, alone = (EvaluationResult.load(runs / name / "test" / "pgd_linf_0.15.json") for name in ("judge4", "judge"))
    assert four.outcomes.tolist() == alone.outcomes.tolist()


def test_the_first_rank_alone_writes_results(runs):
    assert sorted((runs / "saved").read_text().split("\n")[:-1]) == ["0 aa_linf_0.1.json"] + 2 * [
        "0 pgd_linf_0.15.json"
    ]
    assert (runs / "saved4").read_text() == "0 pgd_linf_0.15.json\n"


@pytest.mark.parametrize(("run", "shares"), [("together", [6, 5]), ("judge4", [3, 3, 3, 2])])
def test_ranks_predict_each_sample_once(runs, run, shares):
    parts = [np.load(runs / run / "predict" / f"predictions_rank{rank}.npz") for rank in range(len(shares))]
    alone = np.load(runs / "judge" / "predict" / "predictions.npz")
    index = np.concatenate([part["index"] for part in parts])
    assert [len(part["index"]) for part in parts] == shares
    assert sorted(index) == alone["index"].tolist() == list(range(EVALUATED))
    for key in ("label", "prediction"):
        assert np.concatenate([part[key] for part in parts]).tolist() == alone[key][index].tolist()
    probabilities = np.concatenate([part["probabilities"] for part in parts])
    np.testing.assert_allclose(probabilities, alone["probabilities"][index], rtol=1e-4)


def test_nobody_is_told_to_reduce_what_is_reduced(runs):
    assert "sync_dist" not in (runs / "output").read_text()


@pytest.mark.parametrize("run", ["averaged", "trades", "trades4"])
def test_ranks_draw_their_own_noise_and_keep_the_same_weights(runs, run):
    first, *others = ranks = seen(runs / run)
    for noise in zip(*(rank.noise for rank in ranks), strict=True):
        assert len({tuple(numbers.tolist()) for numbers in noise}) == len(ranks)
    for name, value in first.weights[-1].items():
        is_statistic = "running_" in name  # each rank's own until the next forward pass
        assert is_statistic or all(torch.equal(value, rank.weights[-1][name]) for rank in others), name
        assert not torch.equal(value, first.start[name]), f"{name} does not learn"
    for rank in others:
        assert_same(rank.validated, first.validated, rtol=0, atol=0)
        assert without_speed(rank.metrics) == without_speed(first.metrics)


def test_ranks_validate_the_same_average(runs):
    first, second = seen(runs / "averaged")
    assert first.metrics["val/acc_pgd"] in (0, 1), "one sample is judged"
    assert not torch.equal(first.validated["model.net.fc.weight"], first.weights[-1]["model.net.fc.weight"])
    saved = torch.load(runs / "averaged" / "checkpoints" / "last.ckpt", weights_only=True)
    for rank in (first, second):
        assert_same(rank.validated, saved["state_dict"], rtol=0, atol=0)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(runs):
    stopped = torch.load(runs / "signalled" / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == 3
    assert len(stopped["rank_states"]) == 2


def test_one_rank_goes_on_where_two_have_stopped(runs):
    (alone,), (rest,) = seen(runs / "alone"), seen(runs / "signalled")
    assert len(rest.images) == 5
    assert all(torch.equal(*images) for images in zip(rest.images, alone.images[3:], strict=True))
    assert_same(rest.weights[-1], alone.weights[-1], **FP32)


def test_ranks_wait_for_a_slow_one_longer_than_for_the_network(runs):
    validated, tested = (seen(runs / "patient")[0].metrics["val/acc_pgd"], runs / "patient" / "test")
    assert 0 < validated < 1
    result = EvaluationResult.load(next(tested.glob("pgd_*.json")))
    assert result.evaluated == EVALUATED


def test_a_batch_that_does_not_divide_is_refused(runs):
    told = "batch_size must be a multiple of the 2 devices, got 15"
    assert told in (runs / "output").read_text()
    assert not (runs / "indivisible" / "checkpoints").exists()


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(runs):
    assert "A run folder holds one run" in (runs / "output").read_text()
    assert {path.name: path.read_text() for path in (runs / "held").iterdir()} == HELD

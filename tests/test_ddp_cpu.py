"""Two and four processes (gloo, CPU) compute the same as one."""

import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.ddp_inputs import AVERAGING, BATCH_NORM, DDP, EVALUATED, REAL_IN_BATCH, TINY, of_class, write_inputs
from helpers.ddp_worker import run_all
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import at_step, differences, last, rows

from lightning_paf.cli.training import train
from lightning_paf.evaluation import EvaluationResult

pytestmark = pytest.mark.slow

FOUR = ["--trainer.devices", "4", "--trainer.strategy", "ddp"]
TRUSTED = ["--trust-config"]  # the configurations name callbacks of tests
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
SHARED = [*TINY, "--trainer.sync_batchnorm", "true"]
TRAIN_MODE = [*SHARED, "--model.attack.mode", "train", "--trainer.max_epochs", "1"]
COMPILED = ["--model.speed.compile", "true", "--trainer.max_steps", "2"]

SAVER = ["--trainer.callbacks+=helpers.resume_helpers.Saver"]
SAVED = ["step3", "step4"]  # at the end of an epoch, before its validation; in the middle of the next
SIGNALLED = at_step("SignalledAt", 2)
OCCUPIED = {"config.yaml": "model: another\n", "metrics.csv": "epoch\n0\n"}


def run_everything(folder: Path) -> None:
    """Run the commands of all tests on one, two and four processes."""
    base = write_inputs(folder)

    def fit(run: str, *words: str) -> list[str]:
        return ["fit", "-c", base, "--run", str(folder / run), *words]

    def after(run: str, saved: str) -> list[str]:
        return ["--ckpt_path", str(folder / run / saved)]

    trained = str(folder / "together" / "checkpoints" / "epoch=1.ckpt")
    train(fit("alone"))
    train(fit("alone_shared", *SHARED))
    occupied = folder / "occupied"
    occupied.mkdir()
    for name, text in OCCUPIED.items():
        (occupied / name).write_text(text)
    commands = [
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
    slow = ["--val_attack.attack", "helpers.ddp_worker.SlowOnTheLastRank"]
    slow += ["--trainer.callbacks+=helpers.ddp_worker.ShortTimeout"]
    commands += [
        fit("slow", *DDP, *slow, "--trainer.max_epochs", "1"),
        ["test", *TRUSTED, *after("slow", "checkpoints/epoch=0.ckpt"), "--val_attack.batch_size", "6"],
    ]
    failing = [
        (fit("indivisible", *DDP, "--data.batch_size", "15"), 1),
        (fit("occupied", *DDP), 1),
        (fit("signalled", *DDP, *SIGNALLED), [75, 0]),  # Lightning's launcher would kill the first rank otherwise
    ]
    two = Ranks(2, folder / "logs2", run_all, [*((job, 0) for job in commands), *failing], folder / "saved")
    (folder / "output").write_text("".join(two.succeed().output))
    four = [
        fit("together4", *FOUR),
        ["test", *TRUSTED, "--ckpt_path", trained, "--run", str(folder / "evaluated4"), *FOUR],
    ]
    Ranks(4, folder / "logs4", run_all, [(job, 0) for job in four], folder / "saved4").succeed()
    for name in ("seen_rank0.pt", "seen_rank1.pt"):
        (folder / "signalled" / name).unlink(missing_ok=True)
    shutil.copy(folder / "signalled" / "checkpoints" / "stopped.ckpt", folder)  # the resumed training removes it
    train(fit("signalled", *ONE, "--ckpt_path", "auto"))
    alone = [*TRUSTED, "--ckpt_path", trained, "--run", str(folder / "evaluated"), *ONE]
    train(["test", *alone, "--autoattack", AUTOATTACK])
    train(["predict", *alone])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folder of all runs, created once for all workers of pytest."""
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
    assert done.exists(), "the runs failed in another worker"
    return folder


def seen(run: Path) -> list[SimpleNamespace]:
    """Return the records of each process of a training."""
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
def test_ranks_share_each_batch_and_its_exact_mixture(runs, run):
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
def test_ranks_train_like_one(runs, ours, theirs):
    (alone,), together = seen(runs / ours), seen(runs / theirs)
    for rank in together:
        assert_same(rank.start, alone.start, rtol=0, atol=0)
        assert_same(rank.gradients[0], alone.gradients[0], **FP32)
        for step, weights in enumerate(alone.weights):
            assert_same(rank.weights[step], weights, **FP32)  # with the statistics of BatchNorm
        assert_same(rank.weights[-1], together[0].weights[-1], rtol=0, atol=0)
    moved = [name for name, value in alone.start.items() if not torch.equal(value, alone.weights[-1][name])]
    assert len(moved) == len(alone.start), "a weight does not change"


def test_without_sync_batchnorm_ranks_have_separate_statistics(runs):
    first, second = seen(runs / "trades")
    assert not torch.equal(*(rank.weights[0]["model.net.bn.running_mean"] for rank in (first, second)))


@pytest.mark.parametrize("run", ["together", "trades", "shared", "train_mode", "compiled"])
def test_attacks_do_not_communicate(runs, run):
    for rank in seen(runs / run):
        assert len(rank.collectives) == len(rank.weights) >= 2
        assert set(rank.collectives) == {0}
        assert not torch.equal(rank.start["model.net.fc.weight"], rank.weights[-1]["model.net.fc.weight"])


@several
def test_ranks_log_the_same_metrics_as_one(runs, run):
    (alone,), together = seen(runs / "alone"), seen(runs / run)
    assert {"train/loss", "train/acc_adv", "train/clean_acc", "val/acc", "val/acc_pgd"} <= alone.metrics.keys()
    assert 0 < alone.metrics["val/acc_pgd"] < alone.metrics["val/acc"]
    assert alone.metrics["val/acc"] * EVALUATED == pytest.approx(round(alone.metrics["val/acc"] * EVALUATED))
    for rank in together:
        assert without_speed(rank.metrics) == pytest.approx(without_speed(alone.metrics), rel=1e-4)


def test_two_ranks_resume_a_run_of_one(runs):
    (alone,), resumed = seen(runs / "alone"), seen(runs / "resumed")
    for rank in resumed:
        assert len(rank.weights) == 4
        assert_same(rank.weights[-1], alone.weights[-1], **FP32)


@pytest.mark.parametrize("saved", SAVED)
def test_two_ranks_resume_exactly(runs, saved):
    """BatchNorm statistics are separate per rank, and starts are random."""
    expected, resumed = runs / "averaged", runs / f"after_{saved}"
    states = last(expected)["rank_states"]
    assert len(states) == 2
    assert not torch.equal(*(state["random"]["torch"] for state in states))
    assert differences(last(resumed), last(expected)) == []
    assert rows(resumed) == rows(expected)[-len(rows(resumed)) :]


def test_another_number_of_ranks_is_warned_of(runs):
    assert (runs / "output").read_text().count("holds random states of 1 ranks, not of 2") == 1


@pytest.mark.parametrize("run", ["together", "together4", "averaged"])
def test_uneven_shards_have_the_same_number_of_batches(runs, run):
    assert len({rank.validation_batches for rank in seen(runs / run)}) == 1
    assert seen(runs / run)[0].validation_batches >= 2


def result(run: Path, attack: str) -> EvaluationResult:
    return EvaluationResult.load(run / "test" / f"{attack}.json")


@pytest.mark.parametrize("attack", ["pgd_linf_0.15", "aa_linf_0.1"])
def test_one_rank_and_two_get_the_same_outcomes(runs, attack):
    together, alone = (result(runs / name, attack) for name in ("together", "evaluated"))
    assert together.evaluated == alone.evaluated == len(together.outcomes) == EVALUATED
    assert together.clean == alone.clean
    assert 0 < together.robust.value < together.clean.value < 1
    if together.name == "pgd":  # AutoAttack draws its starts per batch
        assert together.outcomes.tolist() == alone.outcomes.tolist()
    (logged,) = rows(runs / "together" / "test")
    assert float(logged[f"test/acc_{together.name}"]) == pytest.approx(together.robust.value)
    assert float(logged["test/acc"]) == pytest.approx(together.clean.value)


def test_four_ranks_get_the_same_outcomes(runs):
    four, alone = (result(runs / name, "pgd_linf_0.15") for name in ("evaluated4", "evaluated"))
    assert four.outcomes.tolist() == alone.outcomes.tolist()


def test_only_the_first_rank_writes_results(runs):
    assert sorted((runs / "saved").read_text().split("\n")[:-1]) == ["0 aa_linf_0.1.json"] + 2 * [
        "0 pgd_linf_0.15.json"
    ]
    assert (runs / "saved4").read_text() == "0 pgd_linf_0.15.json\n"


def test_ranks_predict_each_sample_once(runs):
    parts = [np.load(runs / "together" / "predict" / f"predictions_rank{rank}.npz") for rank in range(2)]
    alone = np.load(runs / "evaluated" / "predict" / "predictions.npz")
    index = np.concatenate([part["index"] for part in parts])
    assert [len(part["index"]) for part in parts] == [6, 5]
    assert sorted(index) == alone["index"].tolist() == list(range(EVALUATED))
    for key in ("label", "prediction"):
        assert np.concatenate([part[key] for part in parts]).tolist() == alone[key][index].tolist()
    probabilities = np.concatenate([part["probabilities"] for part in parts])
    np.testing.assert_allclose(probabilities, alone["probabilities"][index], rtol=1e-4)


def test_lightning_does_not_warn_of_metrics_that_are_not_reduced(runs):
    assert "sync_dist" not in (runs / "output").read_text()


@pytest.mark.parametrize("run", ["averaged", "trades"])
def test_ranks_draw_different_noise_and_keep_the_same_weights(runs, run):
    first, *others = ranks = seen(runs / run)
    for noise in zip(*(rank.noise for rank in ranks), strict=True):
        assert len({tuple(numbers.tolist()) for numbers in noise}) == len(ranks)
    for name, value in first.weights[-1].items():
        is_statistic = "running_" in name  # separate until the next forward pass
        assert is_statistic or all(torch.equal(value, rank.weights[-1][name]) for rank in others), name
        assert not torch.equal(value, first.start[name]), f"{name} does not change"
    for rank in others:
        assert_same(rank.validated, first.validated, rtol=0, atol=0)
        assert without_speed(rank.metrics) == without_speed(first.metrics)


def test_ranks_validate_the_same_average(runs):
    first, second = seen(runs / "averaged")
    assert first.metrics["val/acc_pgd"] in (0, 1), "one sample is evaluated"
    assert not torch.equal(first.validated["model.net.fc.weight"], first.weights[-1]["model.net.fc.weight"])
    saved = torch.load(runs / "averaged" / "checkpoints" / "last.ckpt", weights_only=True)
    for rank in (first, second):
        assert_same(rank.validated, saved["state_dict"], rtol=0, atol=0)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(runs):
    stopped = torch.load(runs / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == 3
    assert len(stopped["rank_states"]) == 2


def test_one_rank_resumes_a_stopped_run_of_two(runs):
    (alone,), (resumed,) = seen(runs / "alone"), seen(runs / "signalled")
    assert len(resumed.images) == 5
    assert all(torch.equal(*images) for images in zip(resumed.images, alone.images[3:], strict=True))
    assert_same(resumed.weights[-1], alone.weights[-1], **FP32)


def test_ranks_wait_for_a_slow_one_longer_than_the_time_out(runs):
    assert 0 < seen(runs / "slow")[0].metrics["val/acc_pgd"] < 1
    result = EvaluationResult.load(next((runs / "slow" / "test").glob("pgd_*.json")))
    assert result.evaluated == EVALUATED


def test_a_batch_that_does_not_divide_is_refused(runs):
    error = "batch_size must be a multiple of the 2 devices, got 15"
    assert error in (runs / "output").read_text()
    assert not (runs / "indivisible" / "checkpoints").exists()


def test_a_folder_with_a_run_is_refused_and_unchanged(runs):
    assert "A run folder must hold one run" in (runs / "output").read_text()
    assert {path.name: path.read_text() for path in (runs / "occupied").iterdir()} == OCCUPIED

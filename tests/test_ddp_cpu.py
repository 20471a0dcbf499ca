"""Two processes (gloo, CPU) do what one does."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from interrupted import differences, last, rows
from stand_ins import write_npz_dataset

from lightning_paf.cli import train
from lightning_paf.evaluation import EvaluationResult

pytestmark = pytest.mark.slow

SECONDS = 300  # far more than any of these takes; a hang fails instead of stopping the suite
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
            "callbacks": [of_class("ddp_worker.Recorder")],
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


BOTH = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
AUTOATTACK = yaml.safe_dump(
    of_class(
        "RobustEval",
        name="aa",
        every_n_epochs=0,
        attack=of_class("AutoAttack", eps=0.1, version="custom", attacks=["apgd-ce"]),
    ),
    default_flow_style=True,
)
BATCH_NORM = ["--model.net", "stand_ins.TinyNet", "--model.net.channels", "3", "--model.attack.start", "uniform"]
BATCH_NORM += ["--data.val_size", "19", "--data.eval_batch_size", "9"]  # 10 and 9 samples: 2 batches and 1
AVERAGING = ["--averaging", "WarmupEMA", "--checkpoint.monitor", "val/acc_pgd", "--monitor", "ActivationMonitor"]
AVERAGING += ["--val_attack.max_examples", "1"]  # of which the second rank has none

SAVER = ["--trainer.callbacks+=interrupted.Saver"]
SAVED = ["step3", "step4"]  # at the end of an epoch, before its validation; in the middle of the next


def launch(*words: str) -> subprocess.CompletedProcess:
    """Run python in a process group of its own, of which nothing is left behind."""
    tests = str(Path(__file__).parent)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "PYTEST_"))}
    path = f"{tests}{os.pathsep}{Path(tests).parent}"
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"Hangs after {SECONDS} s:\n{process.communicate()[0]}", pytrace=False)
    return subprocess.CompletedProcess(words, process.returncode, output)


def run_everything(folder: Path) -> None:
    """One process trains; two train the same, resume it, judge, and train what is random; one judges what two made."""
    base = write_inputs(folder)

    def after(saved: str) -> list[str]:
        return ["--ckpt_path", str(folder / "averaged" / "saved" / f"{saved}.ckpt")]

    trained = str(folder / "together" / "checkpoints" / "epoch=1.ckpt")
    train(["fit", "-c", base, "--run", str(folder / "alone")])
    halfway = str(folder / "alone" / "checkpoints" / "epoch=0.ckpt")
    jobs = [
        ["fit", "-c", base, "--run", str(folder / "together"), *BOTH],
        ["fit", "-c", base, "--run", str(folder / "resumed"), "--ckpt_path", halfway, *BOTH],
        ["test", "--ckpt_path", trained, "--autoattack", AUTOATTACK],
        ["predict", "--ckpt_path", trained],
        ["fit", "-c", base, "--run", str(folder / "averaged"), *BOTH, *BATCH_NORM, *AVERAGING, *SAVER],
        *(
            ["fit", "-c", base, "--run", str(folder / f"after_{saved}"), *BOTH, *BATCH_NORM, *AVERAGING, *after(saved)]
            for saved in SAVED
        ),
        ["fit", "-c", base, "--run", str(folder / "trades"), *BOTH, *BATCH_NORM, "--model.objective", "TRADES"],
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    result = launch(str(Path(__file__).parent / "ddp_worker.py"), str(folder / "jobs.json"))
    (folder / "output").write_text(result.stdout)
    assert result.returncode == 0, result.stdout
    alone = ["--run", str(folder / "judge"), "--trainer.devices", "1", "--trainer.strategy", "auto"]
    train(["test", "--ckpt_path", trained, "--autoattack", AUTOATTACK, *alone])
    train(["predict", "--ckpt_path", trained, *alone])


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


FP32 = {"rtol": 1e-4, "atol": 1e-6}


def test_two_ranks_share_each_batch_of_one_and_its_exact_mixture(runs):
    (alone,), together = seen(runs / "alone"), seen(runs / "together")
    assert len(alone.images) == 8
    for step, batch in enumerate(alone.images):
        assert torch.equal(torch.cat([rank.images[step] for rank in together]), batch)
        assert (batch[:, :, 0, 0].amax(1) > 0).sum() == REAL_IN_BATCH
    assert not torch.equal(alone.images[0], alone.images[4]), "the epochs do not differ"


def test_two_ranks_train_as_one(runs):
    (alone,), together = seen(runs / "alone"), seen(runs / "together")
    for rank in together:
        assert_same(rank.start, alone.start, rtol=0, atol=0)
        assert_same(rank.gradients[0], alone.gradients[0], **FP32)
        for step, weights in enumerate(alone.weights):
            assert_same(rank.weights[step], weights, **FP32)
    moved = [name for name, value in alone.start.items() if not torch.equal(value, alone.weights[-1][name])]
    assert len(moved) == len(alone.start), "something does not learn"


def test_two_ranks_log_the_numbers_of_one(runs):
    (alone,), together = seen(runs / "alone"), seen(runs / "together")
    assert {"train/loss", "train/acc_adv", "train/clean_acc", "val/acc", "val/acc_pgd"} <= alone.metrics.keys()
    assert 0 < alone.metrics["val/acc_pgd"] < alone.metrics["val/acc"]
    assert alone.metrics["val/acc"] * EVALUATED == pytest.approx(round(alone.metrics["val/acc"] * EVALUATED))
    for rank in together:
        assert rank.metrics == pytest.approx(alone.metrics, rel=1e-4)


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


@pytest.mark.parametrize("run", ["together", "averaged"])
def test_uneven_shards_are_equally_many_batches(runs, run):
    first, second = seen(runs / run)
    assert first.validation_batches == second.validation_batches > 2


@pytest.mark.parametrize("attack", ["pgd_linf_0.15", "aa_linf_0.1"])
def test_one_rank_and_two_judge_eleven_samples_alike(runs, attack):
    together, alone = (EvaluationResult.load(runs / name / "test" / f"{attack}.json") for name in ("together", "judge"))
    assert together.judged == alone.judged == len(together.verdicts) == EVALUATED
    assert together.clean == alone.clean
    assert 0 < together.robust.value < together.clean.value < 1
    if together.name == "pgd":  # AutoAttack draws its starts for each batch
        assert together.verdicts.tolist() == alone.verdicts.tolist()
    metrics = (runs / "together" / "test" / "metrics.csv").read_text().splitlines()
    logged = dict(zip(*(line.split(",") for line in metrics), strict=True))
    assert float(logged[f"test/acc_{together.name}"]) == pytest.approx(together.robust.value)
    assert float(logged["test/acc"]) == pytest.approx(together.clean.value)


def test_the_first_rank_alone_writes_results(runs):
    assert sorted((runs / "jobs.saved").read_text().split("\n")[:-1]) == ["0 aa_linf_0.1.json", "0 pgd_linf_0.15.json"]


def test_two_ranks_predict_each_sample_once(runs):
    parts = [np.load(runs / "together" / "predict" / f"predictions_rank{rank}.npz") for rank in range(2)]
    alone = np.load(runs / "judge" / "predict" / "predictions.npz")
    index = np.concatenate([part["index"] for part in parts])
    assert [len(part["index"]) for part in parts] == [6, 5]
    assert sorted(index) == alone["index"].tolist() == list(range(EVALUATED))
    for key in ("label", "prediction"):
        assert np.concatenate([part[key] for part in parts]).tolist() == alone[key][index].tolist()
    probabilities = np.concatenate([part["probabilities"] for part in parts])
    np.testing.assert_allclose(probabilities, alone["probabilities"][index], rtol=1e-4)


def test_nobody_is_told_to_reduce_what_is_reduced(runs):
    assert "sync_dist" not in (runs / "output").read_text()


@pytest.mark.parametrize("run", ["averaged", "trades"])
def test_ranks_draw_their_own_noise_and_keep_the_same_weights(runs, run):
    first, second = seen(runs / run)
    assert not any(torch.equal(*noise) for noise in zip(first.noise, second.noise, strict=True))
    for name, value in first.weights[-1].items():
        is_statistic = "running_" in name  # each rank's own until the next forward pass
        assert is_statistic or torch.equal(value, second.weights[-1][name]), name
        assert not torch.equal(value, first.start[name]), f"{name} does not learn"
    assert_same(first.validated, second.validated, rtol=0, atol=0)
    assert first.metrics == second.metrics


def test_ranks_validate_the_same_average(runs):
    first, second = seen(runs / "averaged")
    assert first.metrics["val/acc_pgd"] in (0, 1), "one sample is judged"
    assert not torch.equal(first.validated["model.net.fc.weight"], first.weights[-1]["model.net.fc.weight"])
    saved = torch.load(runs / "averaged" / "checkpoints" / "last.ckpt", weights_only=True)
    for rank in (first, second):
        assert_same(rank.validated, saved["state_dict"], rtol=0, atol=0)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(tmp_path):
    told = ["--trainer.callbacks+=interrupted.SignalledAt", "--trainer.callbacks.step", "2"]
    fails("fit", "-c", write_inputs(tmp_path), *told, "--run", str(tmp_path / "run"))
    stopped = torch.load(tmp_path / "run" / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stopped["global_step"] == 3
    assert len(stopped["rank_states"]) == 2


def fails(*words: str) -> str:
    result = launch("-m", "lightning_paf", *words, *BOTH)
    assert result.returncode != 0
    return result.stdout


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    output = fails("fit", "-c", write_inputs(tmp_path), "--data.batch_size", "15", "--run", str(tmp_path / "run"))
    assert "batch_size=15 is the number of images over all devices and does not divide by 2" in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    held = {"config.yaml": "model: another\n", "metrics.csv": "epoch\n0\n"}
    run = tmp_path / "run"
    run.mkdir()
    for name, text in held.items():
        (run / name).write_text(text)
    output = fails("fit", "-c", write_inputs(tmp_path), "--run", str(run))
    assert "A run folder holds one run" in output
    assert {path.name: path.read_text() for path in run.iterdir()} == held


def test_a_loss_that_breaks_on_one_rank_stops_both(tmp_path):
    objective = "ddp_worker.NaNOnTheSecondRank"
    output = fails("fit", "-c", write_inputs(tmp_path), "--model.objective", objective, "--run", str(tmp_path / "run"))
    assert "The loss must be finite, but it is nan at step 1" in output
    assert "tensor.detach()" not in output, "the message converts numbers in a way that torch warns of"

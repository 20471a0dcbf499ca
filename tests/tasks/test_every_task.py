"""Every task but classification resumes exactly on one and two ranks, and trains in bfloat16."""

import pytest
import torch
from helpers.cli_runs import status, stopped_and_resumed
from helpers.ddp_inputs import DDP
from helpers.ddp_worker import run_all
from helpers.every_task import TASKS
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import differences, last, rows

from lightning_paf import tasks
from lightning_paf.tasks import KIP, Denoising, FewShotSegmentation

LAST = "checkpoints/last.ckpt"
every_task = pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.__name__)


def test_all_tasks_are_tested():
    assert {*tasks.__all__} - {"Task", "RobustModule"} == {cls.__name__ for cls in TASKS}


@every_task
def test_a_stopped_run_resumes_exactly(cls, tmp_path):
    base = "fit", "-c", TASKS[cls](tmp_path)
    assert status(*base, "--run", tmp_path / "complete") == 0
    resumed = stopped_and_resumed(base, tmp_path / "resumed", 6, "--periodic.every_n_train_steps", "1")
    assert differences(last(resumed), last(tmp_path / "complete")) == []
    for path in (tmp_path / "complete").iterdir():
        if path.suffix in (".npz", ".png"):
            assert (resumed / path.name).read_bytes() == path.read_bytes(), path.name


@every_task
def test_a_run_in_bfloat16_has_finite_weights_in_float32(cls, tmp_path):
    precision = "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1"
    assert status("fit", "-c", TASKS[cls](tmp_path), *precision, "--run", tmp_path / "run") == 0
    assert status("test", "--ckpt_path", tmp_path / "run" / LAST, "--autoattack", "null") == 0
    weights = last(tmp_path / "run")["state_dict"].values()
    assert all(value.isfinite().all() for value in weights)
    assert {value.dtype for value in weights if value.is_floating_point()} <= {torch.float32, torch.float64}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder of each task: a run of two ranks, one resumed after step 6, and its test on two ranks and on one."""
    folder, commands = tmp_path_factory.mktemp("ranks"), []
    for cls, write in TASKS.items():
        own = folder / cls.__name__
        own.mkdir()
        base = ["fit", "-c", write(own), *DDP]
        saver = "--trainer.callbacks+=helpers.resume_helpers.Saver"
        commands += [
            [*base, saver, "--run", str(own / "complete")],
            [*base, "--ckpt_path", str(own / "complete" / "saved" / "step6.ckpt"), "--run", str(own / "resumed")],
            ["test", "--trust-config", "--ckpt_path", str(own / "resumed" / LAST), "--autoattack", "null"],
        ]
    Ranks(2, folder / "logs", run_all, [(words, 0) for words in commands], folder / "saved").succeed()
    return folder


@every_task
def test_two_ranks_resume_exactly(cls, ranks):
    complete, resumed = (ranks / cls.__name__ / name for name in ("complete", "resumed"))
    first, second = (state["random"]["torch"] for state in last(complete)["rank_states"])
    assert not torch.equal(first, second), "ranks draw different numbers"
    assert differences(last(resumed), last(complete)) == []
    assert rows(resumed) == rows(complete)[-len(rows(resumed)) :]


@pytest.mark.parametrize("cls", [Denoising, FewShotSegmentation, KIP])
def test_two_ranks_are_tested_like_one(cls, ranks):
    """Except a diffusion model, whose test draws noise for each batch."""
    resumed, alone = (ranks / cls.__name__ / name for name in ("resumed", "alone"))
    one = "--trainer.devices", "1", "--trainer.strategy", "auto"
    words = "--trust-config", "--ckpt_path", resumed / LAST, "--autoattack", "null", *one
    assert status("test", *words, "--run", alone) == 0
    (together,), (expected,) = rows(resumed / "test"), rows(alone / "test")
    assert together.keys() == expected.keys()
    ours, theirs = (
        {name: float(value) for name, value in row.items() if name.startswith("test/")} for row in (together, expected)
    )
    assert len(theirs) > 1
    assert ours == pytest.approx(theirs, rel=1e-3)

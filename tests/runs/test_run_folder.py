"""The checkpoint to resume from, and the metrics of a resumed run."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.resume_helpers import rows
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_paf.runs import lock as run_lock
from lightning_paf.runs.checkpoints import AtomicCheckpointIO
from lightning_paf.runs.folder import enter_run_folder, held_run_folder
from lightning_paf.runs.lock import FILE as LOCK
from lightning_paf.runs.loggers import RunMetrics
from lightning_paf.runs.progress import FILE, Progress
from lightning_paf.utils.claim import Owner
from lightning_paf.utils.process import Process


def write(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 0}}}}
    torch.save({"global_step": step, "loops": loops, "optimizer_states": [], "state_dict": {}}, path)
    return path


@pytest.fixture
def trainer(tmp_path) -> SimpleNamespace:
    logger = RunMetrics(tmp_path.parent, name=tmp_path.name, version="")
    return SimpleNamespace(
        log_dir=str(tmp_path), checkpoint_callbacks=[], loggers=[logger], fast_dev_run=False, overfit_batches=0
    )


@pytest.mark.parametrize("word", ["auto", "last"])
def test_a_new_training_starts_in_an_empty_folder(word, trainer, tmp_path):
    assert enter_run_folder(trainer, word, {}) is None
    (tmp_path / "config.yaml").write_text("# lightning_paf==1\n")
    (tmp_path / "checkpoints").mkdir()
    assert enter_run_folder(trainer, word, {}) is None
    assert trainer.loggers[0].resumed_step == 0


@pytest.mark.parametrize("word", ["auto", "last"])
def test_the_newest_checkpoint_is_found_in_all_folders(word, trainer, tmp_path):
    found = write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    assert enter_run_folder(trainer, word, {}) == str(found)
    found = write(tmp_path / "checkpoints" / "step=6.ckpt", step=6)
    assert enter_run_folder(trainer, word, {}) == str(found)
    found = write(tmp_path / "hpc_ckpt_1.ckpt", step=7)
    assert enter_run_folder(trainer, word, {}) == str(found)
    found = write(tmp_path / "elsewhere" / "last.ckpt", step=8)
    trainer.checkpoint_callbacks.append(ModelCheckpoint(dirpath=tmp_path / "elsewhere"))
    assert enter_run_folder(trainer, word, {}) == str(found)
    assert trainer.loggers[0].resumed_step == 8


def test_a_damaged_checkpoint_is_skipped(trainer, tmp_path):
    found = write(tmp_path / "checkpoints" / "step=3.ckpt", step=3)
    torn = write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"{torn} is damaged"):
        assert enter_run_folder(trainer, "auto", {}) == str(found)


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(trainer, tmp_path):
    found = write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    for other in (None, str(write(tmp_path.parent / "other.ckpt", step=2))):
        with pytest.raises(ValueError, match=r"already holds one. Pass another --run, or --ckpt_path auto"):
            enter_run_folder(trainer, other, {})
    assert enter_run_folder(trainer, str(found), {}) == str(found)
    assert trainer.loggers[0].resumed_step == 4


def test_a_run_that_failed_before_its_first_step_is_replaced(trainer, tmp_path):
    (tmp_path / "config.yaml").write_text("# lightning_paf==1\n")
    (tmp_path / "checkpoints").mkdir()
    assert enter_run_folder(trainer, None, {}) is None
    here = Process.this()
    Progress(here, "failed", 0, 10, 0, 1).write(tmp_path / FILE)
    assert enter_run_folder(trainer, None, {}) is None
    Progress(here, "training", 0, 10, 0, 1).write(tmp_path / FILE)
    assert enter_run_folder(trainer, None, {}) is None  # only the lock shows whether it runs
    Progress(here, "failed", 1, 10, 0, 1).write(tmp_path / FILE)
    with pytest.raises(ValueError, match="already holds one"):
        enter_run_folder(trainer, None, {})
    (tmp_path / FILE).unlink()
    (tmp_path / "metrics.csv").write_text("step\n")
    assert enter_run_folder(trainer, None, {}) is None
    (tmp_path / "metrics.csv").write_text("step\n0\n")
    with pytest.raises(ValueError, match="already holds one"):
        enter_run_folder(trainer, None, {})


@pytest.mark.parametrize("word", [None, "auto"])
def test_unreadable_metrics_are_not_replaced(word, trainer, tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_bytes(b"step\n\xff\n")
    with pytest.raises(ValueError, match=r"already holds one|metrics.csv with 1 rows"):
        enter_run_folder(trainer, word, {})
    table.unlink()
    table.symlink_to(table.name)  # opening it is an error, for root too
    with pytest.raises(ValueError, match=r"metrics.csv cannot be used as the metrics of a run: Too many levels"):
        enter_run_folder(trainer, word, {})


def log(logger: RunMetrics, *logged: tuple[int, dict[str, float]]) -> None:
    for step, metrics in logged:
        logger.log_metrics(metrics, step)
        logger.save()


EPOCH = [(0, {"lr": 0.1}), (1, {"lr": 0.2}), (1, {"val/acc": 0.5}), (1, {"train/loss": 2.0}), (2, {"lr": 0.3})]


@pytest.mark.parametrize(("resumed", "first"), [(0, 0), (1, 1), (2, 1), (2, 2), (2, 3), (2, 4), (3, 5)])
def test_a_resumed_table_equals_that_of_an_uninterrupted_run(resumed, first, trainer, tmp_path):
    """`first` is the index of the first row that the resumed run logs again."""
    log(trainer.loggers[0], *EPOCH)
    expected = rows(tmp_path)
    assert len(expected) == len(EPOCH)
    with (tmp_path / "metrics.csv").open("a") as table:
        table.write("0.4,3")  # killed during a write
    again = RunMetrics(tmp_path.parent, name=tmp_path.name, version="")
    again.resumed_step = resumed
    assert again.experiment
    log(again, *EPOCH[first:])
    assert rows(tmp_path) == expected


def test_the_first_rank_locks_the_run_folder(trainer, tmp_path):
    trainer.strategy = SimpleNamespace(checkpoint_io=AtomicCheckpointIO())
    for run, fast_dev_run, is_first, files in (
        (None, False, True, []),
        (tmp_path, True, True, []),
        (tmp_path, False, False, []),
        (tmp_path, False, True, [LOCK]),
    ):
        trainer.fast_dev_run, trainer.is_global_zero = fast_dev_run, is_first
        with held_run_folder(trainer, run):
            assert [path.name for path in tmp_path.iterdir()] == files


def test_a_takeover_is_logged_once_the_folder_is_accepted(trainer, tmp_path, caplog):
    trainer.strategy, trainer.is_global_zero = SimpleNamespace(checkpoint_io=AtomicCheckpointIO()), True
    write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    lock = json.dumps(asdict(replace(Owner.here(), started="0")))
    (tmp_path / LOCK).write_text(lock)
    with held_run_folder(trainer, tmp_path), pytest.raises(ValueError, match="already holds one"):
        enter_run_folder(trainer, None, {})
    assert "Taking over" not in caplog.text
    (tmp_path / LOCK).write_text(lock)
    with held_run_folder(trainer, tmp_path):
        enter_run_folder(trainer, "auto", {})
    assert f"Taking over {tmp_path} from process" in caplog.text


def test_the_lock_is_checked_before_every_write(trainer, tmp_path, monkeypatch):
    checks = []
    trainer.strategy = SimpleNamespace(checkpoint_io=AtomicCheckpointIO())
    trainer.is_global_zero = True
    monkeypatch.setattr(run_lock, "check_owner", lambda path, owner: checks.append(path))
    with held_run_folder(trainer, tmp_path):
        trainer.strategy.checkpoint_io.save_checkpoint({}, tmp_path / "a.ckpt")
        assert checks == [tmp_path / LOCK] * 2, "before a change, and before the renaming"
        log(trainer.loggers[0], (0, {"lr": 0.1}))
        assert len(checks) == 3
    trainer.strategy.checkpoint_io.save_checkpoint({}, tmp_path / "a.ckpt")
    assert len(checks) == 3, "the folder was released"

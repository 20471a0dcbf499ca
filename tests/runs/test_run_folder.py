"""What a training goes on from, and the table of a run that was stopped."""

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
def test_a_new_training_where_there_is_nothing(word, trainer, tmp_path):
    assert enter_run_folder(trainer, word, {}) is None
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    assert enter_run_folder(trainer, word, {}) is None, "it was killed before its first checkpoint"
    assert trainer.loggers[0].resumed_step == 0


@pytest.mark.parametrize("word", ["auto", "last"])
def test_the_newest_wherever_it_is(word, trainer, tmp_path):
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


def test_a_torn_one_is_named_and_left_out(trainer, tmp_path):
    found = write(tmp_path / "checkpoints" / "step=3.ckpt", step=3)
    torn = write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"{torn} is damaged"):
        assert enter_run_folder(trainer, "auto", {}) == str(found)


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_continued(trainer, tmp_path):
    found = write(tmp_path / "checkpoints" / "last.ckpt", step=4)
    for other in (None, str(write(tmp_path.parent / "other.ckpt", step=2))):
        with pytest.raises(ValueError, match=r"already holds one. Pass another --run, or --ckpt_path auto"):
            enter_run_folder(trainer, other, {})
    assert enter_run_folder(trainer, str(found), {}) == str(found)
    assert trainer.loggers[0].resumed_step == 4


def test_a_run_that_failed_before_its_first_step_is_in_nobodys_way(trainer, tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    assert enter_run_folder(trainer, None, {}) is None
    here = Process.this()
    Progress(here, "failed", 0, 10, 0, 1).write(tmp_path / FILE)
    assert enter_run_folder(trainer, None, {}) is None
    Progress(here, "training", 0, 10, 0, 1).write(tmp_path / FILE)
    assert enter_run_folder(trainer, None, {}) is None, "whether it still runs is a matter of the lock"
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
def test_metrics_that_cannot_be_read_are_not_replaced(word, trainer, tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_bytes(b"step\n\xff\n")
    with pytest.raises(ValueError, match=r"already holds one|metrics.csv with 1 rows"):
        enter_run_folder(trainer, word, {})
    table.unlink()
    table.symlink_to(table.name)  # opening it is an error, whoever asks
    with pytest.raises(ValueError, match=r"metrics.csv cannot serve as the metrics of a run: Too many levels"):
        enter_run_folder(trainer, word, {})


def log(logger: RunMetrics, *logged: tuple[int, dict[str, float]]) -> None:
    for step, metrics in logged:
        logger.log_metrics(metrics, step)
        logger.save()


EPOCH = [(0, {"lr": 0.1}), (1, {"lr": 0.2}), (1, {"val/acc": 0.5}), (1, {"train/loss": 2.0}), (2, {"lr": 0.3})]


@pytest.mark.parametrize(("resumed", "first"), [(0, 0), (1, 1), (2, 1), (2, 2), (2, 3), (2, 4), (3, 5)])
def test_a_continued_table_is_that_of_a_run_that_was_not_stopped(resumed, first, trainer, tmp_path):
    """`first` is the number of the first row that the continued run logs again."""
    log(trainer.loggers[0], *EPOCH)
    whole = rows(tmp_path)
    assert len(whole) == len(EPOCH)
    with (tmp_path / "metrics.csv").open("a") as table:
        table.write("0.4,3")  # killed while it wrote
    again = RunMetrics(tmp_path.parent, name=tmp_path.name, version="")
    again.resumed_step = resumed
    assert again.experiment, "opened where training begins, logged or not"
    log(again, *EPOCH[first:])
    assert rows(tmp_path) == whole


def test_only_the_first_rank_of_a_training_in_a_run_folder_takes_the_lock(trainer, tmp_path):
    trainer.strategy = SimpleNamespace(checkpoint_io=AtomicCheckpointIO())
    for run, rehearses, is_first, files in (
        (None, False, True, []),
        (tmp_path, True, True, []),
        (tmp_path, False, False, []),
        (tmp_path, False, True, [LOCK]),
    ):
        trainer.fast_dev_run, trainer.is_global_zero = rehearses, is_first
        with held_run_folder(trainer, run):
            assert [path.name for path in tmp_path.iterdir()] == files


def test_what_is_written_is_preceded_by_a_look_at_the_lock(trainer, tmp_path, monkeypatch):
    looks = []
    trainer.strategy = SimpleNamespace(checkpoint_io=AtomicCheckpointIO())
    trainer.is_global_zero = True
    monkeypatch.setattr(run_lock, "check_owner", lambda path, owner: looks.append(path))
    with held_run_folder(trainer, tmp_path):
        trainer.strategy.checkpoint_io.save_checkpoint({}, tmp_path / "a.ckpt")
        assert looks == [tmp_path / LOCK] * 2, "before anything is changed, and before the file gets its name"
        log(trainer.loggers[0], (0, {"lr": 0.1}))
        assert len(looks) == 3
    trainer.strategy.checkpoint_io.save_checkpoint({}, tmp_path / "a.ckpt")
    assert len(looks) == 3, "the folder was released"

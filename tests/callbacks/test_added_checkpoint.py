"""ModelCheckpoints of the user in addition to those of the run folder."""

import torch
from helpers.cli_runs import built, status, write_experiment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_paf.callbacks import AddedCheckpoint

BEST = ["monitor", "val/acc", "mode", "max", "filename"]


def options(prefix: str, *values: str) -> list[str]:
    return [f"--{prefix}.{word}" if place % 2 == 0 else word for place, word in enumerate(values)]


def test_all_epochs_and_the_best_ones_are_kept_and_resumed(tmp_path):
    """One has the conditions of `last.ckpt`, the other those of `--checkpoint`."""
    every = ["--trainer.callbacks+=ModelCheckpoint", *options("trainer.callbacks", "save_top_k", "-1")]
    every += options("trainer.callbacks", "filename", "all-{epoch}")
    best = ["--trainer.callbacks+=ModelCheckpoint", *options("trainer.callbacks", *BEST, "own", "save_top_k", "3")]
    words = ["fit", "-c", write_experiment(tmp_path), *options("checkpoint", *BEST, "best"), *every, *best]
    for epochs in ("1", "2"):
        run = ["--run", tmp_path / "run", "--ckpt_path", "auto", "--trainer.max_epochs", epochs]
        assert status(*words, *run) == 0
    folder = tmp_path / "run" / "checkpoints"
    expected = {"all-epoch=0.ckpt", "all-epoch=1.ckpt", "best.ckpt", "last.ckpt", "own.ckpt", "own-v1.ckpt"}
    assert {path.name for path in folder.iterdir()} == expected
    states = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    assert len([name for name in states if "val/acc" in name]) == 2


def test_own_checkpoints_replace_those_of_the_run_folder(tmp_path):
    words = ["-c", write_experiment(tmp_path), "--checkpoint", "null", "--trainer.callbacks+=ModelCheckpoint"]
    (saver,) = built(*words).trainer.checkpoint_callbacks
    assert type(saver) is ModelCheckpoint


def test_only_the_later_of_two_equal_states_gets_a_name():
    class Own(ModelCheckpoint):
        pass

    added = [EarlyStopping("val/acc"), ModelCheckpoint(), ModelCheckpoint(), Own(), ModelCheckpoint(monitor="step")]
    AddedCheckpoint.keep_states_apart(added, [ModelCheckpoint()])
    assert [type(one) for one in added] == [EarlyStopping, AddedCheckpoint, AddedCheckpoint, Own, ModelCheckpoint]
    assert len({one.state_key for one in added}) == len(added)

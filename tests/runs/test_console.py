"""Which lines of Lightning are printed, and which are not."""

import logging

import pytest
from helpers.cli_runs import built, status, write_experiment

from lightning_paf.runs import console

NOISE = ("Seed set to", "GPU available", "TPU available", "limit_val_batches")


@pytest.fixture
def said(caplog):
    """What Lightning has said."""

    def messages():
        return [record.getMessage() for record in caplog.records if record.name.startswith("lightning.")]

    with caplog.at_level(logging.INFO):
        yield messages


def test_what_builds_a_run_to_look_at_it_says_nothing_about_a_trainer(tmp_path, said):
    """All commands of analysis build a run so, and have printed Lightning's seed, devices and settings."""
    words = ("-c", write_experiment(tmp_path), "--trainer.limit_val_batches", "1.0")
    built(*words)
    assert said() == []
    assert status("fit", *words, "--run", tmp_path / "run", "--trainer.max_steps", "1") == 0
    printed = " ".join(said())
    assert all(noise in printed for noise in NOISE), "a training goes on to say it"


def test_warnings_are_not_hidden_and_levels_come_back(said):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with console.quiet():
        logger.info("noise")
        logger.warning("to be read")
    assert said() == ["to be read"]
    assert logger.level == before

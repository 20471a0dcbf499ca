"""Messages of Lightning that are printed or hidden."""

import logging

import pytest
from helpers.cli_runs import built, status, write_experiment

from lightning_paf.runs import console

NOISE = ("Seed set to", "GPU available", "TPU available", "limit_val_batches")


@pytest.fixture
def messages(caplog):
    """Returns the messages of Lightning."""

    def found():
        return [record.getMessage() for record in caplog.records if record.name.startswith("lightning.")]

    with caplog.at_level(logging.INFO):
        yield found


def test_only_a_training_prints_messages_about_the_trainer(tmp_path, messages):
    """Other commands also build a trainer when they load a run."""
    words = ("-c", write_experiment(tmp_path), "--trainer.limit_val_batches", "1.0")
    built(*words)
    assert messages() == []
    assert status("fit", *words, "--run", tmp_path / "run", "--trainer.max_steps", "1") == 0
    printed = " ".join(messages())
    assert all(noise in printed for noise in NOISE)


def test_warnings_are_printed_and_levels_restored(messages):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with console.quiet():
        logger.info("noise")
        logger.warning("to be read")
    assert messages() == ["to be read"]
    assert logger.level == before

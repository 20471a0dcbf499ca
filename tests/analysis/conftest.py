"""One trained run for all commands of this folder."""

import pytest
from helpers.cli_runs import trained_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Folder of a run that was trained for one epoch with PGD, linf 8/255."""
    return trained_run(tmp_path_factory.mktemp("analysis"))


@pytest.fixture(scope="session")
def checkpoint(run):
    return run / "checkpoints" / "last.ckpt"

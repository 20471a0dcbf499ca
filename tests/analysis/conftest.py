"""One trained run for all commands of this folder."""

import pytest
from helpers.cli_runs import status, write_experiment


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Folder of a run that was trained for one epoch with PGD, linf 8/255."""
    folder = tmp_path_factory.mktemp("analysis")
    assert status("fit", "-c", write_experiment(folder), "--run", folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="session")
def checkpoint(run):
    return run / "checkpoints" / "last.ckpt"

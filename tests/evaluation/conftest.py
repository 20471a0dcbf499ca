"""Fixtures of evaluation states and evidence."""

import pytest
from helpers.evidence_fakes import first_pixels, written
from helpers.state_fakes import IDENTITY

from lightning_paf.evaluation import EvaluationState, MemoryState


@pytest.fixture(params=["folder", "memory"])
def state(request, tmp_path):
    state = EvaluationState(tmp_path / "state") if request.param == "folder" else MemoryState()
    state.open(IDENTITY)
    return state


@pytest.fixture
def path(tmp_path):
    """Path of an evidence file."""
    path = tmp_path / "r.evidence.safetensors"
    written(path, *first_pixels()[1:])
    return path

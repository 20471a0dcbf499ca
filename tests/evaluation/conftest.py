import pytest
from helpers.state_fakes import IDENTITY

from lightning_paf.evaluation import EvaluationState, MemoryState


@pytest.fixture(params=["folder", "memory"])
def state(request, tmp_path):
    state = EvaluationState(tmp_path / "state") if request.param == "folder" else MemoryState()
    state.open(IDENTITY)
    return state

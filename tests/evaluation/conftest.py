import pytest
from helpers.state_fakes import HEADER

from lightning_paf.evaluation.state import Ledger, MemoryLedger


@pytest.fixture(params=["folder", "memory"])
def ledger(request, tmp_path):
    ledger = Ledger(tmp_path / "ledger") if request.param == "folder" else MemoryLedger()
    ledger.open(HEADER)
    return ledger

import pytest
from ledger_stand_ins import HEADER

from lightning_paf.evaluation.ledger import Ledger, MemoryLedger


@pytest.fixture(params=["folder", "memory"])
def ledger(request, tmp_path):
    ledger = Ledger(tmp_path / "ledger") if request.param == "folder" else MemoryLedger()
    ledger.open(HEADER)
    return ledger

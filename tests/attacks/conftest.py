"""AutoAttack in a tenth of a second, for tests of what surrounds it."""

import pytest

BUDGETS = {
    "APGDAttack": {"n_iter": 10},
    "APGDAttack_targeted": {"n_iter": 10},
    "FABAttack_PT": {"n_iter": 10},
    "SquareAttack": {"n_queries": 60},
}


@pytest.fixture
def short_budgets(monkeypatch):
    """Every sub-attack of the package takes fewer steps than in the real ensemble."""
    from pyautoattack import autoattack

    def shortened(cls, budget):
        return lambda *args, **options: cls(*args, **options | budget)

    def keep_queries(self, version):
        set_version(self, version)
        self.square.n_queries = BUDGETS["SquareAttack"]["n_queries"]

    set_version = autoattack.AutoAttack._set_version
    for name, budget in BUDGETS.items():
        monkeypatch.setattr(autoattack, name, shortened(getattr(autoattack, name), budget))
    monkeypatch.setattr(autoattack.AutoAttack, "_set_version", keep_queries)

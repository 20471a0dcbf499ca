"""Small budgets for the attacks of the published package."""

import pytest

BUDGETS = {
    "APGDAttack": {"n_iter": 10},
    "APGDAttack_targeted": {"n_iter": 10},
    "FABAttack_PT": {"n_iter": 10},
    "SquareAttack": {"n_queries": 60},
}


@pytest.fixture
def short_budgets(monkeypatch):
    """Replace the budgets of all sub-attacks of the package by small ones."""
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

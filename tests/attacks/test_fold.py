"""The option `fold` of attacks."""

from helpers.fakes import TinyNet, images, spec

from lightning_paf.attacks import PGD, AutoAttack, Restarts
from lightning_paf.nn.classifier import Classifier
from lightning_paf.speed.folded_model import FoldedModel


def test_attacks_without_folding_make_no_folded_model(monkeypatch):
    model, (x, y) = Classifier(TinyNet(), spec()).eval(), images()
    made = []
    monkeypatch.setattr("lightning_paf.speed.search_model._fold", lambda model: (made.append(model), "not folded"))
    AutoAttack(0.1, version="custom", attacks=["apgd-ce"], fold=False).run(model, x, y)
    assert not Restarts(PGD(0.1, step_size=0.05, fold=False), 2).search_model(model).folded
    assert not made
    PGD(0.1, step_size=0.05).search_model(model)
    assert made == [model]
    model.fast_forward = FoldedModel(model)
    PGD(0.1, step_size=0.05, fold=False)(model, x, y)
    assert model.fast_forward._forward is None
    PGD(0.1, step_size=0.05)(model, x, y)
    assert model.fast_forward.folded


def test_the_option_is_described_where_it_is_off():
    assert "fold" not in AutoAttack().describe()
    assert AutoAttack(fold=False).describe()["fold"] is False
    assert PGD(fold=False).describe() == {"fold": False} | PGD().describe()

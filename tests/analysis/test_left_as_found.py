"""Analyses leave the model unchanged, and those with a seed the global generator."""

import pytest
import torch
from helpers.fakes import images, tiny_classifier

from lightning_paf.analysis.concentration import concentration
from lightning_paf.analysis.randomized_smoothing import Smoothing
from lightning_paf.analysis.saliency import compare_saliency
from lightning_paf.analysis.security_curve import fixed_eps, minimum_norm
from lightning_paf.attacks import FAB, PGD
from lightning_paf.evaluation import Samples


def pgd(eps):
    return PGD(eps, step_size=0.05, steps=2)


def compute_minimum_norm(model, x, y):
    return minimum_norm(model, Samples.of(x, y), FAB(steps=3), [0.1]).fooled


@pytest.mark.parametrize(
    ("compute", "seeded"),
    [
        (lambda model, x, y: concentration(model, x, y, pgd(0.1), starts=2).losses, False),
        (compute_minimum_norm, False),
        (lambda model, x, y: compare_saliency(model, x, grid=4).overlap, True),
        (lambda model, x, y: Smoothing(0.1, n0=5, n=20).certify(model, x[:2]).radii, True),
        (lambda model, x, y: fixed_eps(model, Samples.of(x, y), pgd, [0.1, 0.2]).fooled, True),
    ],
    ids=["concentration", "minimum norm", "saliency", "smoothing", "fixed eps"],
)
def test_model_is_left_as_found(compute, seeded):
    model, (x, _) = tiny_classifier().train(), images()
    y = model.eval()(x).argmax(1)
    before = {key: value.clone() for key, value in model.train().state_dict().items()}
    generator = torch.get_rng_state()
    first = torch.as_tensor(compute(model, x, y))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    if seeded:
        assert torch.equal(generator, torch.get_rng_state())
        assert torch.equal(first, torch.as_tensor(compute(model, x, y)))

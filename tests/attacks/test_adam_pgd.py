"""PGD with Adam: the optimum of a linear loss, and equality with torch's Adam."""

import torch
from helpers.digits_net import lambda_module
from helpers.fakes import images, tiny_classifier

from lightning_paf.attacks import AdamPGD
from lightning_paf.functional.losses import cross_entropy


def test_reaches_the_corner_of_a_linear_loss():
    x = torch.full((2, 1, 4, 4), 0.5)
    weight = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = lambda_module(lambda z: (z * weight).flatten(1).sum(1, keepdim=True) * torch.tensor([-1.0, 1.0]))
    found = AdamPGD(0.1)(model, x, torch.tensor([0, 1]))
    expected = 0.1 * weight.sign() * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(found - x, expected.expand_as(x))


def test_equals_the_optimizer_of_torch_with_projections():
    model, (x, y) = tiny_classifier().eval(), images()
    torch.manual_seed(0)
    found = AdamPGD(0.1, steps=4, lr=0.02, drop_at=2)(model, x, y)
    torch.manual_seed(0)
    z = (x + torch.empty_like(x).uniform_(-0.1, 0.1)).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02, eps=1e-9, maximize=True)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.02 if step < 2 else 0.002
        optimizer.zero_grad()
        cross_entropy(model(z), y).sum().backward()
        optimizer.step()
        with torch.no_grad():
            z.copy_(torch.min(torch.max(z, x - 0.1), x + 0.1).clamp(0, 1))
    torch.testing.assert_close(found, z.detach(), atol=1e-5, rtol=0)

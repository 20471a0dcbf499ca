"""PANet and PNODE: limits of the ODE block, solvers, and the segmenter."""

import pytest
import torch
from helpers.episodes import episodes
from torch import nn

from lightning_paf.nets.few_shot import PNODE, FewShotSegmenter, PANet

SMALL = {"widths": (4, 4), "convs": (1, 1), "groups": 2}


def net(cls, **options):
    torch.manual_seed(0)
    return cls(**SMALL, **options).eval()


def test_for_a_short_time_the_block_is_the_identity():
    pnode = net(PNODE, t_end=1e-6, step=1e-6)
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(pnode(x), pnode.encoder(x), atol=1e-4, rtol=1e-4)


def test_both_networks_have_the_same_parameters():
    ours, theirs = net(PANet), net(PNODE)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours(torch.rand(2, 1, 16, 20)).shape == theirs(torch.rand(2, 1, 16, 20)).shape == (2, 4, 8, 10)
    theirs.load_state_dict({name.replace("field.", "block.field."): v for name, v in ours.state_dict().items()})
    z = torch.rand(1, 4, 8, 8)
    euler = theirs.block.field(torch.zeros(()), z)
    torch.testing.assert_close(ours.transform(z), euler)


def test_fixed_steps_agree_with_an_adaptive_solver():
    """The encoder's features from RK4 with 64 steps, and dopri5 of falling tolerance."""
    from torchdiffeq import odeint

    torch.manual_seed(0)
    pnode = PNODE(widths=(16, 16), convs=(1, 1), groups=4, step=0.0625, solver="rk4").eval()
    z = pnode.encoder(torch.rand(2, 1, 16, 16))
    with torch.no_grad():
        exact = pnode.block(z)
        times = torch.tensor([0.0, 4.0])
        errors = [
            float((odeint(pnode.block.field, z, times, rtol=tol, atol=tol)[-1] - exact).norm() / exact.norm())
            for tol in (1e-3, 1e-5)
        ]
    assert errors[0] < 1e-2
    assert errors[1] < errors[0]


def test_the_segmenter_encodes_support_and_query_in_one_pass():
    batch = episodes(ways=2, shots=3)
    model = FewShotSegmenter(net(PNODE, step=2.0), (0.5,), (0.25,))
    support, query = model.encode(batch)
    assert (support.shape, query.shape) == ((2, 2, 3, 4, 8, 8), (2, 4, 8, 8))
    torch.testing.assert_close(support[1, 0, 2], model.features(batch.support[1, 0, 2:3])[0], atol=1e-5, rtol=1e-4)
    assert model(batch).shape == (2, 3, 16, 16)


def test_weights_of_vgg16_are_copied(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 9, 3)]
    monkeypatch.setattr(models, "vgg16", lambda weights: type("VGG", (), {"features": layers}))
    grey = net(PANet, pretrained=True)
    torch.testing.assert_close(grey.encoder[0].weight, layers[0].weight.sum(1, keepdim=True))
    assert torch.equal(net(PANet, in_channels=3, pretrained=True).encoder[3].weight, layers[2].weight)
    with pytest.raises(ValueError, match="widths and convs must be those of VGG16"):
        PANet(widths=(8, 4), convs=(1, 1), groups=2, pretrained=True)

"""A network that is flat around an image, and that only `version=strong` fools there."""

from functools import partial

import torch
from torch import Tensor, nn

from lightning_paf.attacks import AutoAttack, autoattack
from lightning_paf.evaluation import Evaluation, Samples

EPS = 0.1


def plateau(norm: str = "linf", height: float = 10.0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network whose margin is 1 but for one corner of the ball, and its image (1, 1, 4, 4).

    The logits are `1 - height relu(u - 0.8)` and 0, with the fraction `u` of the way to the corner, which is an
    adversarial image for u > 0.9. The gradient is zero for u < 0.8.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (16,), generator=generator) * 2.0 - 1
    reach = 16 * EPS if norm == "linf" else 4 * EPS
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.copy_(signs / reach)
        net[1].bias.copy_(-0.5 * signs.sum() / reach - 0.8)
        net[3].weight.copy_(torch.tensor([[-height], [0.0]]))
        net[3].bias.copy_(torch.tensor([1.0, 0.0]))
    return net.eval(), torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])


def plateau_samples() -> tuple[nn.Sequential, Samples]:
    """The network and four images: fooled by `strong` only, by `standard` too, robust, and misclassified."""
    net, x, _ = plateau()
    signs = net[1].weight.detach().sign().view(1, 1, 4, 4)
    images = torch.cat([x, x + 0.85 * EPS * signs, x - EPS * signs, x + 0.95 * EPS * signs])
    return net, Samples.of(images, torch.zeros(4, dtype=torch.int64))


def shorten(monkeypatch) -> None:
    """Give the attacks of `standard` small budgets."""
    short = {"apgd-ce": {"steps": 10}, "apgd-t": {"steps": 10}, "fab-t": {"steps": 5}, "square": {"queries": 20}}
    made = {name: partial(autoattack._MAKE[name], **budget) for name, budget in short.items()}
    monkeypatch.setattr(autoattack, "_MAKE", {**autoattack._MAKE, **made})


def evaluated(version: str, stop=None, block_size: int = 4):
    """Result of a version of AutoAttack on `plateau_samples`."""
    net, samples = plateau_samples()
    return Evaluation(net, AutoAttack(EPS, version=version), samples, block_size=block_size).run(stop=stop)

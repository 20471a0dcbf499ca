"""All attacks of the package with small budgets, and a small problem for them."""

import copy
import importlib.util
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import lightning_paf.attacks
from lightning_paf.attacks import (
    APGD,
    FAB,
    FGSM,
    OPT,
    PGD,
    ZOO,
    Attack,
    AutoAttack,
    Boundary,
    CarliniWagner,
    EnsembleMIFGSM,
    FoolboxAttack,
    JointAttack,
    JointGrid,
    OnePixel,
    Recorded,
    ReferenceAutoAttack,
    Restarts,
    SigmaZero,
    SignOPT,
    Square,
    UniversalPerturbation,
    WorstOf,
)
from lightning_paf.functional import geometry_of

for info in pkgutil.iter_modules(lightning_paf.attacks.__path__):
    importlib.import_module(f"lightning_paf.attacks.{info.name}")


def concrete(cls=Attack):
    for sub in cls.__subclasses__():
        yield from concrete(sub)
        if not inspect.isabstract(sub) and sub.__module__.startswith("lightning_paf."):
            yield sub


# Only for classes whose defaults are missing or slow; all others are built without arguments.
MAKE = {
    APGD: lambda: APGD(steps=10, search_loss="dlr-targeted", batch_size=4),
    Boundary: lambda: Boundary(2.0, queries=150),
    CarliniWagner: lambda: CarliniWagner(steps=20, searches=4, initial_c=1, lr=0.1),
    EnsembleMIFGSM: lambda: EnsembleMIFGSM([nn.Sequential(nn.Flatten(), nn.Linear(64, 5))]),
    FoolboxAttack: lambda: FoolboxAttack("DDNAttack", 1.0, options={"steps": 10}),
    JointAttack: lambda: JointAttack(PGD(steps=5)),
    JointGrid: lambda: JointGrid(PGD(steps=5), [0.0, 2.0]),
    OPT: lambda: OPT(2.0, queries=150, starts=5, directions=2),
    OnePixel: lambda: OnePixel(population=20, generations=3),
    SigmaZero: lambda: SigmaZero(steps=60),
    SignOPT: lambda: SignOPT(2.0, queries=150, starts=5, directions=20),
    UniversalPerturbation: lambda: UniversalPerturbation(passes=2, steps=5),
    ZOO: lambda: ZOO(8.0, queries=100, c=0.01, lr=0.1),
    AutoAttack: lambda: AutoAttack(version="custom", attacks=["apgd-ce"]),
    FAB: lambda: FAB(steps=10),
    ReferenceAutoAttack: lambda: ReferenceAutoAttack(version="custom", attacks=["apgd-ce", "fab-t"]),
    Recorded: lambda: Recorded(PGD(steps=5)),
    Square: lambda: Square(queries=60),
    WorstOf: lambda: WorstOf([PGD(norm="l2", eps=0.5, step_size=0.1), FGSM(norm="l2", eps=0.3)]),
    Restarts: lambda: Restarts(PGD(steps=5), 2),
}
MISSING = set() if importlib.util.find_spec("foolbox") else {FoolboxAttack}  # of an optional package
ATTACKS = sorted(set(concrete()) - MISSING, key=lambda cls: cls.__name__)
attacks = pytest.mark.parametrize(
    "attack", [MAKE.get(cls, cls)() for cls in ATTACKS], ids=[cls.__name__ for cls in ATTACKS]
)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.SiLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 5)
    )
    for _ in range(3):
        net(torch.rand(16, 1, 8, 8))  # statistics that are not the initial ones
    net.eval()
    net[5].weight.data *= 5
    net[5].bias.data -= net(torch.full((1, 1, 8, 8), 0.5)).detach()[0]  # nothing is far from a decision boundary
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    return net


def batch():
    """Images, some pixels at the ends of the range, and their predictions as labels; the first is misclassified."""
    torch.manual_seed(1)
    x = (0.5 + torch.randn(6, 1, 8, 8) / 3).clamp(0, 1)
    with torch.no_grad():
        y = copy.deepcopy(network()).eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return x, y


def assert_allowed(attack, x, x_adv):
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (geometry_of(attack.norm).size(x_adv - x) <= attack.radius + 1e-6).all()

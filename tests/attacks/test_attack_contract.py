"""What every attack promises, for every subclass of `Attack` in the package: a new one needs no edit here."""

import copy
import importlib.util
import inspect
import pkgutil
import random

import numpy as np
import pytest
import torch
from torch import nn

import lightning_paf.attacks
from lightning_paf.attacks import (
    APGD,
    FAB,
    FGSM,
    MIFGSM,
    OPT,
    PGD,
    ZOO,
    Attack,
    AutoAttack,
    Boundary,
    CarliniWagner,
    EnsembleMIFGSM,
    FoolboxAttack,
    OnePixel,
    Recorded,
    ReferenceAutoAttack,
    Restarts,
    SignOPT,
    Square,
    UniversalPerturbation,
    WorstOf,
)
from lightning_paf.functional import cross_entropy, geometry_of, kl_divergence, misclassified
from lightning_paf.nn.modes import frozen

pytestmark = pytest.mark.usefixtures("short_budgets")

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
    OPT: lambda: OPT(2.0, queries=150, starts=5, directions=2),
    OnePixel: lambda: OnePixel(population=20, generations=3),
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
losses = pytest.mark.parametrize(
    "attack",
    [MAKE.get(cls, cls)() for cls in ATTACKS if not cls.fixed_loss],
    ids=[cls.__name__ for cls in ATTACKS if not cls.fixed_loss],
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
    """Images, some pixels at the ends of the range, in the classes the network sees; the first is misclassified."""
    torch.manual_seed(1)
    x = (0.5 + torch.randn(6, 1, 8, 8) / 3).clamp(0, 1)
    with torch.no_grad():
        y = copy.deepcopy(network()).eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return x, y


def state(net):
    flags = [module.training for module in net.modules()]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in net.parameters()]
    identities = [id(tensor) for tensor in [*net.parameters(), *net.buffers()]]
    return flags, gradients, identities, copy.deepcopy(net.state_dict())


def assert_untouched(before, net):
    after = state(net)
    assert before[:3] == after[:3]
    assert all(torch.equal(tensor, after[3][key]) for key, tensor in before[3].items())


def test_subclasses_are_found():
    assert {APGD, PGD, FGSM, AutoAttack, ReferenceAutoAttack, Restarts, WorstOf} <= set(ATTACKS)


@attacks
def test_within_radius_and_box_same_shape_no_graph(attack):
    net, (x, y) = network(), batch()
    x_adv = attack(net, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (geometry_of(attack.norm).size(x_adv - x) <= attack.radius + 1e-6).all()
    assert not torch.equal(x_adv, x)


@attacks
def test_does_not_share_memory_with_the_input(attack):
    net, (x, y) = network(), batch()
    x_before, y_before = x.clone(), y.clone()
    attack(net, x, y).fill_(0.5)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


@pytest.mark.parametrize("mode", ["eval", "train"])
@attacks
def test_model_is_left_as_found(attack, mode):
    attack = copy.copy(attack)
    attack.mode = mode
    net, (x, y) = network(), batch()
    before = state(net)
    attack(net, x, y)
    assert_untouched(before, net)


@attacks
def test_gradients_already_there_are_kept(attack):
    net, (x, y) = network(), batch()
    cross_entropy(net(x), y).mean().backward()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    attack(net, x, y)
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@attacks
def test_model_is_left_as_found_when_it_fails(attack):
    net, (x, y) = network(), batch()

    def fail(*_):
        raise RuntimeError("lost the device")

    handle = net[4].register_forward_hook(fail)
    before = state(net)
    with pytest.raises(RuntimeError, match="lost the device"):
        attack(net, x, y)
    handle.remove()
    assert_untouched(before, net)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@attacks
def test_works_where_the_caller_has_no_gradients(attack, context):
    net, (x, y) = network(), batch()
    torch.manual_seed(7)
    outside = attack(net, x, y)
    with context():
        x, y = batch()  # these are inference tensors, which autograd refuses to save
        torch.manual_seed(7)
        inside = attack(net, x, y)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside, outside)


@attacks
def test_single_example(attack):
    net, (x, y) = network(), batch()
    assert attack(net, x[:1], y[:1]).shape == (1, 1, 8, 8)
    assert attack(net, x[5:], y[5:]).shape == (1, 1, 8, 8)


@attacks
def test_empty_batch(attack):
    net, (x, y) = network(), batch()
    assert attack(net, x[:0], y[:0]).shape == (0, 1, 8, 8)


@attacks
def test_pixels_must_lie_in_the_bounds(attack):
    net, (x, y) = network(), batch()
    before = state(net)
    with pytest.raises(ValueError, match=r"Pixels must lie in \[0, 1\] .* normalisation belongs inside the model"):
        attack(net, 4 * x - 2, y)
    with pytest.raises(ValueError, match="Pixels must lie in"):
        attack(net, torch.full_like(x, torch.nan), y)
    with pytest.raises(ValueError, match="Divide uint8 images by 255"):
        attack(net, (255 * x).byte(), y)
    assert_untouched(before, net)


@attacks
def test_parameter_hooks_do_not_fire(attack):
    # DistributedDataParallel reduces gradients in such hooks; an attack must not set them off.
    net, (x, y) = network(), batch()
    fired = []
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.register_hook(fired.append)
            parameter.register_post_accumulate_grad_hook(fired.append)
    attack(net, x, y)
    assert fired == []
    cross_entropy(net(x), y).mean().backward()
    assert fired


@attacks
def test_description_is_plain_and_names_the_threat_model(attack):
    described = attack.describe()
    assert described["attack"] == type(attack).__name__
    assert described["norm"] == attack.norm
    assert described["eps_value"] == float(attack.eps)
    assert plain(described)


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


@losses
def test_custom_loss_and_forward_are_used(attack):
    net, x = network(), batch()[0]
    target = torch.full((6, 5), 0.2)
    calls = []

    def forward(z):
        calls.append(z.shape)
        return {"logits": net(z)}

    def loss(output, p):
        assert p.equal(target)
        return kl_divergence(output["logits"], p)

    x_adv = attack(net, x, target, loss=loss, forward=forward)
    assert calls
    with torch.no_grad(), frozen(net):
        assert (loss(forward(x_adv), target) > loss(forward(x), target)).float().mean() > 0.6


@losses
def test_loss_must_be_per_example(attack):
    net, (x, y) = network(), batch()
    with pytest.raises(ValueError, match=r"one value per example, shape \(6,\), got shape \(\)"):
        attack(net, x, y, loss=lambda z, t: cross_entropy(z, t).mean())


@pytest.mark.parametrize("cls", [cls for cls in ATTACKS if cls.fixed_loss])
def test_fixed_losses_refuse_another(cls):
    net, (x, y) = network(), batch()
    attack = MAKE.get(cls, cls)()
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        attack(net, x, y, loss=cross_entropy)
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        attack(net, x, y, forward=net)
    with pytest.raises(ValueError, match="got a custom loss or forward"):
        Restarts(attack, 2)(net, x, y, loss=cross_entropy)


@attacks
def test_python_and_numpy_generators_are_untouched(attack):
    net, (x, y) = network(), batch()
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    attack(net, x, y)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@attacks
def test_repeatable_under_a_seed(attack):
    net, (x, y) = network(), batch()
    torch.manual_seed(3)
    first = attack(net, x, y)
    torch.manual_seed(3)
    assert torch.equal(attack(net, x, y), first)


GRID = 64
NAN, INF = torch.nan, torch.inf


def row_logits(x):
    return 10 * (x[:, 0, :5].mean(2) - x.flatten(1).mean(1, keepdim=True))


class UndefinedOffTheGrid(nn.Module):
    """Robust in itself (class k: the mean of row k leads), but a change of any pixel makes the logits undefined."""

    def __init__(self, own, other):
        super().__init__()
        self.own, self.other = own, other

    def forward(self, x):
        means = row_logits(x)
        first = torch.zeros_like(means).scatter(1, means.argmax(1, keepdim=True), 1.0).bool()
        last = torch.zeros_like(means).scatter(1, means.argmin(1, keepdim=True), 1.0).bool()
        broken = torch.where(first, self.own, torch.where(last, self.other, means))
        scaled = GRID * x.detach().flatten(1)
        off = ((scaled != scaled.round()) | (scaled >= GRID - 1)).any(1, keepdim=True)
        return torch.where(off & broken.isfinite().logical_not(), broken, means)


def grid_batch():
    """Images of `UndefinedOffTheGrid` whose classes no change of 8/255 can swap."""
    y = torch.arange(6) % 5
    x = torch.full((6, 1, 8, 8), 24 / GRID)
    x[torch.arange(6), 0, y] = 29 / GRID
    return x, y


UNDEFINED = {
    "all NaN": (NAN, NAN),
    "only another logit NaN": (0.0, NAN),
    "the label's logit +inf": (INF, 0.0),
    "another logit +inf": (0.0, INF),
    "the label's logit -inf": (-INF, 0.0),
    "another logit -inf": (0.0, -INF),
    "both +inf": (INF, INF),
}


def assert_allowed(attack, x, x_adv):
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (geometry_of(attack.norm).size(x_adv - x) <= attack.radius + 1e-6).all()


@pytest.mark.parametrize("values", UNDEFINED.values(), ids=UNDEFINED)
@attacks
def test_images_with_undefined_logits_are_found(attack, values):
    model, (x, y) = UndefinedOffTheGrid(*values), grid_batch()
    assert not misclassified(model(x), y).any()
    torch.manual_seed(0)
    x_adv = attack(model, x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(model(x_adv), y).all()


@pytest.mark.parametrize("values", UNDEFINED.values(), ids=UNDEFINED)
@pytest.mark.parametrize("cls", [PGD, APGD, FAB, Square, AutoAttack])
def test_images_with_undefined_logits_are_found_in_l2(cls, values):
    attack = {
        PGD: lambda: PGD(0.2, step_size=0.05, best=True, norm="l2"),
        APGD: lambda: APGD(0.2, norm="l2", steps=10),
        FAB: lambda: FAB(0.2, norm="l2", steps=20),
        Square: lambda: Square(0.2, norm="l2", queries=60),
        AutoAttack: lambda: AutoAttack(0.2, norm="l2", version="custom", attacks=["apgd-ce"]),
    }[cls]()
    model, (x, y) = UndefinedOffTheGrid(*values), grid_batch()
    torch.manual_seed(0)
    x_adv = attack(model, x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(model(x_adv), y).all()


class UndefinedInAShell(UndefinedOffTheGrid):
    """Undefined where the largest change is a fifth to three fifths of 8/255, defined beyond."""

    def forward(self, x):
        far = (GRID / 4 * x.detach().flatten(1) - (GRID / 4 * x.detach().flatten(1)).round()).abs().amax(1) * 4 / GRID
        shell = (far > 0.2 * 8 / 255) & (far < 0.6 * 8 / 255)
        return torch.where(shell[:, None], super().forward(x), row_logits(x))


@pytest.mark.parametrize("values", UNDEFINED.values(), ids=UNDEFINED)
@pytest.mark.parametrize(
    "attack",
    [MIFGSM(8 / 255), *(PGD(8 / 255, step_size=1 / 255, steps=12, start="none", best=best) for best in (False, True))],
    ids=["mifgsm", "pgd", "best"],
)
def test_an_attack_stays_where_the_logits_are_undefined(attack, values):
    model, (x, y) = UndefinedInAShell(*values), grid_batch()
    x = (x * GRID / 4).round() * 4 / GRID
    y = model(x).argmax(1)
    x_adv = attack(model, x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(model(x_adv), y).all()


@attacks
def test_a_model_without_any_defined_logit(attack):
    x, y = batch()
    x_adv = attack(AlwaysUndefined(), x, y)
    assert_allowed(attack, x, x_adv)
    assert misclassified(AlwaysUndefined()(x_adv), y).all()


class AlwaysUndefined(nn.Module):
    def forward(self, x):
        return x[:, 0, :5].mean(2) * torch.nan


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[:, :, ::2] = ctx.value
        return gradient, None


class WithGradient(nn.Module):
    """The network, with another gradient in every second row of pixels."""

    def __init__(self, value):
        super().__init__()
        self.net, self.value = network().eval(), value

    def forward(self, x):
        return self.net(Backward.apply(x, self.value))


@attacks
def test_nan_in_a_gradient_counts_as_zero(attack):
    x, y = batch()
    found = []
    for value in (torch.nan, 0.0):
        torch.manual_seed(5)
        found.append(attack(WithGradient(value), x, y))
    assert torch.equal(*found)


@attacks
def test_infinite_gradients_leave_images_allowed(attack):
    x, y = batch()
    assert_allowed(attack, x, attack(WithGradient(-torch.inf), x, y))

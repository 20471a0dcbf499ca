"""Objectives around other objectives: forwarded calls, the added term, GradAlign and the first-layer penalty."""

import copy

import pytest
import torch
from helpers.cli_runs import status
from helpers.every_objective import OBJECTIVES, concrete
from helpers.fakes import CONFIGS, TinyNet, images, spec, tiny_classifier
from helpers.training import weights_after
from torch import nn

from lightning_paf.attacks import FGSM, PGD
from lightning_paf.functional.alignment import cosine
from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.nets import SmallConvNet, TimmNet
from lightning_paf.nn.activations import PSSiLU, fuse_activations
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.second_derivatives import require_second_derivatives
from lightning_paf.nn.swap import swap_activations
from lightning_paf.objectives import TRADES, AdversarialCE, FirstLayerPenalty, GradAlign, PixelMask
from lightning_paf.objectives.first_layer_penalty import first_layer
from lightning_paf.objectives.wrapper import Regularised, Wrapper
from lightning_paf.speed.options import Speed
from lightning_paf.speed.recompute import recomputed_outputs
from lightning_paf.tasks.classification import RobustModule

EPS = 0.1
ATTACK = FGSM(EPS)
X, Y = images()
every_term = pytest.mark.parametrize("cls", [c for c in concrete(Regularised) if c in OBJECTIVES])


class Recording(AdversarialCE):
    steps_per_batch = 3
    needs_double_backward = True

    def __init__(self):
        super().__init__("adversarial")
        self.called = []

    def bind(self, model):
        self.called.append("bind")

    def on_epoch_start(self, epoch, progress):
        self.called.append(("epoch", epoch, progress))

    def begin_step(self, number):
        self.called.append(("step", number))

    def after_backward(self, model):
        self.called.append("after")


class Through(Wrapper):
    def forward(self, model, x, y, attack):
        return super().forward(model, x, y, attack)


def test_every_call_reaches_the_wrapped_objective():
    inner = Recording()
    outer = FirstLayerPenalty(Through(inner))
    model = tiny_classifier()
    outer.bind(model)
    outer.on_epoch_start(2, 0.5)
    outer.begin_step(1)
    outer.after_backward(model)
    assert inner.called == ["bind", ("epoch", 2, 0.5), ("step", 1), "after"]
    assert outer.steps_per_batch == 3
    assert outer.needs_double_backward


@pytest.mark.parametrize("cls", [Wrapper, Regularised])
def test_bases_cannot_be_chosen_as_objectives(cls, capsys):
    assert cls not in OBJECTIVES
    experiment = CONFIGS / "experiments" / "digits.yaml"
    assert status("fit", "-c", experiment, "--model.objective", cls.__name__) == 2
    assert f"{cls.__name__} is abstract" in capsys.readouterr().err


def test_the_wrapped_objective_is_trained_and_saved():
    outer = FirstLayerPenalty(GradAlign(PixelMask(0.4, "fixed")))
    assert "objective.objective.thresholds" in outer.state_dict()
    result = outer(tiny_classifier().train(), X, Y, ATTACK)
    assert {"misalignment", "first_layer"} <= result.logs.keys()
    assert result.clean_logits is not None, "the result of the wrapped objective is kept"


@every_term
@pytest.mark.parametrize("inner", [AdversarialCE, TRADES])
def test_a_weight_of_zero_is_the_wrapped_objective_bit_for_bit(cls, inner):
    attack = PGD(EPS, step_size=EPS / 2, steps=2)
    expected, found = (weights_after(objective, attack) for objective in (inner(), cls(inner(), weight=0)))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_term
def test_the_term_is_added_with_its_weight(cls):
    losses = []
    for weight in (0, 0.3):
        torch.manual_seed(0)
        model = tiny_classifier().train()
        torch.manual_seed(0)
        losses.append(cls(weight=weight)(model, X, Y, ATTACK))
    plain, result = losses
    torch.testing.assert_close(result.loss, plain.loss + 0.3 * result.logs[cls.name])
    assert result.logs[cls.name] > 0


# The first layer


@pytest.mark.parametrize("kind", ["l2", "l1gain"])
def test_the_penalty_is_its_closed_form(kind):
    model = tiny_classifier()
    weight = model.net.conv.weight.detach()
    expected = weight.norm() ** 2 if kind == "l2" else sum(filters.abs().sum() for filters in weight) / len(weight)
    torch.testing.assert_close(FirstLayerPenalty(kind=kind).term(model, X, Y, ATTACK).detach(), expected)


def test_l1gain_is_the_largest_change_of_a_filter_per_eps():
    """Away from borders, the worst perturbation is the sign of the filter."""
    conv = nn.Conv2d(2, 1, 3, bias=False)
    x = torch.rand(1, 2, 3, 3)
    worst = (conv(x + EPS * conv.weight.sign()) - conv(x)).item() / EPS
    gain = FirstLayerPenalty(kind="l1gain").term(nn.Sequential(conv), x, torch.zeros(1), ATTACK)
    assert gain.item() == pytest.approx(worst, rel=1e-4)


def test_the_first_layer_is_that_of_the_images():
    assert first_layer(tiny_classifier()).in_channels == 3
    assert first_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).in_features == 4


# Gradient alignment


def test_a_constant_direction_of_the_gradient_is_no_misalignment():
    """With two classes the gradient of a linear network has one direction."""
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), spec(2))
    assert GradAlign().term(model, X, Y % 2, ATTACK).item() == pytest.approx(0, abs=1e-5)


def test_misalignment_is_one_minus_the_mean_cosine():
    model = tiny_classifier().eval()
    torch.manual_seed(7)
    noise = torch.empty_like(X).uniform_(-EPS, EPS)
    gradients = []
    for point in (X, X + noise):
        leaf = point.clone().requires_grad_()
        nn.functional.cross_entropy(model(leaf), Y).backward()
        gradients.append(leaf.grad.flatten(1))
    torch.manual_seed(7)
    found = GradAlign().term(model, X, Y, ATTACK).item()
    assert found == pytest.approx(1 - nn.functional.cosine_similarity(*gradients, eps=0).mean().item(), abs=1e-5)
    assert found > 1e-4


@pytest.mark.parametrize("both", [False, True])
def test_the_gradient_at_the_image_is_constant_unless_both_are_differentiated(both):
    """The value is the same; the derivative is that of a hand-written cosine."""
    model = tiny_classifier().eval()
    weight = model.net.fc.weight
    torch.manual_seed(7)
    (found,) = torch.autograd.grad(GradAlign(differentiate_both=both).term(model, X, Y, ATTACK), weight)
    torch.manual_seed(7)
    here, there = (input_gradient(model, x, Y).flatten(1) for x in (X, X + torch.empty_like(X).uniform_(-EPS, EPS)))
    cosines = nn.functional.cosine_similarity(here if both else here.detach(), there, eps=0)
    torch.testing.assert_close(found, torch.autograd.grad(1 - cosines.mean(), weight)[0])


def test_images_with_a_zero_gradient_are_left_out():
    """Their direction is undefined; their derivative must not be NaN either."""
    model = tiny_classifier().train()
    with torch.no_grad():
        model.net.bn.bias.fill_(-100)  # all activations are zero
    term = GradAlign().term(model, X, Y, ATTACK)
    assert term.item() == 0
    term.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_minimising_it_aligns_the_gradients():
    torch.manual_seed(0)
    net = TinyNet()
    swap_activations(net, nn.SiLU)
    model = Classifier(net, spec()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    values = []
    for _ in range(30):
        torch.manual_seed(0)
        term = GradAlign(differentiate_both=True).term(model, X, Y, ATTACK)
        values.append(term.item())
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert values[-1] < values[0] / 2


def test_fused_and_recomputed_activations_have_the_same_second_derivatives():
    torch.manual_seed(0)
    net = TinyNet()
    swap_activations(net, PSSiLU)
    plain = Classifier(net, spec()).train()
    fast = copy.deepcopy(plain)
    fuse_activations(fast)
    torch.manual_seed(0)
    GradAlign().term(plain, X, Y, ATTACK).backward()
    torch.manual_seed(0)
    with recomputed_outputs(fast):
        term = GradAlign().term(fast, X, Y, ATTACK)
    term.backward()
    for p, q in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_the_cosine_does_not_depend_on_lengths(scale):
    a, b = torch.randn(2, 5, 3, 4, 4)
    expected = nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(cosine(scale * a, b), expected)
    assert cosine(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0


# Networks without second derivatives


@pytest.mark.parametrize("objective", [c() for c in concrete(Regularised) if c.needs_double_backward], ids=repr)
def test_a_compiled_network_is_refused(objective):
    outer = FirstLayerPenalty(objective)
    with pytest.raises(ValueError, match=r"compile must be false for FirstLayerPenalty.*--model\.speed\.compile false"):
        RobustModule(SmallConvNet(), ATTACK, outer, dataset="digits", speed=Speed(compile=True))


def test_fused_attention_is_refused():
    pytest.importorskip("timm")
    net = TimmNet("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1)
    with pytest.raises(ValueError, match=r"TimmNet must be twice .* for GradAlign, got: .*TIMM_FUSED_ATTN=0"):
        RobustModule(net, ATTACK, GradAlign())
    RobustModule(net, ATTACK, FirstLayerPenalty())


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x):
        return OnceOnly.apply(x)


@pytest.mark.parametrize("compiled", [True, False])
def test_other_layers_without_second_derivatives_are_refused_too(compiled):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.SiLU() if compiled else Sine(), nn.Linear(8, 10))
    net = torch.compile(net, backend="aot_eager") if compiled else net
    with pytest.raises(ValueError, match=r"must be twice differentiable for GradAlign, got: "):
        RobustModule(net, ATTACK, GradAlign())


def test_the_check_of_a_network_changes_nothing():
    model = tiny_classifier().train()
    before = copy.deepcopy(model.state_dict())
    require_second_derivatives(model, X, "this test")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    require_second_derivatives(model, torch.rand(2, 5, 8, 8), "images that do not fit")

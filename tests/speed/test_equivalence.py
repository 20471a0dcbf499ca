"""No fast path changes outputs, gradients or random choices; where one would, the model itself is used."""

# ruff: noqa: NPY002  # the global generators are what is tested

import logging
import random

import numpy as np
import pytest
import torch
from helpers.fakes import TinyNet, images, spec
from helpers.rounded_net import Round
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_paf import nets
from lightning_paf.attacks import PGD, AutoAttack, ReferenceAutoAttack, Restarts
from lightning_paf.nn.activations import PSSiLU, fuse_activations
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.equivalence import difference
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.compiled_net import CompiledNet
from lightning_paf.speed.folded_model import FoldedModel
from lightning_paf.speed.search_model import SearchModel


class Sign(torch.autograd.Function):
    """A binarisation with the straight-through gradient of Hubara et al. 2016."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Scale(torch.autograd.Function):
    """The identity with half the gradient."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 0.5 * grad


class Binarised(TinyNet):
    def forward(self, x):
        return self.fc(self.activation(Sign.apply(self.bn(self.conv(x)))).mean((2, 3)))


class Rounded(TinyNet):
    def forward(self, x):
        return super().forward(Round.apply(x))


class DetachedDifference(TinyNet):
    def forward(self, x):
        return super().forward(x + ((x * 15).round() / 15 - x).detach())


class DataDifference(TinyNet):
    def forward(self, x):
        return super().forward(x + ((x * 15).round() / 15 - x).data)


class FakeQuantised(TinyNet):
    def forward(self, x):
        with torch.no_grad():
            rounded = (x * 15).round() / 15 - x
        return super().forward(x + rounded)


class Scaled(TinyNet):
    def forward(self, x):
        return super().forward(x) + 3 * self.fc(Scale.apply(self.conv(x)).mean((2, 3)))


class BinaryConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(Sign.apply(x - 0.5), Sign.apply(self.weight), self.bias)


class BinaryWeights(TinyNet):
    def __init__(self):
        super().__init__()
        self.conv = BinaryConv(3, 4, 3, padding=1)


class PartWithoutGradient(TinyNet):
    def forward(self, x):
        with torch.no_grad():
            scale = x.mean((1, 2, 3), keepdim=True)
        return super().forward(x * scale)


class PartInInferenceMode(TinyNet):
    def forward(self, x):
        with torch.inference_mode():
            shift = x.mean()
        return super().forward(x + shift.clone())


class Resized(TinyNet):
    """A defence that shows the image at a random size."""

    def draw(self):
        return int(torch.randint(5, 9, ()))

    def forward(self, x):
        return super().forward(F.interpolate(x, size=self.draw()))


class ResizedByPython(Resized):
    def draw(self):
        return random.randint(5, 8)


class ResizedByNumpy(Resized):
    def draw(self):
        return int(np.random.randint(5, 9))


class ResizedByItsOwnGenerator(Resized):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def draw(self):
        return int(self.generator.integers(5, 9))


class ResizedByItsOwnPython(ResizedByItsOwnGenerator):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(0)

    def draw(self):
        return self.generator.randint(5, 8)


class StochasticDepth(TinyNet):
    """Drops a branch now and then, in eval mode as well."""

    def forward(self, x):
        return super().forward(x + F.dropout(x, 0.5, training=True) if random.random() < 0.5 else x)


class TensorHook(TinyNet):
    def forward(self, x):
        z = self.bn(self.conv(x))
        if z.requires_grad:
            z.register_hook(lambda gradient: 0.1 * gradient.sign())
        return self.fc(self.activation(z).mean((2, 3)))


class Checkpointed(TinyNet):
    def forward(self, x):
        return super().forward(checkpoint(lambda z: F.dropout(z).square(), x, use_reentrant=False))


def halve(_, __, output):
    return 0.5 * output


def flatten(_, gradients, *__):
    return (0.1 * gradients[0].sign(),)


def hooked(register, place="net"):
    def make():
        model = Classifier(nn.Sequential(TinyNet(), nn.Identity()), spec())
        getattr(model.get_submodule(place), f"register_{register}")(
            {"forward_hook": halve, "forward_pre_hook": lambda _, inputs: (0.5 * inputs[0],)}.get(register, flatten)
        )
        return model

    return make


def classifier(cls):
    return lambda: Classifier(cls(), spec())


UNLIKE = {
    **{
        cls.__name__: classifier(cls)
        for cls in (
            Binarised, Rounded, DetachedDifference, DataDifference, FakeQuantised, Scaled, PartWithoutGradient,
            PartInInferenceMode, Resized, ResizedByPython, ResizedByNumpy, ResizedByItsOwnGenerator,
            ResizedByItsOwnPython, StochasticDepth, TensorHook, Checkpointed,
        )
    },
    **{
        f"{register} on {place or 'the model'}": hooked(register, place)
        for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
        for place in ("", "net.0")
    },
}  # fmt: skip
LAYERS = {
    "binary weights": classifier(BinaryWeights),
    **{
        f"{register} on a layer": hooked(register, "net.0.conv")
        for register in ("forward_hook", "forward_pre_hook", "full_backward_hook")
    },
}


def swapped(make):
    def with_activation():
        model = make()
        swap_activations(model, PSSiLU)
        return model

    return with_activation


def folded_search(model, x):
    search = SearchModel(model)
    with torch.no_grad():
        search(x)
    return search, search.folded


def folded_training(model, x):
    fast = FoldedModel(model)
    with torch.no_grad():
        fast.refresh()(x)
    return fast.refresh(), fast.folded


def compiled_net(model, x):
    compiled = CompiledNet(model, _backend="eager")
    compiled(x.clone().requires_grad_())
    (chosen,) = compiled._chosen.values()
    return compiled, chosen is not model


def fused_kernels(model, x):
    def fast(x):
        fuse_activations(model)
        try:
            return model(x)
        finally:
            fuse_activations(model, False)

    return fast, True


FOLDED = {"search": folded_search, "training": folded_training}
PATHS = FOLDED | {"compiled": compiled_net, "kernels": fused_kernels}


def outcome(forward, model, x, seed):
    """Logits, their gradient by the images, and the generators after; all generators as `seed` says before."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if (own := getattr(getattr(model, "net", model), "generator", None)) is not None:
        state = np.random.default_rng(seed).bit_generator.state
        own.seed(seed) if isinstance(own, random.Random) else setattr(own.bit_generator, "state", state)
    x = x.clone().requires_grad_()
    logits = forward(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient, (random.random(), np.random.rand(), float(torch.rand(())))


def settled(make):
    torch.manual_seed(0)
    model = make().train()
    for _ in range(2):
        model(torch.rand(16, 3, 8, 8))
    return model.eval()


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


COMPILED = (
    "Binarised", "Rounded", "DetachedDifference", "Resized", "ResizedByPython", "ResizedByNumpy", "TensorHook",
    "PartWithoutGradient", "forward_hook on net.0", "full_backward_hook on net.0",
)  # fmt: skip
CASES = [(name, path) for name in (*UNLIKE, *LAYERS) for path in PATHS if path != "compiled" or name in COMPILED]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_no_fast_path_changes_gradients_or_random_choices(name, path):
    make = (UNLIKE | LAYERS)[name]
    model, (x, _) = settled(swapped(make) if path == "kernels" else make), images()
    torch._dynamo.reset()
    with frozen(model):
        fast, used = PATHS[path](model, x)
        for seed in range(6):
            found, expected = outcome(fast, model, x, seed), outcome(model, model, x, seed)
            torch.testing.assert_close(found[:2], expected[:2], rtol=1e-3, atol=1e-5)
            assert found[2] == expected[2]
    assert not (used and path in FOLDED and name in UNLIKE)


@pytest.mark.parametrize("path", PATHS)
def test_an_ordinary_network_keeps_its_fast_path(path, caplog):
    model, (x, _) = settled(swapped(lambda: Classifier(nets.WideResNet(depth=10, width=1), spec()))), images()
    torch._dynamo.reset()
    with frozen(model):
        before = generators()
        fast, used = PATHS[path](model, x)
        assert generators() == before
        found, expected = outcome(fast, model, x, 0), outcome(model, model, x, 0)
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-3, atol=1e-5)
    assert used
    assert not [record for record in caplog.records if record.name.startswith("lightning_paf")]


@pytest.mark.parametrize("path", FOLDED)
@pytest.mark.parametrize("make", [Resized, ResizedByPython, ResizedByNumpy, ResizedByItsOwnGenerator, StochasticDepth])
def test_the_check_leaves_the_generators_as_found(make, path):
    """The call that follows it draws as it would have without the check."""
    model, (x, _) = settled(classifier(make)), images()
    with frozen(model):
        _, _, expected = outcome(model, model, x, 0)
        fast = {"search": SearchModel, "training": lambda model: FoldedModel(model).refresh()}[path](model)
        assert outcome(fast, model, x, 0)[2] == expected


def test_a_network_that_draws_is_different_from_itself():
    model, (x, _) = settled(classifier(ResizedByItsOwnPython)), images()
    state = model.net.generator.getstate()
    assert difference(model, model, x) == "its forward pass uses a random generator"
    assert model.net.generator.getstate() == state


def test_each_kind_of_difference_is_named():
    model, (x, _) = settled(classifier(TinyNet)), images()
    assert difference(model, model, x) is None
    assert "outputs differ" in difference(model, lambda x: 1.1 * model(x), x)
    assert "gradients differ" in difference(model, lambda x: model(x.detach() + 0.5 * (x - x.detach())), x)
    weights = list(model.parameters())
    assert difference(model, model, x, weights) is None
    assert "by the weights" in difference(model, lambda x: model(x).detach() + 0 * model(x), x, weights)
    assert "size of tensor" in difference(model, lambda x: model(x[:, :2]), x)


def test_a_hook_on_every_module_is_noticed():
    model, (x, _) = settled(classifier(TinyNet)), images()
    with nn.modules.module.register_module_forward_hook(lambda _, __, output: 0.5 * output):
        for path in FOLDED.values():
            assert not path(model, x)[1]


def test_training_mode_is_left_to_the_model():
    model, (x, _) = settled(classifier(TinyNet)), images()
    search = SearchModel(model)
    assert not torch.equal(search(x), model(x))
    assert search.folded
    with frozen(model, "train"):
        assert torch.equal(search(x), model(x))


def test_the_refusal_is_logged_once_a_model(caplog):
    model, (x, _) = settled(classifier(Rounded)), images()
    for _ in range(2):
        SearchModel(model)(x)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "lightning_paf.speed.search_model"
    assert "Rounded" in record.getMessage()
    assert "autograd function" in record.getMessage()
    FoldedModel(model).refresh()(x)
    assert caplog.records[-1].name == "lightning_paf.speed.folded_model"
    SearchModel(settled(classifier(Rounded)))(x)
    assert len(caplog.records) == 3
    SearchModel(model, fold=False)(x)
    assert len(caplog.records) == 3


class Defence(nn.Module):
    def forward(self, x):
        return Round.apply(x)


class OwnRounding(nn.Module):
    def forward(self, x):
        return x + ((x * 15).round() / 15 - x).detach()


@pytest.mark.parametrize("defence", [Defence, OwnRounding])
def test_autoattack_breaks_what_the_reference_breaks(defence):
    torch.manual_seed(0)
    net, x = nn.Sequential(defence(), nn.Flatten(), nn.Linear(192, 4)).eval(), torch.rand(50, 3, 8, 8)
    y = net(x).argmax(1)
    options = {"eps": 0.04, "version": "custom", "attacks": ["apgd-ce"]}
    left = [cls(**options).run(net, x, y).robust_after["apgd-ce"] for cls in (AutoAttack, ReferenceAutoAttack)]
    assert left == [6, 6]


def test_every_search_of_an_attack_obeys_its_option(monkeypatch):
    model, (x, y) = settled(classifier(TinyNet)), images()
    made = []
    monkeypatch.setattr("lightning_paf.speed.search_model._fold", lambda model: made.append(model) or "not wanted")
    AutoAttack(0.1, version="custom", attacks=["apgd-ce"], fold=False).run(model, x, y)
    attack = Restarts(PGD(0.1, step_size=0.05, fold=False), 2)
    assert not attack.search_model(model).folded
    assert not made
    PGD(0.1, step_size=0.05).search_model(model)
    assert made == [model]


def test_the_option_is_described_where_it_is_off():
    assert "fold" not in AutoAttack().describe()
    assert AutoAttack(fold=False).describe()["fold"] is False
    assert PGD(fold=False).describe() == {"fold": False} | PGD().describe()


def test_a_training_attack_without_folding_makes_no_folded_model():
    model, (x, y) = settled(classifier(TinyNet)), images()
    model.fast_forward = FoldedModel(model)
    PGD(0.1, step_size=0.05, fold=False)(model, x, y)
    assert model.fast_forward._forward is None
    PGD(0.1, step_size=0.05)(model, x, y)
    assert model.fast_forward.folded

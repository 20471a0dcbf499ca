"""Fast paths change no outputs, gradients or random numbers; otherwise the model itself is used."""

# ruff: noqa: NPY002  # the test is about the global generators

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
from lightning_paf.attacks import AutoAttack, ReferenceAutoAttack
from lightning_paf.nn.activations import PSSiLU, fuse_activations
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.equivalence import difference
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.speed.compiled_net import CompiledNet
from lightning_paf.speed.folded_model import FoldedModel
from lightning_paf.speed.search_model import SearchModel


class HalfGradient(torch.autograd.Function):
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


def rounding(x):
    return (x * 15).round() / 15 - x


class Preprocessed(TinyNet):
    """A defence that changes the images."""

    def __init__(self, preprocess):
        super().__init__()
        self.preprocess = preprocess

    def forward(self, x):
        return super().forward(self.preprocess(x))


def fake_quantised(x):
    with torch.no_grad():
        difference = rounding(x)
    return x + difference


def shifted_in_inference_mode(x):
    with torch.inference_mode():
        shift = x.mean()
    return x + shift.clone()


def resized(draw):
    return lambda x: F.interpolate(x, size=int(draw()))


def sometimes_dropped(x):
    return x + F.dropout(x, 0.5, training=True) if random.random() < 0.5 else x


PREPROCESSED = {
    "rounded": Round.apply,
    "detached difference": lambda x: x + rounding(x).detach(),
    "difference of data": lambda x: x + rounding(x).data,
    "fake-quantised": fake_quantised,
    "shifted in inference mode": shifted_in_inference_mode,
    "resized by torch": resized(lambda: torch.randint(5, 9, ())),
    "resized by python": resized(lambda: random.randint(5, 8)),
    "resized by numpy": resized(lambda: np.random.randint(5, 9)),
    "stochastic depth": sometimes_dropped,
    "checkpointed": lambda x: checkpoint(lambda z: F.dropout(z).square(), x, use_reentrant=False),
}


class HalfScaled(TinyNet):
    def forward(self, x):
        return super().forward(x) + 3 * self.fc(HalfGradient.apply(self.conv(x)).mean((2, 3)))


class Sign(torch.autograd.Function):
    """The sign, with the gradient of a clipped identity (Courbariaux et al. 2016)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Binarised(TinyNet):
    def forward(self, x):
        return self.fc(Sign.apply(self.bn(self.conv(x))).mean((2, 3)))


class QuantisedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(Round.apply(x), Round.apply(self.weight), self.bias)


class QuantisedWeights(TinyNet):
    def __init__(self):
        super().__init__()
        self.conv = QuantisedConv(3, 4, 3, padding=1)


class ResizedByAttribute(TinyNet):
    """A defence with a separate generator."""

    def __init__(self, generator=None):
        super().__init__()
        self.generator = np.random.default_rng(0) if generator is None else generator

    def forward(self, x):
        python = isinstance(self.generator, random.Random)
        size = self.generator.randint(5, 8) if python else int(self.generator.integers(5, 9))
        return super().forward(F.interpolate(x, size=size))


class TensorHook(TinyNet):
    def forward(self, x):
        z = self.bn(self.conv(x))
        if z.requires_grad:
            z.register_hook(lambda gradient: 0.1 * gradient.sign())
        return self.fc(self.activation(z).mean((2, 3)))


HOOKS = {
    "forward_hook": lambda _, __, output: 0.5 * output,
    "forward_pre_hook": lambda _, inputs: (0.5 * inputs[0],),
    "full_backward_hook": lambda _, gradients, *__: (0.1 * gradients[0].sign(),),
    "full_backward_pre_hook": lambda _, gradients: (0.1 * gradients[0].sign(),),
}


def hooked(kind, path):
    def make():
        model = Classifier(nn.Sequential(TinyNet(), nn.Identity()), spec())
        getattr(model.get_submodule(path), f"register_{kind}")(HOOKS[kind])
        return model

    return make


def classifier(make):
    return lambda: Classifier(make(), spec())


def preprocessed(name):
    return classifier(lambda: Preprocessed(PREPROCESSED[name]))


DIFFERENT = {
    **{name: preprocessed(name) for name in PREPROCESSED},
    "half-scaled": classifier(HalfScaled),
    "binarised": classifier(Binarised),
    "resized by attribute of numpy": classifier(ResizedByAttribute),
    "resized by attribute of python": classifier(lambda: ResizedByAttribute(random.Random(0))),
    "tensor hook": classifier(TensorHook),
    **{f"{kind} on {path or 'model'}": hooked(kind, path) for kind in HOOKS for path in ("", "net.0")},
}
LAYERS = {
    "quantised weights": classifier(QuantisedWeights),
    **{f"{kind} on layer": hooked(kind, "net.0.conv") for kind in HOOKS if kind != "full_backward_pre_hook"},
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


def bf16_search(model, x):
    search = SearchModel(model, "bf16")
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


FOLDED = {"search": folded_search, "bf16": bf16_search, "training": folded_training}
PATHS = FOLDED | {"compiled": compiled_net, "kernels": fused_kernels}


def results(forward, model, x, seed):
    """Logits, their gradient by the images, and the next random numbers; all generators start with `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if (generator := getattr(getattr(model, "net", model), "generator", None)) is not None:
        if isinstance(generator, random.Random):
            generator.seed(seed)
        else:
            generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    x = x.clone().requires_grad_()
    logits = forward(x)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient, (random.random(), np.random.rand(), float(torch.rand(())))


def assert_equivalent(found, expected, path):
    if path == "bf16":
        for one, other, tolerance in zip(found[:2], expected[:2], (0.1, 0.5), strict=True):
            assert (one - other).norm() <= tolerance * other.norm()
    else:
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-3, atol=1e-5)


def settled(make):
    torch.manual_seed(0)
    model = make().train()
    for _ in range(2):
        model(torch.rand(16, 3, 8, 8))
    return model.eval()


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


COMPILED = (
    "rounded", "detached difference", "resized by torch", "resized by python", "tensor hook",
    "fake-quantised", "forward_hook on net.0", "full_backward_hook on net.0",
)  # fmt: skip
CASES = [(name, path) for name in (*DIFFERENT, *LAYERS) for path in PATHS if path != "compiled" or name in COMPILED]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_no_fast_path_changes_gradients_or_random_choices(name, path):
    make = (DIFFERENT | LAYERS)[name]
    model, (x, _) = settled(swapped(make) if path == "kernels" else make), images()
    torch._dynamo.reset()
    with frozen(model):
        fast, used = PATHS[path](model, x)
        for seed in range(4):
            found, expected = results(fast, model, x, seed), results(model, model, x, seed)
            assert_equivalent(found, expected, path)
            assert found[2] == expected[2]
    assert not (used and path in FOLDED and name in DIFFERENT)


@pytest.mark.parametrize("path", PATHS)
def test_an_ordinary_network_keeps_its_fast_path(path, caplog):
    model, (x, _) = settled(swapped(lambda: Classifier(nets.WideResNet(depth=10, width=1), spec()))), images()
    torch._dynamo.reset()
    with frozen(model):
        before = generators()
        fast, used = PATHS[path](model, x)
        assert generators() == before
        found, expected = results(fast, model, x, 0), results(model, model, x, 0)
        assert_equivalent(found, expected, path)
    assert used
    assert not [record for record in caplog.records if record.name.startswith("lightning_paf")]


RANDOM = [name for name in DIFFERENT if name.startswith(("resized", "stochastic"))]


@pytest.mark.parametrize("path", FOLDED)
@pytest.mark.parametrize("name", RANDOM)
def test_the_check_restores_the_generators(name, path):
    """The next call draws the same numbers as without the check."""
    model, (x, _) = settled(DIFFERENT[name]), images()
    with frozen(model):
        _, _, expected = results(model, model, x, 0)
        makes = {"search": SearchModel, "bf16": lambda model: SearchModel(model, "bf16")}
        fast = makes.get(path, lambda model: FoldedModel(model).refresh())(model)
        assert results(fast, model, x, 0)[2] == expected


def test_a_random_network_differs_from_itself():
    model, (x, _) = settled(DIFFERENT["resized by attribute of python"]), images()
    state = model.net.generator.getstate()
    assert difference(model, model, x) == "its forward pass uses a random generator"
    assert model.net.generator.getstate() == state


def test_the_reason_names_the_kind_of_difference():
    model, (x, _) = settled(classifier(TinyNet)), images()
    assert difference(model, model, x) is None
    assert "outputs differ" in difference(model, lambda x: 1.1 * model(x), x)
    assert "gradients differ" in difference(model, lambda x: model(x.detach() + 0.5 * (x - x.detach())), x)
    weights = list(model.parameters())
    assert difference(model, model, x, weights) is None
    assert "by the weights" in difference(model, lambda x: model(x).detach() + 0 * model(x), x, weights)
    assert "size of tensor" in difference(model, lambda x: model(x[:, :2]), x)


def test_global_hooks_prevent_folding():
    model, (x, _) = settled(classifier(TinyNet)), images()
    with nn.modules.module.register_module_forward_hook(HOOKS["forward_hook"]):
        for path in FOLDED.values():
            assert not path(model, x)[1]


def test_in_training_mode_the_model_itself_is_used():
    model, (x, _) = settled(classifier(TinyNet)), images()
    search = SearchModel(model)
    assert not torch.equal(search(x), model(x))
    assert search.folded
    with frozen(model, "train"):
        assert torch.equal(search(x), model(x))


def test_the_reason_is_logged_once_per_model(caplog):
    model, (x, _) = settled(preprocessed("rounded")), images()
    for _ in range(2):
        SearchModel(model)(x)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.name == "lightning_paf.speed.search_model"
    assert "Preprocessed" in record.getMessage()
    assert "autograd function" in record.getMessage()
    FoldedModel(model).refresh()(x)
    assert caplog.records[-1].name == "lightning_paf.speed.folded_model"
    SearchModel(settled(preprocessed("rounded")))(x)
    assert len(caplog.records) == 3
    SearchModel(model, fold=False)(x)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("defence", ["rounded", "detached difference"])
def test_autoattack_is_as_strong_as_the_reference(defence):
    class Defence(nn.Module):
        def forward(self, x):
            return PREPROCESSED[defence](x)

    torch.manual_seed(0)
    net, x = nn.Sequential(Defence(), nn.Flatten(), nn.Linear(192, 4)).eval(), torch.rand(50, 3, 8, 8)
    y = net(x).argmax(1)
    options = {"eps": 0.04, "version": "custom", "attacks": ["apgd-ce"]}
    robust = [cls(**options).run(net, x, y).robust_after["apgd-ce"] for cls in (AutoAttack, ReferenceAutoAttack)]
    assert robust == [6, 6]

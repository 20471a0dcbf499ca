"""Every evaluation checks model and labels once, and keeps the signs of an unreliable result."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import lightning_paf
from lightning_paf.analysis.randomized_smoothing import Smoothing
from lightning_paf.analysis.security_curve import fixed_eps, minimum_norm
from lightning_paf.attacks import APGD, FAB, PGD, AutoAttack, ReferenceAutoAttack
from lightning_paf.attacks.probe import masking_flag, probe
from lightning_paf.evaluation import Evaluation, EvaluationResult, Samples
from lightning_paf.evaluation.checks import Context
from lightning_paf.evaluation.evidence import read
from lightning_paf.evaluation.warm import WarmCheck

# ruff: noqa: NPY002  # the global generators of the user's model
CE = {"version": "custom", "attacks": ["apgd-ce"]}
SHAPE = (3, 4, 4)


class Net(nn.Module):
    """A linear network with another output."""

    def __init__(self, change=lambda z: z, before=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(48, 4)
        self.change, self.before = change, before

    def forward(self, x):
        return self.change(self.fc(self.before(x).flatten(1)))


def data(n=20):
    torch.manual_seed(1)
    x = torch.rand(n, *SHAPE)
    return x, Net()(x).argmax(1)


ENTRIES = {
    "autoattack": lambda model, x, y: AutoAttack(0.01, **CE).run(model, x, y),
    "reference": lambda model, x, y: ReferenceAutoAttack(0.01, **CE).run(model, x, y),
    "evaluate": lambda model, x, y: lightning_paf.evaluate(model, x, y, PGD(0.01, steps=2, step_size=0.01)),
    "evaluation": lambda model, x, y: Evaluation(model, PGD(0.01, steps=2, step_size=0.01), Samples.of(x, y)).run(),
    "warm": lambda model, x, y: WarmCheck(APGD(0.01, steps=2)).run(model, Samples.of(x, y)),
    "curve": lambda model, x, y: fixed_eps(model, Samples.of(x, y), lambda eps: PGD(eps, step_size=eps), [0.01]),
    "minimum norm": lambda model, x, y: minimum_norm(model, Samples.of(x, y), FAB(steps=2), [0.01]),
}
FORMS = {
    "certify": lambda model, x, y: Smoothing(0.1, n0=2, n=4).certify(model, x),
    "sanity check": lambda model, x, y: Context(model, x, y, 0.01),
}
FLAGGED = {
    "softmax": (lambda: Net(lambda z: z.softmax(1)), "softmax-outputs"),
    "rounded": (lambda: Net(lambda z: (10 * z).round() / 10), "zero-gradients"),
    "saturated": (lambda: Net(lambda z: 1e4 * z), "zero-gradients"),
    "detached": (lambda: Net(lambda z: z.detach()), "zero-gradients"),
    "NaN gradient": (lambda: Net(before=lambda x: x + 0 * (x - x).sqrt()), "finite-gradients"),
    "random by torch": (lambda: Net(lambda z: z + torch.rand(())), "random-outputs"),
    "random by numpy": (lambda: Net(lambda z: z if np.random.rand() < 0.5 else 2 * z), "random-outputs"),
    "random by python": (lambda: Net(lambda z: z if random.random() < 0.5 else 2 * z), "random-outputs"),
    "batch statistics": (lambda: Net(lambda z: z - z.mean(0)), "batch-dependence"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FLAGGED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_evaluation_flags_the_same_signs(entry, kind):
    make, name = FLAGGED[kind]
    model, x = make(), data()[0]
    y = model(x).argmax(1).detach()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert name in ENTRIES[entry](model, x, y).flags
    if entry in ("autoattack", "evaluation") and not kind.startswith("random"):
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize("entry", [*ENTRIES, *FORMS])
def test_an_ordinary_model_has_no_flags(entry, recwarn):
    result = (ENTRIES | FORMS)[entry](Net(), *data())
    assert not getattr(result, "flags", {})
    assert not [str(one.message) for one in recwarn if "cannot cross" not in str(one.message)]


class ForcedTrainMode(Net):
    def train(self, mode=True):
        return super().train(True)


def test_a_layer_that_stays_in_train_mode_is_named():
    net = nn.Sequential(ForcedTrainMode(), nn.Identity())
    assert probe(net, *data()).flags == {
        "train-mode": "0 stays in train mode after model.eval(). Results can be random."
    }


REFUSED = {
    "tuple": (Net(lambda z: (z, z)), "must return logits, or an object with `.logits`, got tuple"),
    "dict": (Net(lambda z: {"out": z}), "got dict"),
    "one logit": (Net(lambda z: z[:, :1]), r"at least two, got torch.float32 of shape \(8, 1\). Return \(0, z\)"),
    "vector": (Net(lambda z: z[:, 0]), r"of shape \(8,\)"),
    "float64": (Net().double(), r"must accept float32 images of shape \(8, 3, 4, 4\), got the error.*model.float\(\)"),
    "in place": (Net(before=lambda x: x.sub_(0.5).div_(0.25)), "must not change its images in place"),
    "in place without a gradient": (Net(before=lambda x: x.detach().sub_(0.5)), "must not change its images in place"),
    "function": (lambda x: x.flatten(1), "must be an nn.Module, got function"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("entry", [*ENTRIES, *FORMS])
def test_other_outputs_are_refused_by_one_sentence(entry, kind):
    model, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        (ENTRIES | FORMS)[entry](model, *data())


@pytest.mark.parametrize("entry", [*ENTRIES, *FORMS])
def test_an_object_with_logits_is_accepted(entry):
    result = (ENTRIES | FORMS)[entry](Net(lambda z: SimpleNamespace(logits=z, loss=None)), *data())
    assert not getattr(result, "flags", {})


LABELS = {
    "too large": lambda y: y + 7,
    "negative": lambda y: y - 5,
    "int32": lambda y: y.int(),
    "column": lambda y: y[:, None],
    "one-hot": lambda y: nn.functional.one_hot(y, 4),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("entry", [*ENTRIES, "sanity check"])
def test_labels_are_refused_by_one_sentence(entry, kind):
    x, y = data()
    with pytest.raises(ValueError, match=r"y must be class labels"):
        (ENTRIES | FORMS)[entry](Net(), x, LABELS[kind](y))


def test_a_label_in_the_last_block_is_refused_before_the_first():
    x, y = data()
    y[-1] = 9
    lines = []
    with pytest.raises(ValueError, match="to 9"):
        lightning_paf.evaluate(Net(), x, y, PGD(0.01), block_size=5, progress=lines.append)
    assert not lines


@pytest.mark.filterwarnings("ignore")
def test_flags_are_in_result_evidence_and_report(tmp_path):
    model, x = Net(lambda z: (10 * z).round() / 10), data()[0]
    y = model(x).argmax(1).detach()
    attack = AutoAttack(0.3, version="custom", attacks=["apgd-ce", "square"])
    result = lightning_paf.evaluate(model, x, y, attack, tmp_path, name="aa")
    assert set(result.flags) == {"zero-gradients", "black-box"}
    assert EvaluationResult.load(next(tmp_path.glob("*.json"))).flags == result.flags
    assert read(next(tmp_path.glob("*.safetensors"))).metadata["flags"] == result.flags
    assert "were fooled only by Square" in next(tmp_path.glob("*.html")).read_text()
    again = lightning_paf.evaluate(model, x, y, attack, tmp_path, name="aa")
    assert again.flags == result.flags, "also of recorded results"


def test_square_is_flagged_only_after_gradient_attacks():
    assert not masking_flag({"clean": 100, "square": 20}, 100)
    assert not masking_flag({"clean": 100, "apgd-ce": 50, "square": 49}, 100)
    assert "30 were fooled only" in masking_flag({"clean": 100, "apgd-ce": 50, "square": 20}, 100)["black-box"]


@pytest.mark.parametrize("shape", [(20,), (2, 10), (1, 2, 3, 4)])
def test_vectors_and_volumes_work_except_in_square(shape):
    x = torch.rand(4, *shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 5))
    y = net(x).argmax(1)
    assert AutoAttack(0.05, version="custom", attacks=["apgd-ce", "fab-t"]).run(net, x, y).robust_after["clean"] == 4
    with pytest.raises(ValueError, match=r"must have the shape \(N, C, H, W\) for Square"):
        AutoAttack(1e-6, version="custom", attacks=["square"]).run(net, x, y)

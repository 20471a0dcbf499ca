import logging
import random
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from lightning_paf.attacks import ReferenceAutoAttack, reference_autoattack

pytestmark = pytest.mark.usefixtures("short_budgets")

CHEAP = {"version": "custom", "attacks": ["apgd-ce", "fab-t"]}


def network(classes=5, side=4):
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 8), nn.SiLU(), nn.Linear(8, classes))
    net[3].bias.data -= net(torch.full((1, 1, side, side), 0.5)).detach()[0]
    return net


def batch(net, n=12, side=4):
    x = torch.rand(n, 1, side, side)
    return x, net(x).argmax(1).detach()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_equals_the_packages_own_standard_evaluation(norm):
    # Running the attacks one by one, to count after each, must change nothing.
    import pyautoattack

    net = network(12, side=5)
    x, y = batch(net, 10, side=5)
    eps = {"linf": 0.03, "l2": 0.1, "l1": 0.3}[norm]
    result = ReferenceAutoAttack(eps, norm=norm, seed=3, batch_size=4).run(net, x, y)
    package = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    theirs, _ = pyautoattack.AutoAttack(net, norm=package, eps=eps, seed=3).run_standard_evaluation(x, y, batch_size=4)
    assert torch.equal(result.x_adv, theirs)
    assert 0 < result.robust.sum() < 10
    assert result.robust.sum() == result.robust_after["square"]


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10])
def test_any_number_of_classes(classes):
    net = network(classes)
    x, y = batch(net)
    fits = ["apgd-ce", "fab", "fab-t"] + ["apgd-dlr"] * (classes >= 3) + ["apgd-t"] * (classes >= 4)
    result = ReferenceAutoAttack(0.05, version="custom", attacks=fits).run(net, x, y)
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            2,
            {},
            r"at least 4 classes for apgd-t of ReferenceAutoAttack, got 2 outputs.*attacks=\[apgd-ce, fab-t, square\]",
        ),
        (3, {}, "at least 4 classes for apgd-t of ReferenceAutoAttack, got 3"),
        (2, {"version": "rand"}, "at least 3 classes for apgd-dlr of ReferenceAutoAttack"),
        (
            5,
            {"norm": "l2", "eps": 0.1},
            "at least 5 x 5 for Square in l2, got 4 x 4",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_remedy(classes, options, message):
    net = network(classes)
    with pytest.raises(ValueError, match=message):
        ReferenceAutoAttack(**options)(net, *batch(net))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_odd_batches(n):
    net = network()
    x, y = batch(net, n)
    result = ReferenceAutoAttack(0.1, batch_size=2, **CHEAP).run(net, x, y)
    assert result.x_adv.shape == x.shape
    assert result.robust_after["clean"] == n


def test_misclassified_images_are_returned_as_they_are():
    net = network()
    x, y = batch(net, 3)
    wrong = (y + 1) % 5
    result = ReferenceAutoAttack(**CHEAP).run(net, x, wrong)
    assert torch.equal(result.x_adv, x)
    assert dict(result.robust_after) == {"clean": 0}
    assert not result.robust.any()


def test_images_come_back_changed_only_where_the_attack_succeeds():
    net = network()
    x, y = batch(net, 30)
    result = ReferenceAutoAttack(0.05, **CHEAP).run(net, x, y)
    changed = (result.x_adv != x).flatten(1).any(1)
    assert 0 < changed.sum() < 30
    assert torch.equal(changed, ~result.robust)


def test_global_state_is_left_as_found():
    net = network()
    x, y = batch(net)

    def trace(*_):
        return None

    before = sys.gettrace()
    state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        sys.settrace(trace)
        ReferenceAutoAttack(0.05, **CHEAP)(net, x, y)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state[1]).all()  # noqa: NPY002


def test_global_state_is_left_as_found_when_the_model_fails():
    net = network()
    x, y = batch(net)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 12:  # inside the package, after it has seeded the generators
            raise RuntimeError("lost the device")

    net.register_forward_hook(fail)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="lost the device"):
        ReferenceAutoAttack(0.05, **CHEAP)(net, x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_decides():
    net = network()
    x, y = batch(net, 30)
    results = [ReferenceAutoAttack(0.2, norm="l2", seed=seed, **CHEAP)(net, x, y) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_runs_in_single_precision_inside_autocast():
    net = network()
    x, y = batch(net)
    dtypes = set()
    net[3].register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        ReferenceAutoAttack(0.05, **CHEAP)(net, x, y)
        assert torch.is_autocast_enabled("cpu")
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_refused(dtype):
    net = network().to(dtype)
    with pytest.raises(ValueError, match="must be float32"):
        ReferenceAutoAttack(**CHEAP)(net, torch.rand(2, 1, 4, 4, dtype=dtype), torch.tensor([0, 1]))


def test_channels_last_images():
    # The package's zero-gradient check calls `view` on a gradient laid out like the images.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).to(memory_format=torch.channels_last)
    x = torch.rand(6, 3, 4, 4)
    y = net(x).argmax(1).detach()
    attack = ReferenceAutoAttack(version="custom", attacks=["apgd-t", "apgd-dlr"])
    torch.testing.assert_close(attack(net, x.to(memory_format=torch.channels_last), y), attack(net, x, y))


def test_a_model_that_keeps_its_logits_is_not_corrupted():
    # Square writes -inf into the logits it is given.

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.kept = []

        def forward(self, x):
            self.kept.append(self.net(x))
            return self.kept[-1]

    model = Keeps()
    x, y = batch(model.net, 4)
    ReferenceAutoAttack(0.01, version="custom", attacks=["square"])(model, x, y)
    assert len(model.kept) > 20
    assert all(logits.isfinite().all() for logits in model.kept)


def test_progress_is_logged(caplog):
    net = network()
    x, y = batch(net)
    with caplog.at_level(logging.INFO, logger="lightning_paf.attacks.reference_autoattack"):
        result = ReferenceAutoAttack(0.05, **CHEAP).run(net, x, y)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lightning_paf")]
    assert lines[0].startswith(f"apgd-ce: robust {result.robust_after['apgd-ce']}/12 (")
    assert lines[1].startswith(f"fab-t: robust {result.robust_after['fab-t']}/12 (")


def test_masked_gradients_are_pointed_out(caplog):
    class Masked(nn.Module):
        """Rounds its input: no gradient gets through, though the decision is easily changed."""

        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net((x * 50).round() / 50)

    model = Masked()
    x, y = batch(model.net, 20)
    y = model(x).argmax(1).detach()
    result = ReferenceAutoAttack(0.1, version="custom", attacks=["apgd-ce", "square"]).run(model, x, y)
    assert result.robust_after["apgd-ce"] > result.robust_after["square"] + 1
    assert "gradients may be masked" in caplog.text


class FakeUpstream:
    """The names of the git release: positional norm, `bs`, a bare tensor as result."""

    calls = types.SimpleNamespace()

    def __init__(
        self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(), version="standard", device="cuda"
    ):
        self.calls.made = {
            "norm": norm,
            "eps": eps,
            "seed": seed,
            "verbose": verbose,
            "version": version,
            "device": str(device),
        }
        self.calls.runs = []
        self.model = model
        self.attacks_to_run = list(attacks_to_run)
        self.apgd_targeted = types.SimpleNamespace(n_target_classes=9)
        self.fab = types.SimpleNamespace(n_target_classes=9)

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False, state_path=None):
        self.calls.runs.append((self.attacks_to_run, len(x_orig), bs))
        self.calls.targets = (self.apgd_targeted.n_target_classes, self.fab.n_target_classes)
        return (x_orig + 0.2).clamp(0, 1)


def test_upstream_release_is_accepted(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", types.SimpleNamespace(AutoAttack=FakeUpstream))
    net = network()
    x, y = batch(net, 30)
    result = ReferenceAutoAttack(0.2, seed=5, batch_size=7).run(net, x, y)
    assert FakeUpstream.calls.made == {
        "norm": "Linf", "eps": 0.2, "seed": 5, "verbose": False, "version": "standard", "device": "cpu"
    }  # fmt: skip
    after = list(result.robust_after.values())
    assert FakeUpstream.calls.runs[0] == (["apgd-ce"], 30, 7)
    assert FakeUpstream.calls.runs[1] == (["apgd-t"], after[1], 7)
    assert FakeUpstream.calls.targets == (4, 4)
    assert torch.equal(result.robust, net((x + 0.2).clamp(0, 1)).argmax(1) == y)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    net = network()
    with pytest.raises(ModuleNotFoundError, match="pip install pyautoattack"):
        ReferenceAutoAttack(**CHEAP)(net, *batch(net))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "plus"}, "version must be one of standard, rand, custom"),
        ({"version": "custom"}, "attacks must be listed with version=custom"),
        ({"attacks": ["square"]}, "attacks must be listed with version=custom"),
        ({"version": "custom", "attacks": ["pgd"]}, "attacks must be among apgd-ce, .*, got pgd"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eps": 8}, "eps must be at most 1 times the pixel range in linf, got 8"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ReferenceAutoAttack(**options)


def test_description():
    described = ReferenceAutoAttack().describe()
    assert described["attacks"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert described["version"] == "standard"
    assert described["package"].startswith("pyautoattack 0.")
    assert "loss" not in described
    assert reference_autoattack.log.name == "lightning_paf.attacks.reference_autoattack"


def test_randomised_defences():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x + 0.01 * torch.randn_like(x))

    model = Noisy()
    x, y = batch(model.net, 4)
    result = ReferenceAutoAttack(0.3, version="rand").run(model, x, y)
    assert set(result.robust_after) <= {"clean", "apgd-ce", "apgd-dlr"}
    assert result.robust.sum() < 4

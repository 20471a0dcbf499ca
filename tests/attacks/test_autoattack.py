"""The two ensembles: `AutoAttack`, and `ReferenceAutoAttack`, which runs the published package."""

import logging
import random
import sys
import types
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.digits_net import Recorder, digits
from torch import nn

from lightning_paf.attacks import APGD, FAB, PGD, AutoAttack, ReferenceAutoAttack, Square, WorstOf
from lightning_paf.nets import LTNODE

pytestmark = pytest.mark.usefixtures("short_budgets")

CHEAP = {"version": "custom", "attacks": ["apgd-ce"]}
BOTH = [AutoAttack, ReferenceAutoAttack]
both = pytest.mark.parametrize("ensemble", BOTH)


def network(classes=5, side=4):
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 8), nn.SiLU(), nn.Linear(8, classes))
    net[3].bias.data -= net(torch.full((1, 1, side, side), 0.5)).detach()[0]
    return net


def batch(net, n=12, side=4):
    x = torch.rand(n, 1, side, side)
    return x, net(x).argmax(1).detach()


def problem(n=12, **options):
    net = network(**options)
    return net, *batch(net, n, options.get("side", 4))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_reference_equals_the_packages_own_standard_evaluation(norm):
    # Running the attacks one by one, to count after each, must change nothing.
    import pyautoattack

    net, x, y = problem(6, classes=12, side=5)
    eps = {"linf": 0.03, "l2": 0.1, "l1": 0.3}[norm]
    result = ReferenceAutoAttack(eps, norm=norm, seed=3, batch_size=4).run(net, x, y)
    package = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    theirs, _ = pyautoattack.AutoAttack(net, norm=package, eps=eps, seed=3).run_standard_evaluation(x, y, batch_size=4)
    assert torch.equal(result.x_adv, theirs)
    assert 0 < result.robust.sum() < 6
    assert list(result.robust_after) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(result.robust_after.values()) == sorted(result.robust_after.values(), reverse=True)
    assert result.robust_after["clean"] == 6
    assert result.robust.sum() == result.robust_after["square"]


def test_standard_runs_the_published_attacks_with_their_budgets():
    ce, targeted, fab, square = sub_attacks = AutoAttack(0.5, norm="l2", batch_size=30).sub_attacks()
    assert [attack.label for attack in sub_attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert {(attack.eps, attack.norm, attack.batch_size) for attack in sub_attacks} == {(0.5, "l2", 30)}
    assert isinstance(ce, APGD)
    assert (ce.steps, ce.restarts, ce.search_loss) == (100, 1, "ce")
    assert (targeted.steps, targeted.restarts, targeted.targets, targeted.search_loss) == (100, 1, 9, "dlr-targeted")
    assert isinstance(fab, FAB)
    assert (fab.steps, fab.targets) == (100, 9)
    assert isinstance(square, Square)
    assert square.queries == 5000


@both
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_any_number_of_classes(ensemble, classes):
    net, x, y = problem(classes=classes)
    fits = ["apgd-ce", "fab-t"] + ["apgd-dlr"] * (classes >= 3) + ["apgd-t"] * (classes >= 4)
    fits += ["fab"] * (ensemble is ReferenceAutoAttack)
    result = ensemble(0.05, version="custom", attacks=fits).run(net, x, y)
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)


@both
@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (2, {"version": "custom", "attacks": ["apgd-dlr"]}, "at least 3 classes for apgd-dlr of {}"),
        (1, {}, r"shape \(8, classes\), at least two, got .* of shape \(8, 1\)"),
        (5, {"norm": "l2", "eps": 0.1}, "at least 5 x 5 for Square in l2, got 4 x 4"),
    ],
)
def test_models_and_images_that_do_not_fit_are_rejected(ensemble, classes, options, message):
    with pytest.raises(ValueError, match=message.format(ensemble.__name__)):
        ensemble(**options)(*problem(classes=classes))


@both
@pytest.mark.parametrize(
    ("classes", "runs", "left_out"),
    [
        (2, ["apgd-ce", "fab-t", "square"], ["apgd-t"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"], ["apgd-t"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"], None),
    ],
)
def test_standard_leaves_out_losses_that_need_more_classes(ensemble, classes, runs, left_out):
    attack = ensemble(0.02)
    with warnings.catch_warnings(record=True) as caught:
        fitted = attack.for_classes(classes).describe()
        result = attack.run(*problem(3, classes=classes))
    assert (fitted["attacks"], fitted.get("left_out")) == (runs, left_out)
    assert [*result.robust_after] == ["clean", *runs][: len(result.robust_after)]
    assert bool(caught) == bool(left_out)
    assert attack.describe()["attacks"][1] == "apgd-t"


def test_all_attacks_of_an_ensemble_of_ensembles_fit_the_classes():
    both_attacks = WorstOf([AutoAttack(0.1), PGD(0.1)])
    with pytest.warns(UserWarning, match="AutoAttack leaves out apgd-t.* 2 classes, and runs apgd-ce, fab-t, square"):
        fitted = both_attacks.for_classes(2)
    assert [attack.label for attack in fitted.sub_attacks()] == ["apgd-ce", "fab-t", "square", "pgd"]


@both
@pytest.mark.parametrize("n", [1, 5])
def test_incomplete_batches(ensemble, n):
    net, x, y = problem(n)
    result = ensemble(0.1, batch_size=2, version="custom", attacks=["apgd-ce", "fab-t"]).run(net, x, y)
    assert result.x_adv.shape == x.shape
    assert result.robust_after["clean"] == n


@both
def test_misclassified_images_are_returned_unchanged(ensemble):
    net, x, y = problem(3)
    result = ensemble(**CHEAP).run(net, x, (y + 1) % 5)
    assert torch.equal(result.x_adv, x)
    assert dict(result.robust_after) == {"clean": 0}
    assert not result.robust.any()


@both
def test_images_change_only_where_the_attack_succeeds(ensemble):
    net, x, y = problem(30)
    result = ensemble(0.05, **CHEAP).run(net, x, y)
    changed = (result.x_adv != x).flatten(1).any(1)
    assert 0 < changed.sum() < 30
    assert torch.equal(changed, ~result.robust)


def test_fooled_images_are_not_attacked_again():
    net, x, y = digits(30)
    counts = [Recorder(net), Recorder(net)]
    after_one = AutoAttack(0.1, fold=False, **CHEAP).run(counts[0], x, y).robust.sum()
    attacks = ["apgd-ce", "apgd-dlr"]
    robust = AutoAttack(0.1, fold=False, version="custom", attacks=attacks).run(counts[1], x, y).robust.sum()
    assert 0 < robust <= after_one < 30
    fooled = after_one - robust
    passes = counts[1].seen - counts[0].seen - 2 * fooled  # confirmed by the search and by the ensemble
    assert robust * 101 <= passes <= after_one * 101


def test_bf16_search_confirms_every_success():
    net, x, y = digits(30)
    result = AutoAttack(0.55, norm="l2", search_precision="bf16", **CHEAP).run(net, x, y)
    exact = AutoAttack(0.55, norm="l2", **CHEAP).run(net, x, y)
    assert 5 < exact.robust.sum() < 25
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)
    assert (result.robust ^ exact.robust).sum() <= 2
    assert not torch.equal(result.x_adv, exact.x_adv)


@pytest.mark.parametrize(("fast", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_search_with_the_precision_of_the_device(monkeypatch, fast, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    net, x, y = digits(30)
    found, expected = (
        AutoAttack(0.55, norm="l2", search_precision=name, **CHEAP).run(net, x, y) for name in ("auto", precision)
    )
    assert torch.equal(found.x_adv, expected.x_adv)


@both
@pytest.mark.parametrize("fails", [False, True])
def test_global_state_is_restored_even_if_the_model_fails(ensemble, fails):
    net, x, y = problem()
    calls = []

    def hook(*_):
        calls.append(1)
        if fails and len(calls) == 12:  # inside the package, after it has seeded the generators
            raise RuntimeError("lost the device")

    def trace(*_):
        return None

    net.register_forward_hook(hook)  # also prevents folding
    trace_before, torch_state = sys.gettrace(), torch.get_rng_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    sys.settrace(trace)
    try:
        with pytest.raises(RuntimeError, match="lost the device") if fails else nullcontext():
            ensemble(0.05, **CHEAP)(net, x, y)
    finally:
        trace_after = sys.gettrace()
        sys.settrace(trace_before)
    assert trace_after is trace
    assert len(calls) >= 12
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state[1]).all()  # noqa: NPY002


@both
def test_seed_determines_the_result(ensemble):
    net, x, y = problem(30)
    results = [ensemble(0.2, norm="l2", seed=seed, **CHEAP)(net, x, y) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@both
def test_runs_in_single_precision_under_autocast(ensemble):
    net, x, y = problem()
    dtypes = set()
    net[3].register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        ensemble(0.05, **CHEAP)(net, x, y)
        assert torch.is_autocast_enabled("cpu")
    assert dtypes == {torch.float32}


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_rejected(ensemble, dtype):
    with pytest.raises(ValueError, match="must be float32"):
        ensemble(**CHEAP)(network().to(dtype), torch.rand(2, 1, 4, 4, dtype=dtype), torch.tensor([0, 1]))


@both
def test_channels_last_images(ensemble):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).to(memory_format=torch.channels_last)
    x = torch.rand(6, 3, 4, 4)
    y = net(x).argmax(1).detach()
    attack = ensemble(0.01, version="custom", attacks=["apgd-t", "apgd-dlr"])
    torch.testing.assert_close(attack(net, x.to(memory_format=torch.channels_last), y), attack(net, x, y))


@both
def test_logits_that_the_model_keeps_are_not_overwritten(ensemble):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.kept = network(), []

        def forward(self, x):
            self.kept.append(self.net(x))
            return self.kept[-1]

    model = Keeps()
    attack = ensemble(0.01, version="custom", attacks=["square" if ensemble is ReferenceAutoAttack else "apgd-ce"])
    for _ in range(2):
        attack(model, *batch(model.net, 4))
    assert len(model.kept) > 20
    assert all(logits.isfinite().all() for logits in model.kept)


@both
def test_progress_is_logged(ensemble, caplog):
    with caplog.at_level(logging.INFO, logger="lightning_paf.attacks.autoattack"):
        result = ensemble(0.05, version="custom", attacks=["apgd-ce", "fab-t"]).run(*problem())
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lightning_paf")]
    for line, name in zip(lines, ("apgd-ce", "fab-t"), strict=True):
        assert line.startswith(f"{name}: robust {result.robust_after[name]}/12 (")


class Masked(nn.Module):
    """Rounds its input: the gradient is zero, but the decision is easily changed."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net((x * 50).round() / 50)


@both
def test_masked_gradients_raise_a_warning(ensemble):
    model = Masked()
    x, y = batch(model, 20)
    attack = ensemble(0.1, version="custom", attacks=["apgd-ce", "square"])
    with pytest.warns(UserWarning, match="gradients may be masked"):
        result = attack.run(model, x, y)
    assert set(result.flags) == {"zero-gradients", "black-box"}
    assert result.robust_after["apgd-ce"] > result.robust_after["square"] + 1


class FakeUpstream:
    """The names of the git release: positional norm, `bs`, a bare tensor as result."""

    calls = types.SimpleNamespace()

    def __init__(
        self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(), version="standard", device="cuda"
    ):
        self.calls.settings = (norm, eps, seed, verbose, version, str(device))
        self.calls.runs = []
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
    net, x, y = problem(30)
    result = ReferenceAutoAttack(0.2, seed=5, batch_size=7).run(net, x, y)
    assert FakeUpstream.calls.settings == ("Linf", 0.2, 5, False, "standard", "cpu")
    assert FakeUpstream.calls.runs[0] == (["apgd-ce"], 30, 7)
    assert FakeUpstream.calls.runs[1] == (["apgd-t"], result.robust_after["apgd-ce"], 7)
    assert FakeUpstream.calls.targets == (4, 4)
    assert torch.equal(result.robust, net((x + 0.2).clamp(0, 1)).argmax(1) == y)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyautoattack"):
        ReferenceAutoAttack(**CHEAP)(*problem())


def test_reference_attacks_randomised_defences():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x + 0.01 * torch.randn_like(x))

    model = Noisy()
    result = ReferenceAutoAttack(0.3, version="rand").run(model, *batch(model.net, 4))
    assert set(result.robust_after) <= {"clean", "apgd-ce", "apgd-dlr"}
    assert result.robust.sum() < 4


def test_rand_averages_the_gradients_of_lt_node_over_its_end_times():
    torch.manual_seed(2)
    sizes = {"width": 4, "groups": 2, "downsamplings": 0, "samples": 2, "t_end": 2.0, "step": 2.0, "solver": "euler"}
    net = LTNODE(4, **sizes, random=True).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter) if parameter.dim() > 1 else None
    x = torch.rand(2, 1, 5, 5)
    y = net(x).argmax(1)
    assert not torch.equal(net(x), net(x))
    passes = []
    net.stem[0].register_full_backward_hook(lambda *_: passes.append(1))
    result = ReferenceAutoAttack(0.3, version="rand").run(net, x, y)
    assert result.robust.sum() < 2
    assert (result.x_adv - x).abs().max() <= 0.3 + 1e-6
    attacks = len(result.robust_after) - 1  # without clean; none is left after the last image is fooled
    assert len(passes) >= 20 * 10 * attacks  # for each step

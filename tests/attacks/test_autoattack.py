import logging
import random

import numpy as np
import pytest
import torch
from helpers.digits_net import trained
from torch import nn

from lightning_paf.attacks import APGD, FAB, AutoAttack, ReferenceAutoAttack, Square

CHEAP = {"version": "custom", "attacks": ["apgd-ce"]}


def network(classes=5, side=4):
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 8), nn.SiLU(), nn.Linear(8, classes))
    net[3].bias.data -= net(torch.full((1, 1, side, side), 0.5)).detach()[0]
    return net


def batch(net, n=12, side=4):
    x = torch.rand(n, 1, side, side)
    return x, net(x).argmax(1).detach()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.6)])
def test_survivors_are_those_of_the_package(norm, eps):
    net, x, y = trained()
    x, y = x[:24], y[:24]
    options = {"norm": norm, "version": "custom", "attacks": ["apgd-ce", "apgd-dlr"]}
    ours, again = (AutoAttack(eps, seed=seed, **options).run(net, x, y).robust for seed in (0, 1))
    theirs = ReferenceAutoAttack(eps, **options).run(net, x, y).robust
    assert 4 < theirs.sum() < 20
    assert (ours & again & ~theirs).sum() <= 1
    assert (theirs & ~ours & ~again).sum() <= 1


def test_standard_runs_the_published_attacks_with_their_budgets():
    ce, targeted, fab, square = AutoAttack(0.5, norm="l2", batch_size=30).sub_attacks()
    assert [stage.label for stage in (ce, targeted, fab, square)] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert {stage.eps for stage in (ce, targeted, fab, square)} == {0.5}
    assert {stage.norm for stage in (ce, targeted, fab, square)} == {"l2"}
    assert {stage.batch_size for stage in (ce, targeted, fab, square)} == {30}
    assert isinstance(ce, APGD)
    assert (ce.steps, ce.restarts, ce.search_loss) == (100, 1, "ce")
    assert (targeted.steps, targeted.restarts, targeted.targets, targeted.search_loss) == (100, 1, 9, "dlr-targeted")
    assert isinstance(fab, FAB)
    assert (fab.steps, fab.targets) == (100, 9)
    assert isinstance(square, Square)
    assert square.queries == 5000


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10])
def test_any_number_of_classes(classes):
    net = network(classes)
    x, y = batch(net)
    fits = ["apgd-ce", "fab-t"] + ["apgd-dlr"] * (classes >= 3) + ["apgd-t"] * (classes >= 4)
    result = AutoAttack(0.05, version="custom", attacks=fits).run(net, x, y)
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (
            2,
            {},
            r"at least 4 classes for apgd-t of AutoAttack, got 2 outputs.*attacks=\[apgd-ce, fab-t, square\]",
        ),
        (3, {}, "at least 4 classes for apgd-t of AutoAttack, got 3"),
        (2, {"version": "custom", "attacks": ["apgd-dlr"]}, "at least 3 classes for apgd-dlr of AutoAttack"),
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
        AutoAttack(**options)(net, *batch(net))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_odd_batches(n):
    net = network()
    x, y = batch(net, n)
    result = AutoAttack(0.1, batch_size=2, version="custom", attacks=["apgd-ce", "fab-t"]).run(net, x, y)
    assert result.x_adv.shape == x.shape
    assert result.robust_after["clean"] == n


def test_misclassified_images_are_returned_as_they_are():
    net = network()
    x, y = batch(net, 3)
    wrong = (y + 1) % 5
    result = AutoAttack().run(net, x, wrong)
    assert torch.equal(result.x_adv, x)
    assert dict(result.robust_after) == {"clean": 0}
    assert not result.robust.any()


def test_images_come_back_changed_only_where_the_attack_succeeds():
    net = network()
    x, y = batch(net, 30)
    result = AutoAttack(0.05, **CHEAP).run(net, x, y)
    changed = (result.x_adv != x).flatten(1).any(1)
    assert 0 < changed.sum() < 30
    assert torch.equal(changed, ~result.robust)


def test_broken_images_are_not_attacked_by_the_next_stage():
    net, x, y = trained()
    x, y = x[:30], y[:30]
    result = AutoAttack(0.1, version="custom", attacks=["apgd-ce", "apgd-dlr"]).run(net, x, y)
    left, robust = result.robust_after["apgd-ce"], result.robust_after["apgd-dlr"]
    assert 0 < left < 30
    passes = result.passes["apgd-dlr"]
    assert robust * 101 <= passes.forward <= left * 101 + (left - robust)
    assert passes.exact == 2 * (left - robust)  # confirmed by the search and by the verdict
    assert result.passes["clean"].exact == 30
    assert list(result.seconds) == list(result.passes) == list(result.robust_after)
    assert min(result.seconds.values()) > 0


def test_bf16_search_confirms_every_success():
    net, x, y = trained()
    x, y = x[:30], y[:30]
    result = AutoAttack(0.55, norm="l2", search_precision="bf16", **CHEAP).run(net, x, y)
    exact = AutoAttack(0.55, norm="l2", **CHEAP).run(net, x, y)
    assert 5 < exact.robust.sum() < 25
    assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)
    assert (result.robust ^ exact.robust).sum() <= 2
    assert not torch.equal(result.x_adv, exact.x_adv)


def test_random_generators_are_left_as_found():
    net = network()
    x, y = batch(net)
    state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    AutoAttack(0.05, **CHEAP)(net, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state[1]).all()  # noqa: NPY002


def test_random_generators_are_left_as_found_when_the_model_fails():
    net = network()
    x, y = batch(net)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError("lost the device")

    net.register_forward_hook(fail)  # also keeps the fast path on the model itself
    net.kept = torch.ones(1, requires_grad=True) * 2
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="lost the device"):
        AutoAttack(0.05, **CHEAP)(net, x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_decides():
    net = network()
    x, y = batch(net, 30)
    results = [AutoAttack(0.2, norm="l2", seed=seed, **CHEAP)(net, x, y) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_runs_in_single_precision_inside_autocast():
    net = network()
    x, y = batch(net)
    dtypes = set()
    net[3].register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        AutoAttack(0.05, **CHEAP)(net, x, y)
        assert torch.is_autocast_enabled("cpu")
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_refused(dtype):
    net = network().to(dtype)
    with pytest.raises(ValueError, match="must be float32"):
        AutoAttack(**CHEAP)(net, torch.rand(2, 1, 4, 4, dtype=dtype), torch.tensor([0, 1]))


def test_channels_last_images():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    x = torch.rand(6, 3, 4, 4)
    y = net(x).argmax(1).detach()
    attack = AutoAttack(0.01, version="custom", attacks=["apgd-t", "apgd-dlr"])
    torch.testing.assert_close(attack(net, x.to(memory_format=torch.channels_last), y), attack(net, x, y))


def test_a_model_that_keeps_its_logits():
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
    AutoAttack(0.01, **CHEAP)(model, x, y)
    AutoAttack(0.01, **CHEAP)(model, x, y)
    assert len(model.kept) > 4
    assert all(logits.isfinite().all() for logits in model.kept)


def test_progress_is_logged(caplog):
    net = network()
    x, y = batch(net)
    with caplog.at_level(logging.INFO, logger="lightning_paf.attacks.autoattack"):
        result = AutoAttack(0.05, version="custom", attacks=["apgd-ce", "fab-t"]).run(net, x, y)
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
    result = AutoAttack(0.1, version="custom", attacks=["apgd-ce", "square"]).run(model, x, y)
    assert result.robust_after["apgd-ce"] > result.robust_after["square"] + 1
    assert "gradients may be masked" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "Pass ReferenceAutoAttack for l1"),
        ({"version": "rand"}, "version must be one of standard, custom, got 'rand'. Pass ReferenceAutoAttack"),
        ({"version": "custom"}, "attacks must be listed with version=custom"),
        ({"attacks": ["square"]}, "attacks must be listed with version=custom"),
        ({"version": "custom", "attacks": ["fab"]}, "attacks must be among apgd-ce, .*, got fab"),
        ({"version": "custom", "attacks": ["square", "square"]}, "must not hold one twice"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"search_precision": "fp16"}, "search_precision must be fp32 or bf16"),
        ({"eps": 8}, "eps must be at most 1 times the pixel range in linf, got 8"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(**options)


def test_description():
    described = AutoAttack(seed=3, search_precision="bf16").describe()
    assert described["attacks"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert described["version"] == "standard"
    assert not {"seed", "search_precision"} & described.keys(), "settings of the evaluation"
    assert "loss" not in described

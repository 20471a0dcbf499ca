"""Steady-state penalty of ODE networks."""

import pytest
import torch
from helpers.cli_runs import built
from helpers.fakes import images, spec, tiny_classifier
from helpers.training import ATTACK

from lightning_paf.nets import LastStageODE, ODENet, TisODENet, WideResNet
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import TRADES, AdversarialCE, Natural, SteadyState


def model(cls=TisODENet, **options):
    torch.manual_seed(0)
    return Classifier(cls(in_channels=3, width=4, groups=2, **options), spec()).train()


def step(objective, classifier, epoch=5):
    objective.bind(classifier)
    objective.on_epoch_start(epoch, 0.5)
    torch.manual_seed(1)
    return objective(classifier, *images(), ATTACK)


@pytest.mark.parametrize("window", [(0.9, 1.5), (1.0, 2.0)])
def test_the_term_is_the_mean_difference_of_states(window):
    classifier = model()
    block, net = classifier.net.block, classifier.net
    x = (images()[0] - classifier.mean) / classifier.std
    begin, end = (block.states(net.stem(x), [time])[0] for time in window)
    expected = (end - begin).mean()
    result = step(SteadyState(weight=0.5, window=window), classifier)
    plain = step(Natural(), classifier)
    torch.testing.assert_close(result.logs["steady_state"], expected.detach())
    torch.testing.assert_close(result.loss, plain.loss + 0.5 * expected)
    torch.testing.assert_close(result.logits, plain.logits)


@pytest.mark.parametrize("epoch", range(7))
def test_the_first_five_epochs_are_without_the_term(epoch):
    result = step(SteadyState(), model(), epoch)
    assert ("steady_state" in result.logs) == (epoch >= 5)


def test_weight_zero_is_the_objective_bit_for_bit():
    assert torch.equal(step(SteadyState(weight=0), model()).loss, step(Natural(), model()).loss)


@pytest.mark.parametrize(("inner", "passes"), [(Natural, 1), (AdversarialCE, 1), (TRADES, 2)])
def test_it_measures_the_passes_that_train(inner, passes, monkeypatch):
    lengths = []
    original = ODEBlock.path_length

    def counted(self, *args):
        found = original(self, *args)
        lengths.append(found[1].mean())
        return found

    monkeypatch.setattr(ODEBlock, "path_length", counted)
    classifier = model(step=0.5)
    result = step(SteadyState(inner(), window=(0.5, 1.5)), classifier)
    assert len(lengths) == passes
    torch.testing.assert_close(result.logs["steady_state"], torch.stack(lengths).mean().detach())
    result.loss.backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_a_training_step_reduces_the_term():
    classifier, objective = model(), SteadyState(weight=10.0)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.05)
    terms = []
    for _ in range(10):
        result = step(objective, classifier)
        terms.append(result.logs["steady_state"])
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert terms[-1] < 0.5 * terms[0]


def test_other_ode_networks_have_the_term_too():
    net = LastStageODE(WideResNet(depth=10, width=1), groups=4)
    for classifier in (model(ODENet), Classifier(net, spec()).train()):
        assert step(SteadyState(), classifier).logs["steady_state"] > 0


def test_a_network_without_ode_block_is_refused():
    with pytest.raises(ValueError, match=r"must have an ODE block for SteadyState, got TinyNet"):
        SteadyState().bind(tiny_classifier())


def test_a_window_off_the_grid_is_refused_when_the_objective_is_bound():
    with pytest.raises(ValueError, match=r"window times t_end must be a multiple of the step 0\.2, got 0\.9"):
        SteadyState().bind(model(step=0.2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be finite and >= 0, got -1"),
        ({"window": (1.1, 1.5)}, r"window must be .*got \(1\.1, 1\.5\)"),
        ({"window": (0.5, 0.9)}, "window must be"),
        ({"window": (1.0, 1.0)}, "window must be"),
        ({"window": (0.9, float("inf"))}, "window must be"),
        ({"start_epoch": -1}, "start_epoch must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SteadyState(**options)


def test_it_is_built_from_the_command_line(tmp_path):
    words = ("--model.net", "TisODENet", "--model.net.groups", "4", "--model.objective", "SteadyState")
    noise = ("--data.augment", "GaussianNoise", "--data.augment.stds", "[0.1, 0.2]")
    cli = built("-c", "configs/experiments/digits.yaml", *words, "--model.objective.window", "[1, 2]", *noise)
    assert cli.model.objective.window == (1.0, 2.0)
    assert cli.datamodule.augment.stds == (0.1, 0.2)

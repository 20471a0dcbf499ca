"""The bound of a latent end time and its estimators."""

import math

import pytest
import torch
from helpers.cli_runs import built
from helpers.fakes import images, spec, tiny_classifier
from helpers.training import ATTACK
from torch.distributions import Gamma, kl_divergence

from lightning_paf.nets import ALTNODE, LTNODE
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives import ELBO

NETS = pytest.mark.parametrize("cls", [LTNODE, ALTNODE])


def model(cls=LTNODE, **options):
    torch.manual_seed(0)
    net = cls(in_channels=3, width=4, groups=2, step=0.5, solver="euler", **options)
    torch.nn.init.normal_(net.fc.weight)
    return Classifier(net, spec()).double().train()


def batch():
    x, y = images()
    return x.double(), y


def step(objective, classifier, seed=1):
    objective.bind(classifier)
    torch.manual_seed(seed)
    return objective(classifier, *batch(), ATTACK)


def gamma(a, b):
    return Gamma(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 1, 1.46351), (3, 2, 0.752226), (2, 0.5, 0)])
def test_the_divergence_has_its_closed_form(a, b, expected):
    a0, b0 = LTNODE().prior_parameters
    found = float(kl_divergence(gamma(a, b), gamma(a0, b0)))
    digamma = float(torch.digamma(torch.tensor(a, dtype=torch.float64)))
    closed = (a - a0) * digamma - math.lgamma(a) + math.lgamma(a0) + a0 * math.log(b / b0) + a * (b0 - b) / b
    assert found == pytest.approx(closed, abs=1e-12)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 0.5), (7.0, 3.0)])
def test_the_density_of_a_posterior_integrates_to_one(a, b):
    posterior = LTNODE(posterior=(a, b)).double().posterior(None)
    t = torch.linspace(1e-6, 60, 200_001).double()
    assert float(torch.trapezoid(posterior.log_prob(t).exp(), t).detach()) == pytest.approx(1, abs=1e-5)


@NETS
@pytest.mark.parametrize("estimator", ["official", "snis", "reparam"])
def test_the_loss_is_that_of_the_equations(cls, estimator):
    classifier = model(cls)
    net, (x, y) = classifier.net, batch()
    result = step(ELBO(estimator, samples=5, kl_weight=0.3), classifier)
    z = net.stem((x - classifier.mean) / classifier.std)
    q = net.posterior((x - classifier.mean) / classifier.std)
    torch.manual_seed(1)
    shape = (5, len(q.rate))
    times = q.rsample((5,)) if estimator == "reparam" else torch.empty(shape).double().uniform_(1e-6, 3)
    density = q.rate**q.concentration * times ** (q.concentration - 1) * (-q.rate * times).exp()
    density = density / torch.lgamma(q.concentration).exp()
    weights = {"official": density / 5, "snis": density / density.sum(0), "reparam": torch.full_like(times, 0.2)}
    states = net.block.states_at(z, times)
    terms = [
        w * -net.fc(net.features(state)).log_softmax(1).gather(1, y[:, None])[:, 0]
        for w, state in zip(weights[estimator], states, strict=True)
    ]
    kl = kl_divergence(q, gamma(2.0, 0.5)).mean()
    torch.testing.assert_close(result.loss, sum(terms).mean() + 0.3 * kl, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(result.logs["kl"], kl.detach())


def test_the_official_gradient_is_the_weighted_sum_of_those_at_each_time():
    classifier = model()
    net, (x, y) = classifier.net, batch()
    step(ELBO("official", samples=4, kl_weight=0), classifier).loss.backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    torch.manual_seed(1)
    times = torch.empty(4, 1).double().uniform_(1e-6, 3)
    z = (x - classifier.mean) / classifier.std
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters() if "posterior" not in name}
    for time in times:
        net.zero_grad()
        logits = net.fc(net.features(net.block.states_at(net.stem(z), time[None])[0]))
        torch.nn.functional.cross_entropy(logits, y).backward()
        for name in total:
            total[name] += float(net.posterior(z).log_prob(time).exp().detach()) / 4 * net.get_parameter(name).grad
    for name, gradient in total.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9)


@NETS
def test_estimators_agree_with_an_integral_for_many_samples(cls):
    """For features T, and T below the horizon almost surely.

    `official` lacks the density 1/3 of the proposal, and its gradient is too noisy to compare.
    """
    classifier, (x, y) = model(cls), batch()
    net, parameters = classifier.net, torch.tensor([12.0, 9.0], dtype=torch.float64, requires_grad=True)
    net.posterior.forward = lambda x: Gamma(*parameters[:, None])
    net.block.states_at = lambda z, times: times.expand(-1, 1)[..., None].expand(-1, 1, 4)
    net.features = lambda states: states
    t = torch.linspace(0.01, 3.5, 1000).double()
    losses = -net.fc(t[:, None].expand(-1, 4)).log_softmax(-1)[:, y[0]].detach()
    integral = torch.trapezoid(net.posterior.forward(x).log_prob(t[:, None])[:, 0].exp() * losses, t)
    (slope,) = torch.autograd.grad(integral, parameters)
    for estimator, factor in (("official", 3), ("snis", 1), ("reparam", 1)):
        result = ELBO(estimator, samples=3000, kl_weight=0)(classifier, x[:1], y[:1], ATTACK)
        (found,) = torch.autograd.grad(factor * result.loss, parameters)
        torch.testing.assert_close(factor * result.loss, integral, atol=0, rtol=0.05)
        assert estimator == "official" or (found - slope).norm() < 0.25 * slope.norm()


def test_it_trains_on_adversarial_images_if_required():
    def attack(classifier, x, y):
        seen.append(x)
        return 1 - x

    seen = []
    classifier = model()
    losses = []
    for adversarial in (False, True):
        torch.manual_seed(1)
        losses.append(ELBO(adversarial=adversarial)(classifier, *batch(), attack).loss)
    assert len(seen) == 1
    x, y = batch()
    torch.manual_seed(1)
    assert torch.equal(ELBO()(classifier, 1 - x, y, None).loss, losses[1])


def test_a_step_starts_in_the_domain():
    classifier = model()
    classifier.net.posterior.concentration.data.fill_(-1.0)
    step(ELBO(), classifier)
    assert float(classifier.net.posterior.concentration.detach()) == pytest.approx(1e-3)


def test_afterwards_the_network_draws_its_own_times():
    classifier = model()
    classifier.eval()
    before = classifier(batch()[0])
    step(ELBO(), classifier)
    assert torch.equal(classifier(batch()[0]), before)


def test_a_network_without_latent_end_time_is_refused():
    with pytest.raises(ValueError, match=r"must have a latent end time for ELBO, got TinyNet\. Pass --model\.net LTN"):
        ELBO().bind(tiny_classifier())


def test_one_self_normalised_sample_is_refused():
    with pytest.raises(ValueError, match="samples must be at least 2 for snis, got 1"):
        ELBO(samples=1)
    assert ELBO("official", samples=1).samples == 1


def test_it_is_built_from_the_command_line():
    net = ("--model.net", "LTNODE", "--model.net.width", "4", "--model.net.groups", "2")
    words = ("--model.net.posterior", "[2, 1]", "--model.objective", "ELBO", "--model.objective.estimator", "reparam")
    made = built("-c", "configs/experiments/digits.yaml", *net, *words).model
    assert made.objective.estimator == "reparam"
    assert made.model.net.posterior.concentration.item() == 2

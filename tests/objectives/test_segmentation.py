"""Losses of few-shot segmentation: closed forms and limits."""

import pytest
import torch
from helpers.episodes import episodes

from lightning_paf.attacks import PGD
from lightning_paf.functional.segmentation import pixel_cross_entropy
from lightning_paf.nets.few_shot import PNODE, FewShotSegmenter
from lightning_paf.objectives.segmentation import AdversarialEpisodeCE, EpisodeCE, RegularizedEpisodeCE, cluster_loss

ATTACK = PGD(0.1, step_size=0.05, steps=3, start="none")


def model() -> FewShotSegmenter:
    torch.manual_seed(0)
    return FewShotSegmenter(PNODE(widths=(4, 4), convs=(1, 1), groups=2, step=2.0), (0.5,), (0.25,))


def test_without_weights_the_loss_is_the_cross_entropy():
    net, batch = model(), episodes()
    loss, logs = EpisodeCE()(net, batch, ATTACK)
    torch.testing.assert_close(loss, pixel_cross_entropy(net(batch), batch.query_mask).mean())
    assert torch.equal(RegularizedEpisodeCE(0.0, 0.0)(net, batch, ATTACK)[0], loss)
    assert set(logs) == {"dice"}


@pytest.mark.parametrize("target", ["query", "support"])
def test_the_adversarial_loss_is_larger(target):
    net, batch = model(), episodes()
    assert AdversarialEpisodeCE(target)(net, batch, ATTACK)[0] > EpisodeCE()(net, batch, ATTACK)[0]


def test_without_noise_the_consistency_and_its_gradient_are_zero():
    net, batch = model(), episodes(ways=2, shots=2)
    loss, logs = RegularizedEpisodeCE(1.0, 0.0, noise=0.0)(net, batch, ATTACK)
    assert logs["consistency"].abs() < 1e-5
    plain = EpisodeCE()(net, batch, ATTACK)[0]
    parameters = [*net.parameters()]
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_the_consistency_grows_with_the_noise_up_to_two_for_each_term(multiplicative):
    net, batch = model(), episodes()
    found = []
    for noise in (0.01, 0.1, 10.0):
        torch.manual_seed(1)
        found.append(RegularizedEpisodeCE(1.0, 0.0, noise, multiplicative)(net, batch, ATTACK)[1]["consistency"].item())
    assert 0 < found[0] < found[1] < found[2] <= 4


def test_the_cluster_loss_compares_features_of_the_same_class():
    batch = episodes()
    support, query = torch.zeros(2, 1, 1, 2, 16, 16), torch.zeros(2, 2, 16, 16)
    for image, mask in ((support[:, 0, 0], batch.support_masks[:, 0, 0]), (query, batch.query_mask)):
        image[:, 0], image[:, 1] = (mask == 0).float(), (mask == 1).float()
    assert cluster_loss(support, query, batch).abs() < 1e-5
    torch.testing.assert_close(cluster_loss(support, query.flip(1), batch), torch.tensor(1.0))
    empty = batch._replace(query_mask=torch.zeros_like(batch.query_mask))
    expected = 1 - (query.mean((2, 3))[:, 0] / query.mean((2, 3)).norm(dim=1)).mean()
    torch.testing.assert_close(cluster_loss(support, query, empty), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["consistency", "cluster", "noise"])
def test_negative_values_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        RegularizedEpisodeCE(**{name: -1.0})


@pytest.mark.parametrize("objective", [EpisodeCE(), AdversarialEpisodeCE(), RegularizedEpisodeCE()])
def test_every_parameter_gets_a_gradient_in_bfloat16(objective):
    net, batch = model(), episodes()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(net, batch, ATTACK)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

"""Attacks on query and support of episodes."""

import pytest
import torch
from helpers.episodes import episodes

from lightning_paf.attacks import FGSM, PGD, Square
from lightning_paf.attacks.episodes import SMIA, DiceLogits, attacked, attacked_alone, paper_attacks, with_images
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.segmentation import dice, dice_counts, pixel_cross_entropy, predicted_class
from lightning_paf.nets.few_shot import FewShotSegmenter, PANet

SEVEN = paper_attacks(0.05, 256)


@pytest.fixture(scope="module")
def model():
    """A segmenter trained for a few steps, which segments its episodes."""
    torch.manual_seed(0)
    model, batch = FewShotSegmenter(PANet(widths=(8, 8), convs=(1, 1), groups=2), (0.5,), (0.25,)), episodes()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        pixel_cross_entropy(model(batch), batch.query_mask).mean().backward()
        optimizer.step()
    return model.eval()


def scores(model, batch):
    with torch.no_grad():
        found = model(batch)
    return pixel_cross_entropy(found, batch.query_mask), dice(dice_counts(predicted_class(found), batch.query_mask))


@pytest.mark.parametrize("target", ["query", "support"])
@pytest.mark.parametrize("name", SEVEN)
def test_attacks_stay_in_their_ball_and_change_their_target_only(name, target, model):
    attack, batch = SEVEN[name], episodes()
    found = attacked_alone(model, batch, attack, target)
    ours, clean = getattr(found, target), getattr(batch, target)
    assert ours.shape == clean.shape
    assert 0 <= ours.min() <= ours.max() <= 1
    size = geometry_of(attack.norm).size((ours - clean).flatten(1))
    assert (size <= attack.radius * (1 + 1e-5)).all()
    others = [field for field in batch._fields if field != target]
    assert all(torch.equal(getattr(found, field), getattr(batch, field)) for field in others)
    assert (scores(model, found)[1] <= scores(model, batch)[1] + 1e-6).all()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "bim", "dag", "smia"])
def test_attacks_by_gradients_raise_the_loss(name, model):
    batch = episodes()
    assert (scores(model, attacked(model, batch, SEVEN[name], "query"))[0] > scores(model, batch)[0]).all()


def test_results_do_not_depend_on_the_batch(model):
    batch, attack = episodes(), PGD(0.05, step_size=0.02, steps=2)
    together = attacked_alone(model, batch, attack, "query")
    alone = [attacked_alone(model, one, attack, "query").query for one in batch.separate()]
    assert torch.equal(together.query, torch.cat(alone))


def test_a_clean_support_is_encoded_once_with_the_same_result(model, monkeypatch):
    batch, attack = episodes(), PGD(0.05, step_size=0.02, steps=3, start="none")
    whole = {"loss": pixel_cross_entropy, "forward": lambda x: model(with_images(batch, "query", x))}
    expected = attack(model, batch.query, batch.query_mask, **whole)
    encoded, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda batch: encoded.append(batch) or encode(batch))
    torch.testing.assert_close(attacked(model, batch, attack, "query").query, expected)
    assert len(encoded) == 1


def test_shots_are_attacked_together(model):
    batch = episodes(shots=3)
    found = attacked(model, batch, FGSM(0.05), "support")
    assert ((found.support - batch.support).abs().amax((0, 1, 3, 4, 5)) > 0.04).all()
    assert torch.equal(with_images(batch, "support", batch.support.flatten(1, -3)).support, batch.support)


def test_dice_decides_on_the_success_of_attacks_with_their_own_losses(model):
    batch = episodes().separate()[0]
    logits = DiceLogits(model, batch, "query")
    x = torch.cat([batch.query, torch.rand_like(batch.query)])
    expected = [scores(model, batch._replace(query=image))[1].item() - 0.1 for image in x.split(1)]
    torch.testing.assert_close(logits(x), torch.tensor([[value, 0.0] for value in expected]), atol=1e-5, rtol=0)
    x = batch.query.requires_grad_()
    (gradient,) = torch.autograd.grad(logits(x)[:, 0].sum(), x)
    assert gradient.abs().max() > 0
    weak = attacked(model, batch, Square(0.001, queries=2), "query")
    assert torch.equal(weak.query, batch.query.detach()), "an attack without success returns the clean image"


def test_without_its_stabilising_term_smia_is_pgd(model):
    batch = episodes()
    smia, pgd = SMIA(0.05, step_size=0.02, steps=3, weight=0), PGD(0.05, step_size=0.02, steps=3, start="none")
    assert torch.equal(attacked(model, batch, smia, "query").query, attacked(model, batch, pgd, "query").query)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        SMIA(weight=-1)

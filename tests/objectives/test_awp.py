import copy
import os
from pathlib import Path

import pytest
import torch
from helpers.every_objective import HelpedByItself
from helpers.fakes import images, tiny_classifier
from objectives.test_everywhere import Trained
from torch import multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lightning_paf.attacks import PGD, Recorded
from lightning_paf.objectives import AWP, IKL, TRADES, AdversarialCE, Natural, Objective, StepResult

ATTACK = PGD(0.1, step_size=0.05, steps=3)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(objective, model, x=None, y=None):
    """Weights during the backward pass."""
    x, y = images() if x is None else (x, y)
    result = objective(model, x, y, ATTACK)
    during = weights(model)
    result.loss.backward()
    objective.after_backward(model)
    return during


def test_weights_of_matrices_and_kernels_move_by_their_share_up_the_loss():
    model, (x, y) = tiny_classifier().train(), images()
    before = weights(model)
    during = moved(AWP(Natural(), gamma=0.01), model)
    loss = F.cross_entropy((reference := tiny_classifier().train())(x), y)
    gradients = dict(zip(before, torch.autograd.grad(loss, list(reference.parameters())), strict=True))
    for name, value in before.items():
        step = during[name] - value
        if value.ndim < 2:
            assert not step.any(), name
            continue
        assert step.norm() / value.norm() == pytest.approx(0.01, rel=1e-3), name
        cosine = F.cosine_similarity(step.flatten(), gradients[name].flatten(), dim=0)
        assert cosine == pytest.approx(1, abs=1e-4), name


def test_the_gradient_is_that_at_the_moved_weights_and_they_come_back_exactly():
    model, (x, y) = tiny_classifier().train(), images()
    before = weights(model)
    during = moved(AWP(Natural(), gamma=0.05), model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    there = tiny_classifier().train()
    there.load_state_dict({**there.state_dict(), **during})
    F.cross_entropy(there(x), y).backward()
    for mine, theirs in zip(model.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_moving_against_the_loss_raises_it():
    model, (x, y) = tiny_classifier().train(), images()
    assert (
        AWP(Natural(), gamma=0.05)(model, x, y, ATTACK).loss > Natural()(tiny_classifier().train(), x, y, ATTACK).loss
    )


@pytest.mark.parametrize("objective", [AWP(TRADES(), gamma=0.0), AWP(TRADES(), warmup=0.5)], ids=["size", "warm-up"])
def test_without_size_or_before_its_time_it_is_the_objective(objective):
    losses = []
    for one in (objective, TRADES()):
        model = tiny_classifier().train()
        one.bind(model)
        one.on_epoch_start(0, 0.4)
        torch.manual_seed(0)
        losses.append(one(model, *images(), ATTACK).loss)
    assert torch.equal(*losses)


def test_the_warm_up_ends():
    objective, model = AWP(Natural(), warmup=0.5), tiny_classifier().train()
    objective.on_epoch_start(5, 0.5)
    assert not torch.equal(moved(objective, model)["net.fc.weight"], model.net.fc.weight)


class Calls(Objective):
    """Notes the images that it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.register_buffer("evaluations", torch.zeros(()))

    def forward(self, model, x, y, attack) -> StepResult:
        self.evaluations += 1
        found = [attack(model, x, y), attack(model, x, (y + 1) % 10)]
        self.seen += found
        logits = model(torch.cat(found))
        return StepResult(F.cross_entropy(logits, y.repeat(2)), logits)


def test_images_are_found_once_and_statistics_move_once():
    model, inner = tiny_classifier().train(), Calls()
    expected = tiny_classifier().train()
    moved(AWP(inner), model)
    first, second, first_again, second_again = inner.seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    assert inner.evaluations == 1
    assert model.net.bn.num_batches_tracked == 1
    assert not torch.equal(model.net.bn.running_mean, expected.net.bn.running_mean)


def test_a_recording_answers_only_what_it_has_heard():
    model, (x, y) = tiny_classifier(), images()
    recorded = Recorded(ATTACK)
    found = recorded(model, x, y)
    recorded.rewind()
    assert torch.equal(recorded(model, x, y), found)
    with pytest.raises(RuntimeError, match="must have at most 1 calls, got one more"):
        recorded(model, x, y)
    assert (recorded.radius, recorded.label) == (ATTACK.radius, "recorded")


def test_a_schedule_may_shrink_the_radius_to_zero():
    attack = PGD(0.1, step_size=0.05, steps=2)
    attack.eps = attack.step_size = 0.0
    model, (x, y) = tiny_classifier().train(), images()
    assert torch.equal(Recorded(attack)(model, x, y), x)
    assert torch.isfinite(AWP(TRADES())(model, x, y, attack).loss)


@pytest.mark.parametrize("inner", [TRADES, AdversarialCE, IKL, HelpedByItself, lambda: AWP(TRADES())])
def test_it_works_around_other_objectives(inner):
    objective, model = AWP(inner()), tiny_classifier().train()
    objective.bind(model)
    objective.on_epoch_start(0, 0.0)
    before = weights(model)
    moved(objective, model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    copy.deepcopy(objective)


def test_in_bfloat16_the_second_pass_rounds_the_moved_weights():
    """Autocast keeps the weights that it has rounded until its context ends."""
    x, y = images()
    model = tiny_classifier().train()
    with torch.autocast("cpu", torch.bfloat16):
        result = AWP(Natural(), gamma=0.5)(model, x, y, ATTACK)
    there = tiny_classifier().train()
    there.load_state_dict(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(there(x), y)
    torch.testing.assert_close(result.loss, expected)


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    trained = Trained(tiny_classifier().train(), AWP(TRADES(), gamma=0.1))
    x, y = images()
    torch.manual_seed(rank)
    loss = DistributedDataParallel(trained)(x[rank::2], y[rank::2])
    sums = [p.detach().double().sum().item() for p in trained.parameters()]
    loss.backward()
    Path(folder, str(rank)).write_text(f"{sums}")
    os._exit(0)  # gloo may abort in its teardown


def test_on_two_ranks_with_different_images_weights_move_alike(tmp_path):
    context = multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2, join=False)
    for process in context.processes:
        process.join(120)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


@pytest.mark.parametrize(("options", "message"), [({"gamma": -1}, r"gamma.*[= ]-1"), ({"warmup": 1}, r"warmup.*[= ]1")])
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AWP(Natural(), **options)

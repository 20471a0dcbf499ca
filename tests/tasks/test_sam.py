"""SAM: closed form, the same steps under Lightning with every precision, several ranks, and resume."""

import copy
import os
from functools import partial

import pytest
import torch
from helpers.cli_runs import assert_resumed_run_is_the_same, status, write_experiment
from helpers.fakes import TinyNet, images
from helpers.forked_ranks import Ranks
from helpers.trainers import trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_paf.attacks import PGD
from lightning_paf.nets import SmallConvNet
from lightning_paf.nn.sam import SAM
from lightning_paf.nn.sobolev_ncg import SobolevNCG
from lightning_paf.objectives import Natural
from lightning_paf.schedules import Constant
from lightning_paf.tasks.classification import RobustModule

RHO = 0.3
X, Y = images(16, num_classes=3)


def sam(parameters, lr=0.1, **options):
    return SAM(parameters, partial(SGD, lr=lr, momentum=0.9), RHO, **options)


def test_a_step_applies_the_gradient_at_the_perturbed_weights():
    """w - lr A (w + rho A w / |A w|) for the loss w A w / 2."""
    a, b = torch.tensor([3.0, 1.0]), torch.tensor(2.0)
    w, v = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor(0.5))
    calls, optimizer = [], sam([{"params": [w]}, {"params": [v], "lr": 0.2}])

    def closure():
        optimizer.zero_grad()
        loss = (a * w**2).sum() / 2 + b * v**2 / 2
        loss.backward()
        calls.append(torch.cat([w.detach(), v.detach()[None]]))
        return loss

    start, curvature, rate = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 1, 2]), torch.tensor([0.1, 0.1, 0.2])
    assert optimizer.step(closure) == (curvature * start**2).sum() / 2
    moved = start + RHO * curvature * start / (curvature * start).norm()
    torch.testing.assert_close(torch.stack(calls), torch.stack([start, moved]))
    after = start - rate * curvature * moved
    torch.testing.assert_close(torch.cat([w.detach(), v.detach()[None]]), after)


@pytest.mark.parametrize("base", [LBFGS, SobolevNCG, SAM])
def test_a_base_that_evaluates_the_closure_is_refused(base):
    message = f"^base must step from one gradient, got {base.__name__}, .* Pass --model.optimizer.base SGD"
    with pytest.raises(ValueError, match=message):
        SAM([nn.Parameter(torch.ones(3))], base)


def test_such_a_base_is_refused_before_the_first_step(tmp_path, capsys):
    options = ("--model.optimizer", "SAM", "--model.optimizer.base", "torch.optim.LBFGS", "--model.decay", "all")
    assert status("fit", "-c", write_experiment(tmp_path), *options, "--run", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "base must step from one gradient, got LBFGS" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("gradient", [0.0, torch.inf, torch.nan])
def test_a_gradient_without_direction_moves_no_weight(gradient):
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.full((3,), gradient)
    with sam([w]).perturbed():
        assert torch.equal(w, torch.ones(3))


def test_weights_are_restored_exactly_even_after_an_error():
    w = nn.Parameter(torch.randn(1000))
    before, w.grad = w.detach().clone(), torch.randn(1000)
    perturbed = sam([w]).perturbed()
    perturbed.__enter__()
    assert (w - before).norm().item() == pytest.approx(RHO, rel=1e-4)
    assert not perturbed.__exit__(RuntimeError, RuntimeError("out of memory"), None)
    assert torch.equal(w, before)


def test_state_and_groups_are_those_of_the_base():
    w = nn.Parameter(torch.ones(3))
    optimizer = SAM([w], partial(Adam, lr=0.1))
    optimizer.step(lambda: optimizer.zero_grad() or (w**2).sum().backward())
    plain = Adam([nn.Parameter(torch.ones(3))], lr=0.1)
    plain.load_state_dict(optimizer.state_dict())
    other = SAM([nn.Parameter(torch.ones(3))], partial(Adam, lr=0.7))
    other.load_state_dict(copy.deepcopy(plain.state_dict()))
    other.param_groups[0]["lr"] = 0.05
    assert other.base.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(other.base.state[other.param_groups[0]["params"][0]], optimizer.state[w])


@pytest.mark.parametrize("rho", [-0.1, torch.inf, torch.nan])
def test_a_length_without_meaning_is_refused(rho):
    with pytest.raises(ValueError, match="rho must be finite and >= 0"):
        SAM([nn.Parameter(torch.ones(1))], rho=rho)


def module(net=None, **options):
    torch.manual_seed(0)
    fixed = {"attack": PGD(), "objective": Natural(), "dataset": "npz", "num_classes": 3, "decay": "all"}
    return RobustModule(net or TinyNet(3), **{**fixed, "optimizer": sam, "schedule": Constant(), **options})


def loader(size=4):
    return DataLoader(TensorDataset(X, Y), batch_size=size)


def by_hand(clip=None):
    """State dict after one epoch by plain torch, and the mean loss at the unperturbed weights."""
    model = module().model.train()
    weights, losses = list(model.parameters()), []
    optimizer = SGD(weights, lr=0.1, momentum=0.9)
    for x, y in loader():
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        originals = [w.detach().clone() for w in weights]
        buffers = copy.deepcopy(dict(model.named_buffers()))
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                w += RHO * g / norm
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for w, original in zip(weights, originals, strict=True):
                w.copy_(original)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if clip:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
    return model.state_dict(), sum(losses) / len(losses)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("32-true", 1e-6), ("bf16-mixed", 2e-2), ("16-mixed", 2e-3)],
    ids=["float32", "bfloat16", "float16 with a scaler"],
)
def test_lightning_makes_the_same_steps_with_every_precision(precision, tolerance, clip, tmp_path):
    scaled = MixedPrecision("16-mixed", "cpu") if precision == "16-mixed" else None
    options = {"plugins": [scaled]} if scaled else {"precision": precision}
    run, trained = trainer(tmp_path, gradient_clip_val=clip, **options), module()
    run.fit(trained, loader())
    expected, loss = by_hand(clip)
    assert run.global_step == 4
    assert scaled is None or scaled.scaler._growth_tracker.item() == 4, "one update per step, none skipped"
    for key, value in expected.items():
        torch.testing.assert_close(trained.model.state_dict()[key], value, rtol=tolerance, atol=tolerance)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(loss, rel=20 * tolerance)


def test_accumulated_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate_grad_batches must be 1 for SAM, .* got 2\. Pass --trainer\.acc"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(module(), loader())


def of_seed_0():
    """A network without BatchNorm, whose gradient of a batch is the mean of those of its halves."""
    torch.manual_seed(0)
    return SmallConvNet(width=4, in_channels=3, num_classes=3)


def on_two_ranks(folder):
    """Train on one half of every batch per rank, and save the weights."""
    data, halves = TensorDataset(X, Y), module(of_seed_0())
    sampler = DistributedSampler(data, 2, int(os.environ["LOCAL_RANK"]), shuffle=False)
    run = trainer(folder, devices=2, strategy="ddp", max_epochs=2, use_distributed_sampler=False)
    run.fit(halves, DataLoader(data, batch_size=8, sampler=sampler))
    torch.save(halves.state_dict(), folder / f"rank{run.global_rank}.pt")


def test_two_ranks_make_the_steps_of_one(tmp_path):
    Ranks(2, tmp_path, on_two_ranks, tmp_path).succeed()
    trained = module(of_seed_0())
    trainer(tmp_path, max_epochs=2).fit(trained, loader(16))
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found, dict(trained.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path, capsys):
    config = write_experiment(tmp_path)
    words = ("fit", "-c", config, "--model.optimizer", "SAM", "--model.optimizer.rho", 0.1, "--val_attack", "null")
    words += ("--model.optimizer.base", "Adam", "--model.optimizer.base.lr", 0.01, "--trainer.max_epochs", 2)
    words = tuple(map(str, words))
    assert_resumed_run_is_the_same(words, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.optimizer.rho", "-1"), "rho must be finite and >= 0, got -1.0"),
        (("--model.optimizer.base.lr", "0"), "--model.optimizer.base.lr must be positive and finite, got 0.0"),
        (("--model.optimizer.base", "SGD", "--model.optimizer.base.momentum", "-1"), "Invalid momentum value: -1.0"),
        (("--trainer.accumulate_grad_batches", "2"), "accumulate_grad_batches must be 1 for SAM"),
    ],
)
def test_invalid_options_are_reported_in_one_line(words, message, tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), "--model.optimizer", "SAM", *words) == 1
    assert message in capsys.readouterr().err

"""Conjugate gradients under Lightning: exact steps, ranks, precisions, resume and errors."""

import os
from functools import partial

import pytest
import torch
from helpers.cli_runs import assert_resumed_run_is_the_same, status, write_experiment
from helpers.fakes import images
from helpers.forked_ranks import Ranks
from helpers.trainers import trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_paf.attacks import PGD
from lightning_paf.nets import SNODE
from lightning_paf.nn.sobolev_ncg import SobolevNCG
from lightning_paf.objectives import Natural, TerminalCost
from lightning_paf.schedules import Constant
from lightning_paf.tasks.classification import RobustModule

X, Y = images(16, size=4, num_classes=3)
NCG = partial(SobolevNCG, iterations=3, sobolev=1.0)
WORDS = ("--model.net", "SNODE", "--model.net.image_size", "4", "--model.net.t_end", "1", "--model.net.step", "0.25")
WORDS += ("--model.activation", "Tanh", "--model.objective", "TerminalCost", "--model.schedule", "Constant")
WORDS += ("--model.optimizer", "SobolevNCG", "--model.optimizer.sobolev", "1", "--val_attack", "null")


def module(**options):
    torch.manual_seed(0)
    net = SNODE(3, 3, image_size=4, t_end=1.0, step=0.25)
    fixed = {"attack": PGD(), "objective": TerminalCost(), "dataset": "npz", "num_classes": 3, "decay": "all"}
    return RobustModule(net, **{**fixed, "optimizer": NCG, "schedule": Constant(), "normalize": False, **options})


def loader(size=8):
    return DataLoader(TensorDataset(X, Y), batch_size=size)


def by_hand():
    """Weights after one epoch by plain torch, and the loss before every iteration."""
    trained, losses = module(), []
    optimizer = NCG(trained.parameters())
    optimizer.sensitivity = partial(trained.objective.slope, trained.model)
    for x, y in loader():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = trained.objective(trained.model, x, y, trained.attack).loss
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
    return trained.state_dict(), losses


def test_lightning_makes_the_same_iterations_and_the_cost_falls(tmp_path):
    run, trained = trainer(tmp_path), module()
    run.fit(trained, loader())
    expected, losses = by_hand()
    assert run.global_step == 2
    for key, value in expected.items():
        torch.testing.assert_close(trained.state_dict()[key], value)
    assert losses[2] < losses[1] < losses[0]
    assert run.callback_metrics["train/loss"].item() == pytest.approx(sum(losses) / 6, rel=1e-5)


def on_two_ranks(folder):
    """Train on one half of every batch per rank, and save the weights."""
    data, halves = TensorDataset(X, Y), module(objective=TerminalCost(1.0, 0.5, 0.1, 0.1))
    sampler = DistributedSampler(data, 2, int(os.environ["LOCAL_RANK"]), shuffle=False)
    run = trainer(folder, devices=2, strategy="ddp", use_distributed_sampler=False)
    run.fit(halves, DataLoader(data, batch_size=4, sampler=sampler))
    torch.save(halves.state_dict(), folder / f"rank{run.global_rank}.pt")


def test_two_ranks_make_the_steps_of_one(tmp_path):
    Ranks(2, tmp_path, on_two_ranks, tmp_path).succeed()
    trained = module(objective=TerminalCost(1.0, 0.5, 0.1, 0.1))
    trainer(tmp_path).fit(trained, loader())
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found, dict(trained.state_dict()), rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_and_a_gradient_scaler_is_refused(tmp_path):
    trained, start = module(), module()
    trainer(tmp_path, precision="bf16-mixed").fit(trained, loader())
    assert torch.isfinite(trained.model.net.weight).all()
    assert not torch.equal(trained.model.net.weight, start.model.net.weight)
    with pytest.raises(ValueError, match=r"closure must be given to SobolevNCG.*--trainer\.precision 32-true"):
        trainer(tmp_path, plugins=[MixedPrecision("16-mixed", "cpu")]).fit(module(), loader())


def test_other_objectives_and_accumulated_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"objective must be TerminalCost for SobolevNCG.*got Natural"):
        trainer(tmp_path).fit(module(objective=Natural()), loader())
    with pytest.raises(ValueError, match=r"accumulate_grad_batches must be 1 for SobolevNCG, .* got 2"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(module(), loader())


def test_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    words = tuple(map(str, ("fit", "-c", write_experiment(tmp_path), *WORDS, "--trainer.max_epochs", 2)))
    assert_resumed_run_is_the_same(words, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.optimizer.lr", "0"), "--model.optimizer.lr must be positive and finite, got 0.0"),
        (("--model.optimizer.iterations", "0"), "iterations must be at least 1, got 0"),
        (("--model.objective", "Natural"), "objective must be TerminalCost for SobolevNCG"),
        (("--trainer.accumulate_grad_batches", "2"), "accumulate_grad_batches must be 1 for SobolevNCG"),
        (("--model.net.t_end", "0"), "t_end must be finite and > 0, got 0.0"),
        (("--model.net.step", "0.3"), "t_end must be a multiple of the step 0.3, got 1"),
    ],
)
def test_invalid_options_are_reported_in_one_line(words, message, tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), *WORDS, *words) == 1
    assert message in capsys.readouterr().err

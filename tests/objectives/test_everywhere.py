"""Every objective with every activation, a network of timm, in bfloat16, on two ranks, and resumed."""

import copy
import os
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers.every_objective import OBJECTIVES, build, concrete
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_paf.attacks import PGD
from lightning_paf.nets import TimmNet
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.nn.sync_batch_norm import share_statistics

ATTACK = PGD(0.1, step_size=0.05, steps=2)
BATCHES = "num_batches_tracked"  # by BatchNorm
ACTIVATIONS = concrete(Activation)
every_objective = pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda cls: cls.__name__)


class Trained(nn.Module):
    """What a training step is made of, as one module, since `DistributedDataParallel` wraps one."""

    def __init__(self, model: Classifier, objective) -> None:
        super().__init__()
        objective.bind(model)
        self.model, self.objective = model, objective

    def forward(self, x, y):
        return self.objective(self.model, x, y, ATTACK).loss


def steps(trained: nn.Module, n: int = 2, optimizer=None) -> torch.optim.Optimizer:
    """Optimiser steps as the module makes them."""
    inner = getattr(trained, "module", trained)
    optimizer = optimizer or torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9)
    x, y = images()
    for _ in range(n):
        for number in range(inner.objective.steps_per_batch):
            inner.objective.begin_step(number)
            optimizer.zero_grad()
            trained(x, y).backward()
            inner.objective.after_backward(inner.model)
            assert all(p.grad is None or torch.isfinite(p.grad).all() for p in inner.parameters())
            optimizer.step()
    return optimizer


@every_objective
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda cls: cls.__name__)
def test_with_every_activation(cls, activation):
    net = TinyNet()
    swap_activations(net, activation)
    model = Classifier(net, spec()).train()
    before = copy.deepcopy(model)
    steps(Trained(model, build(cls)), n=1)
    moved = [
        n for (n, p), q in zip(model.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, q)
    ]
    assert "net.fc.weight" in moved


@every_objective
def test_with_a_network_of_timm(cls):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    steps(Trained(Classifier(TimmNet("test_resnet", num_classes=10), spec()).train(), build(cls)), n=1)


@every_objective
def test_in_bfloat16(cls):
    with torch.autocast("cpu", torch.bfloat16):
        steps(Trained(tiny_classifier().train(), build(cls)), n=1)


@every_objective
def test_continued_from_its_state_it_goes_on_the_same(cls):
    torch.manual_seed(0)
    first = Trained(tiny_classifier().train(), build(cls))
    optimizer = steps(first)
    state = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second = Trained(tiny_classifier().train(), build(cls))
    second.load_state_dict(state[0])
    other = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9)
    other.load_state_dict(state[1])
    for trained, continued in ((first, optimizer), (second, other)):
        torch.manual_seed(1)
        steps(trained, 1, continued)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for cls, shared in product(OBJECTIVES, (False, True)):
        trained = Trained(tiny_classifier().train(), build(cls))
        if shared:
            share_statistics(trained)  # also that of an objective, as Lightning does
        torch.manual_seed(rank)
        steps(DistributedDataParallel(trained))
        unused = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
        unused += [n for n, m in trained.named_modules() if not m.training or int(getattr(m, BATCHES, 1)) == 0]
        values = [*trained.parameters(), *(trained.buffers() if shared else ())]
        sums = [value.detach().double().sum().item() for value in values]
        Path(folder, f"{rank}-{shared}-{cls.__name__}").write_text(f"{unused} {sums}")
    os._exit(0)  # gloo may abort in its teardown


def test_on_two_ranks_weights_stay_equal_and_nothing_is_unused(tmp_path):
    """Also where ranks share the statistics of BatchNorm, which then are equal too and must go on moving."""
    context = multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2, join=False)
    for process in context.processes:
        process.join(240)
    notes = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "meeting"}
    for name in (f"{shared}-{cls.__name__}" for cls, shared in product(OBJECTIVES, (False, True))):
        assert f"0-{name}" in notes, "rank 0 did not come that far"
        assert notes[f"0-{name}"] == notes[f"1-{name}"], name
        assert notes[f"0-{name}"].startswith("[] "), name

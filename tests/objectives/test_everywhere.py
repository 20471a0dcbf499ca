"""Every objective with other activations and networks, in bfloat16, on two ranks, and resumed."""

import copy
import os
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers.every_objective import OBJECTIVES, build, concrete
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from helpers.forked_ranks import Ranks
from helpers.training import Trained, steps
from torch.nn.parallel import DistributedDataParallel

from lightning_paf.nets import TimmNet
from lightning_paf.nn.activations import Activation, PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.nn.sync_batch_norm import share_statistics
from lightning_paf.objectives import AWP, TRADES, Certified

BATCHES = "num_batches_tracked"  # by BatchNorm
every_objective = pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda cls: cls.__name__)


def pairs():
    """Objectives with PSSiLU; with every activation those that need its second derivative, and one that does not."""
    for cls, activation in product(OBJECTIVES, concrete(Activation)):
        if activation is PSSiLU or cls is TRADES or cls.needs_double_backward:
            yield pytest.param(cls, activation, id=f"{cls.__name__}-{activation.__name__}")


@pytest.mark.parametrize(("cls", "activation"), [*pairs()])
def test_with_other_activations(cls, activation):
    net = TinyNet()
    swap_activations(net, activation)
    model = Classifier(net, spec()).train()
    before = copy.deepcopy(model)
    steps(Trained(model, build(cls)), n=1)
    assert not torch.equal(model.net.fc.weight, before.net.fc.weight)


@every_objective
def test_with_a_network_of_timm(cls):
    pytest.importorskip("timm")
    if issubclass(cls, Certified):
        pytest.skip("the network has max pooling, which has no bounds")
    torch.manual_seed(0)
    steps(Trained(Classifier(TimmNet("test_resnet", num_classes=10), spec()).train(), build(cls)), n=1)


@every_objective
def test_in_bfloat16(cls):
    with torch.autocast("cpu", torch.bfloat16):
        steps(Trained(tiny_classifier().train(), build(cls)), n=1)


@every_objective
def test_resumed_from_its_state_it_makes_the_same_steps(cls):
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


def sums(values):
    return [value.detach().double().sum().item() for value in values]


def train_all(folder: Path) -> None:
    """Train on one of two ranks, and write the sums of all weights."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank)
    for cls, shared in product(OBJECTIVES, (False, True)):
        trained = Trained(tiny_classifier().train(), build(cls))
        if shared:
            share_statistics(trained)  # including those of an objective, as Lightning does
        torch.manual_seed(rank)
        steps(DistributedDataParallel(trained), 1)
        unused = [n for n, p in trained.named_parameters() if p.requires_grad and p.grad is None]
        unused += [n for n, m in trained.named_modules() if not m.training or int(getattr(m, BATCHES, 1)) == 0]
        values = [*trained.parameters(), *(trained.buffers() if shared else ())]
        (folder / f"{rank}-{shared}-{cls.__name__}").write_text(f"{unused} {sums(values)}")
    perturbed, (x, y) = Trained(tiny_classifier().train(), AWP(TRADES(), gamma=0.1)), images()
    loss = DistributedDataParallel(perturbed)(x[rank::2], y[rank::2])
    (folder / f"{rank}-moved").write_text(f"{sums(perturbed.parameters())}")
    loss.backward()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Files of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    Ranks(2, folder / "logs", train_all, folder).succeed()
    return folder


@pytest.mark.parametrize("shared", [False, True])
def test_on_two_ranks_weights_stay_equal_and_nothing_is_unused(ranks, shared):
    """With shared statistics of BatchNorm, these are equal too, and keep being updated."""
    for cls in OBJECTIVES:
        first, second = ((ranks / f"{rank}-{shared}-{cls.__name__}").read_text() for rank in (0, 1))
        assert first == second, cls
        assert first.startswith("[] "), cls


def test_on_two_ranks_with_different_images_awp_moves_weights_alike(ranks):
    assert (ranks / "0-moved").read_text() == (ranks / "1-moved").read_text()

import os
from functools import partial

import pytest
import torch
from helpers.forked_ranks import Ranks
from torch import nn

from lightning_paf.nn.modes import frozen
from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm2d, share_statistics, unshare_statistics
from lightning_paf.speed.folding import Folding

LAYERS = {
    "of images": (partial(nn.BatchNorm2d, 3), (8, 3, 4, 4)),
    "of features": (partial(nn.BatchNorm1d, 3), (8, 3)),
    "of volumes": (partial(nn.BatchNorm3d, 3, affine=False), (8, 3, 2, 2, 2)),
    "cumulative": (partial(nn.BatchNorm2d, 3, momentum=None), (8, 3, 2, 2)),
    "without running statistics": (partial(nn.BatchNorm2d, 3, track_running_stats=False), (8, 3, 2, 2)),
}


def passes(norm, x, weight):
    """Two passes in train mode: outputs, gradients, state."""
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = norm(x)
        (y * weight).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]


def layer(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    norm = make().double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    return norm, 5 + torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def two_ranks(folder):
    """Passes of each rank with its samples, five and three."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank)
    for name in LAYERS:
        norm, x, weight = layer(name)
        share_statistics(norm)
        mine = slice(5) if rank == 0 else slice(5, 8)
        found = passes(norm, x[mine], weight[mine])
        with frozen(norm, "train"):
            before = torch.distributed.group.WORLD._get_sequence_number_for_group()
            alone = norm(x[mine]).detach()
            assert torch.distributed.group.WORLD._get_sequence_number_for_group() == before
        unshare_statistics(norm)
        torch.testing.assert_close(alone, nn.functional.batch_norm(x[mine], None, None, norm.weight, norm.bias, True))
        torch.save(found, folder / f"{name}{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    Ranks(2, folder, two_ranks, folder).succeed()
    return lambda name: [torch.load(folder / f"{name}{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_two_ranks_compute_what_one_computes(found, name):
    norm, x, weight = layer(name)
    y, gradient, *rest = passes(norm, x, weight)
    ours, theirs = found(name)
    torch.testing.assert_close(torch.cat([ours[0], theirs[0]]), y)
    torch.testing.assert_close(torch.cat([ours[1], theirs[1]]), gradient)
    parameters = len(list(norm.parameters()))
    for i, expected in enumerate(rest):
        mine, other = ours[2 + i], theirs[2 + i]
        torch.testing.assert_close(mine + other if i < parameters else mine, expected)
        assert i < parameters or torch.equal(mine, other)


@pytest.mark.parametrize("name", LAYERS)
def test_without_other_ranks_it_is_an_ordinary_batch_norm(name):
    norm, x, weight = layer(name)
    shared, *_ = layer(name)
    share_statistics(shared)
    assert type(shared) is not type(norm)
    for ours, theirs in zip(passes(shared, x, weight), passes(norm, x, weight), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("make", [nn.SyncBatchNorm, CpuSyncBatchNorm2d])
def test_frozen_in_train_mode_it_uses_the_batch_and_keeps_its_statistics(make):
    norm = make(2)
    buffers = dict(norm.named_buffers())
    x = torch.randn(4, 2, 3, 3) + 3
    with frozen(norm, "train"):
        y = norm(x)
    torch.testing.assert_close(y, nn.functional.batch_norm(x, None, None, training=True))
    assert norm.training
    assert all(buffers[name] is buffer for name, buffer in norm.named_buffers())
    assert int(norm.num_batches_tracked) == 0


def test_it_is_folded():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    net[1].running_mean.fill_(0.5)
    share_statistics(net)
    folding = Folding(net)
    folding.refresh()
    assert len(list(folding.net.graph.nodes)) == 3  # input, convolution, output
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(folding.net(x), net(x))

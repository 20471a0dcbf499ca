import copy

import pytest
import torch
from torch import nn

from lightning_paf.nn.modes import buffers_kept, frozen
from lightning_paf.nn.sync_batch_norm import share_statistics


class Counter(nn.Module):
    """Writes a buffer in every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("absent", None)

    def forward(self, x):
        self.calls += 1
        return x


def network():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), Counter(), nn.Flatten(), nn.Linear(16, 3)
    )
    net[1].eval()  # a caller that keeps its statistics fixed
    net[5].bias.requires_grad_(False)
    return net


def state(net):
    return (
        [module.training for module in net.modules()],
        [parameter.requires_grad for parameter in net.parameters()],
        copy.deepcopy(net.state_dict()),
        [id(tensor) for tensor in [*net.parameters(), *net.buffers()]],
    )


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(before[2][key], after[2][key]) for key in before[2])
    assert before[3] == after[3]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_inside(mode):
    net = network()
    with frozen(net, mode):
        assert all(module.training == (mode == "train") for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_train_mode_restores_everything(fails):
    net = network()
    before = state(net)
    try:
        with frozen(net, "train"):
            net(torch.rand(8, 1, 4, 4))
            assert net[3].calls == 1
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert_same(before, state(net))


def test_eval_mode_restores_flags_when_the_body_fails():
    net = network()
    before = state(net)
    with pytest.raises(RuntimeError, match="body"), frozen(net):
        raise RuntimeError("body")
    assert_same(before, state(net))


def test_train_mode_normalises_with_the_batch():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(100.0)
    with frozen(norm, "train"):
        out = norm(torch.rand(16, 2, 4, 4))
    assert out.mean().abs() < 1e-5
    assert (norm.running_mean == 100).all()
    assert norm.num_batches_tracked == 0


def test_a_graph_from_before_survives():
    # TRADES: clean forward pass, attack, then backward through both.
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    net.eval()
    clean = net(torch.rand(3, 1, 4, 4)).sum()
    with frozen(net, "train"):
        net(torch.rand(3, 1, 4, 4))
    clean.backward()
    assert net[0].weight.grad.isfinite().all()


def test_shared_modules_and_parameters():
    act = nn.PReLU()
    net = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    with frozen(net):
        assert not act.weight.requires_grad
    assert act.weight.requires_grad


def test_nested():
    net = network()
    before = state(net)
    with frozen(net, "train"), frozen(net, "eval"):
        assert not net.training
    assert_same(before, state(net))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("convert", [share_statistics, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_norms_that_share_their_statistics_train_on_after_buffers_were_kept(convert, alone):
    net = network()
    net = convert(net) or net
    before = state(net)
    with buffers_kept(net, alone):
        assert net[0].training
        assert net[1].training is False
    assert_same(before, state(net))
    net.train()
    with buffers_kept(net, alone):
        assert net[1].training is not alone
    assert net[1].training


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be eval or train"), frozen(nn.Linear(1, 1), "test"):
        pass

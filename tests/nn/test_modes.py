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
    assert before[:2] == after[:2]
    torch.testing.assert_close(before[2], after[2], rtol=0, atol=0)
    assert before[3] == after[3]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_even_after_an_exception(fails, mode):
    net = network()
    before = state(net)
    try:
        with frozen(net, mode):
            assert all(module.training == (mode == "train") for module in net.modules())
            assert not any(parameter.requires_grad for parameter in net.parameters())
            if mode == "train":
                net(torch.rand(8, 1, 4, 4))
                assert net[3].calls == 1
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert_same(before, state(net))


def test_train_mode_normalises_with_the_batch():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(100.0)
    with frozen(norm, "train"):
        out = norm(torch.rand(16, 2, 4, 4))
    assert out.mean().abs() < 1e-5
    assert (norm.running_mean == 100).all()
    assert norm.num_batches_tracked == 0


def test_an_earlier_graph_stays_valid():
    # TRADES: clean forward pass, attack, then backward through both.
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    net.eval()
    clean = net(torch.rand(3, 1, 4, 4)).sum()
    with frozen(net, "train"):
        net(torch.rand(3, 1, 4, 4))
    clean.backward()
    assert net[0].weight.grad.isfinite().all()


def test_shared_parameters_are_restored():
    act = nn.PReLU()
    net = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    with frozen(net):
        assert not act.weight.requires_grad
    assert act.weight.requires_grad


def test_contexts_can_be_nested():
    net = network()
    before = state(net)
    with frozen(net, "train"), frozen(net, "eval"):
        assert not net.training
    assert_same(before, state(net))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("convert", [share_statistics, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_synchronised_norms_are_restored(convert, alone):
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


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be eval or train, got 'test'"), frozen(nn.Linear(1, 1), "test"):
        pass

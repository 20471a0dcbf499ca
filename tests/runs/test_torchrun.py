"""Settings of jobs started by torchrun, and synchronised batch normalisation."""

import pytest
import torch
from torch import nn

from lightning_paf.nn.sync_batch_norm import CpuSyncBatchNorm
from lightning_paf.runs.torchrun import SyncBatchNormOnAnyDevice, follow_torchrun


@pytest.fixture
def torchrun(monkeypatch):
    """Set the variables of torchrun: processes in total, on this machine, machines."""

    def launch(world: int, local: int, groups: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        for name, number in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", local), ("GROUP_WORLD_SIZE", groups)):
            monkeypatch.setenv(name, str(number))

    return launch


def test_without_torchrun_nothing_changes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    config = {"devices": "auto", "num_nodes": 2}
    follow_torchrun(config)
    assert config == {"devices": "auto", "num_nodes": 2}


@pytest.mark.parametrize("given", [{}, {"devices": "auto", "num_nodes": 1}, {"devices": 4, "num_nodes": 2}])
def test_devices_and_nodes_are_those_of_torchrun(torchrun, given, capsys, caplog):
    torchrun(8, 4, 2)
    follow_torchrun(given)
    assert given == {"devices": 4, "num_nodes": 2}
    assert not caplog.records


@pytest.mark.parametrize("devices", [[1, 3], "1,3", 2, "2"])
def test_matching_devices_are_kept(torchrun, devices):
    torchrun(2, 2, 1)
    config = {"devices": devices, "num_nodes": 1}
    follow_torchrun(config)
    assert config == {"devices": devices, "num_nodes": 1}


def test_replaced_options_are_logged(torchrun, caplog):
    torchrun(2, 2, 1)
    config = {"devices": 8, "num_nodes": 4}
    follow_torchrun(config)
    assert config == {"devices": 2, "num_nodes": 1}
    assert "torchrun has started 2 processes on each of 1 machines" in caplog.text
    assert "--trainer.devices 8 --trainer.num_nodes 4" in caplog.text


@pytest.mark.parametrize(("shared", "restarts", "warned"), [("True", 3, 1), ("True", 0, 0), ("False", 3, 0)])
def test_a_shared_store_with_restarts_is_warned_of(torchrun, monkeypatch, recwarn, shared, restarts, warned):
    torchrun(2, 2, 1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    follow_torchrun({})
    assert (
        len([warning for warning in recwarn if "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(warning.message)])
        == warned
    )


def test_machines_with_different_numbers_of_processes_are_refused(torchrun):
    torchrun(3, 2, 2)
    with pytest.raises(ValueError, match=r"3 from torchrun on 2 machines, 2 of them on this one.*--nproc-per-node"):
        follow_torchrun({})


def test_batch_norm_is_replaced_and_restored():
    class OnTheCPU(nn.Sequential):
        device = torch.device("cpu")

    model = OnTheCPU(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(2)))
    tensors = list(model.state_dict(keep_vars=True).values())
    shared = SyncBatchNormOnAnyDevice().apply(model)
    assert isinstance(shared[1], CpuSyncBatchNorm)
    assert isinstance(shared[2][0], CpuSyncBatchNorm)
    restored = SyncBatchNormOnAnyDevice().revert(shared)
    assert [type(module) for module in (restored[1], restored[2][0])] == [nn.BatchNorm2d, nn.BatchNorm1d]
    assert all(
        ours is theirs for ours, theirs in zip(tensors, restored.state_dict(keep_vars=True).values(), strict=True)
    )


def test_other_devices_use_the_module_of_torch():
    assert isinstance(SyncBatchNormOnAnyDevice().apply(nn.Sequential(nn.BatchNorm2d(2)))[0], nn.SyncBatchNorm)

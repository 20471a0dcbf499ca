"""The choice of the precision of searches."""

import pytest
import torch

from lightning_paf.speed.search_precision import check_search_precision, has_fast_bf16, resolved

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("fast", [False, True])
def test_auto_is_bf16_on_a_cpu_with_such_instructions(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert has_fast_bf16(CPU) is fast
    assert resolved("auto", CPU) == ("bf16" if fast else "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_gpus_since_compute_capability_8(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolved("auto", GPU) == expected


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_auto_is_fp32_on_other_devices(device):
    assert resolved("auto", torch.device(device)) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_given_precision_is_kept(monkeypatch, precision, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert resolved(precision, CPU) == precision


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="search_precision must be fp32, bf16 or auto, got 'fp16'"):
        check_search_precision("fp16")

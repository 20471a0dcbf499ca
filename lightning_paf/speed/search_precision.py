"""The choice of the precision of searches by the device."""

from typing import Literal, get_args

import torch

from lightning_paf.speed.search_model import Precision

SearchPrecision = Literal["fp32", "bf16", "auto"]
"""Precision of a search, or `auto` for the faster one of the device."""

_AMPERE = 8
"""Major compute capability of the first GPUs with bfloat16 units."""


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 numbers.

    These are GPUs from compute capability 8.0, and CPUs with AVX512-bf16, which include those with AMX. Elsewhere
    bfloat16 is emulated, or its speed was not measured.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _AMPERE
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def resolved(precision: SearchPrecision, device: torch.device) -> Precision:
    """Replace `auto` by bf16 where `has_fast_bf16`, otherwise by fp32."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def check_search_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        ValueError: It is none of fp32, bf16 and auto.
    """
    if precision not in get_args(SearchPrecision):
        raise ValueError(f"search_precision must be fp32, bf16 or auto, got {precision!r}. Pass fp32.")

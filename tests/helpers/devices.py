"""The devices of tests that also run on a GPU."""

import os
from collections.abc import Callable

import pytest
import torch

DEVICE = os.environ.get("PAF_TEST_DEVICE", "cuda")
"""Device of the tests with the marker `gpu`; `cpu` rehearses them."""

_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param(DEVICE, id="gpu", marks=_MARKS)])


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test on a GPU only."""
    for mark in _MARKS:
        test = mark(test)
    return test

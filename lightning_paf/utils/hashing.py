"""Fingerprints of weights, of samples and of the code that judges them: SHA-256, the same on every machine."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lightning_paf

_JUDGING_CODE = ("attacks", "functional", "evaluation", "nn")


def weights_fingerprint(model: nn.Module) -> str:
    """Fingerprint of all parameters and buffers of a model, in hexadecimal digits.

    Names, types and shapes count as much as values; the device does not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def sample_fingerprints(x: Tensor, y: Tensor) -> NDArray[np.uint8]:
    """Fingerprint of each image together with its label, (N, 32).

    Args:
        x: Images (N, C, H, W), float32.
        y: Labels (N,), int64.
    """
    shape = str(tuple(x.shape[1:])).encode()
    digests = [
        hashlib.sha256(shape + tensor_bytes(image) + tensor_bytes(label)).digest()
        for image, label in zip(x.float(), y.long(), strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


@cache
def code_fingerprint() -> str:
    """Fingerprint of the version and of every source file that has a part in a verdict."""
    package = Path(lightning_paf.__file__).parent
    digest = hashlib.sha256(lightning_paf.__version__.encode())
    for unit in _JUDGING_CODE:
        for path in sorted((package / unit).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a tensor in row-major order (little-endian machines; all that PyTorch supports are)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

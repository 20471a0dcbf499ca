"""SHA-256 fingerprints of weights, samples and evaluation code.

They are the same on every machine.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lightning_paf

_EVALUATION_CODE = ("attacks", "functional", "evaluation", "nn", "speed", "utils")
_SOURCES = (".py", ".c", ".h")


def weights_fingerprint(model: nn.Module) -> str:
    """Fingerprint of all parameters and buffers of a model, in hexadecimal digits.

    It covers names, types, shapes and values, but not the device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def sample_fingerprints(x: Tensor, y: Tensor) -> NDArray[np.uint8]:
    """Fingerprints of images with their labels, (N, 32).

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


def tensors_fingerprint(tensors: Iterable[Tensor]) -> str:
    """Fingerprint of the types, shapes and values of tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor_bytes(tensor))
    return digest.hexdigest()


@cache
def code_fingerprint() -> str:
    """Fingerprint of the version and the source code of evaluations.

    It ignores comments, docstrings and layout of Python files.
    """
    package = Path(lightning_paf.__file__).parent
    digest = hashlib.sha256(lightning_paf.__version__.encode())
    for unit in _EVALUATION_CODE:
        for path in sorted((package / unit).rglob("*.*")):
            if path.suffix in _SOURCES:
                digest.update(path.relative_to(package).as_posix().encode() + b"\n" + _code_of(path))
    return digest.hexdigest()


def _code_of(path: Path) -> bytes:
    source = path.read_bytes()
    if path.suffix != ".py":
        return source
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Content of a tensor in row-major order, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

"""A short name for the contents of tensors."""

import hashlib
from collections.abc import Iterable

from torch import Tensor


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits that change with every value, so that a record shows what was used."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]

"""Comparison of a network with its export: logits and misclassified images."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_paf.functional.predictions import misclassified
from lightning_paf.interop.checkpoint_file import read_checkpoint
from lightning_paf.interop.normalized_net import NormalizedNet, bare_net
from lightning_paf.interop.onnx_model import OnnxModel
from lightning_paf.nn.classifier import Classifier

TOLERANCE = 1e-4
"""Maximum difference of logits, relative to the largest logit if that is above 1.

Another order of summation changes logits by about 1e-6."""

RULE = f"The tolerance is {TOLERANCE:g}, relative to the largest logit if that is above 1:"
MAX_NAMED = 10


class Row(NamedTuple):
    """Comparison of the logits of one image.

    Attributes:
        difference: Relative difference of the logits.
        wrong: Whether the network misclassifies the image.
        export_wrong: Whether the export misclassifies it.
    """

    difference: float
    wrong: bool
    export_wrong: bool


@dataclass(frozen=True)
class Parity:
    """Comparison on images of one kind, such as `test image`, with a row for each."""

    kind: str
    rows: tuple[Row, ...]

    @property
    def mismatches(self) -> tuple[str, ...]:
        """Images whose logits differ by more than `TOLERANCE`.

        Formatted as `test image 3: logits differ by 2.1e-01`.
        """
        which = {(True, False): ", only the network is wrong", (False, True): ", only the export is wrong"}
        return tuple(
            f"{self.kind} {index}: logits differ by {row.difference:.1e}{which.get(row[1:], '')}"
            for index, row in enumerate(self.rows)
            if row.difference > TOLERANCE
        )

    def __str__(self) -> str:
        """Largest difference and numbers of misclassified images, in one line."""
        wrong = [row for row in self.rows if row.wrong]
        return (
            f"{len(self.rows)} {self.kind}s: logits differ by at most {max(row.difference for row in self.rows):.1e}; "
            f"the network misclassifies {len(wrong)}, the export {sum(row.export_wrong for row in wrong)} of these"
        )


@torch.no_grad()
def compare(network: nn.Module, export: nn.Module, batches: Iterable[tuple[str, Tensor, Tensor]]) -> tuple[Parity, ...]:
    """Compare the logits of two networks that should be equal.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        export: The exported network.
        batches: Kind, images (N, C, H, W) and labels (N,).

    Returns:
        One comparison for each kind of images.
    """
    rows: dict[str, list[Row]] = {}
    for kind, x, y in batches:
        ours, theirs = network(x).float(), export(x).float()
        differences = (ours - theirs).abs().amax(1) / ours.abs().amax(1).clamp(min=1)
        wrong = [misclassified(logits, y).tolist() for logits in (ours, theirs)]
        found = zip(differences.nan_to_num(nan=float("inf")).tolist(), *wrong, strict=True)
        rows.setdefault(kind, []).extend(Row(*row) for row in found)
    return tuple(Parity(kind, tuple(found)) for kind, found in rows.items())


def load_export(path: Path, model: Classifier) -> nn.Module:
    """Load an exported network, as another program would.

    Args:
        path: ONNX file, safetensors file, or state dict without normalisation.
        model: The exported network; not modified.

    Returns:
        Images in [0, 1] to logits, on the device of `model`.
    """
    if path.suffix == ".onnx":
        return OnnxModel(path)
    file = read_checkpoint(path)
    net, statistics = bare_net(copy.deepcopy(model))
    net.load_state_dict(file.choose().tensors)
    if path.suffix == ".safetensors":
        statistics = file.statistics
    if statistics is not None:
        net = NormalizedNet(net, list(statistics.mean), list(statistics.std)).to(model.mean.device)
    return net

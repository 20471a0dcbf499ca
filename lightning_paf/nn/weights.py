"""Weights of a classifier in the checkpoint of a training."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_paf.nn.classifier import Classifier

_PREFIX = "model."


def load_classifier(model: Classifier, checkpoint: Path) -> None:
    """Take over the weights of the classifier; what else the training has learned stays behind.

    Args:
        model: A classifier of the same architecture.
        checkpoint: File that a training wrote. Nothing in it is executed.

    Raises:
        ValueError: The file is no checkpoint of a training, or holds another network.
    """
    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # a damaged file fails in any way it likes
        raise ValueError(
            f"{checkpoint} is damaged or no checkpoint of a training ({type(error).__name__}). "
            "Pass a file that `fit` wrote: RUN/checkpoints/last.ckpt."
        ) from error
    mine = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
    difference = key_difference(model.state_dict(), mine)
    if difference:
        raise ValueError(
            f"{checkpoint} holds another network:\n{difference}\nPass the same --model.net and activation."
        )
    model.load_state_dict(mine)


def key_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], most: int = 5) -> str:
    """What a state dict lacks, has too much, or has in another shape; empty where nothing differs."""
    shapes = [
        f"{key}: {tuple(theirs[key].shape)} instead of {tuple(ours[key].shape)}"
        for key in ours.keys() & theirs.keys()
        if theirs[key].shape != ours[key].shape
    ]
    found = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "not expected": sorted(theirs.keys() - ours.keys()),
        "of another shape": sorted(shapes),
    }
    return "\n".join(
        f"  {len(keys)} {what}: {', '.join(keys[:most])}{', ...' if len(keys) > most else ''}"
        for what, keys in found.items()
        if keys
    )

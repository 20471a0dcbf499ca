"""Weights of networks in Lightning checkpoints."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec, dataset_spec
from lightning_paf.utils.files import checksum_error

_PREFIX = "model."


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of any network from a checkpoint of `fit`.

    Raises:
        ValueError: The file is not a checkpoint of `fit`, or holds another network.
    """
    mine, _ = _read(checkpoint)
    _check_keys(model, mine, checkpoint, "the same --model.net")
    model.load_state_dict(mine)


def load_classifier(model: Classifier, checkpoint: Path, fresh_head: bool = False) -> None:
    """Load the weights of the classifier from a checkpoint of `fit`.

    Other parameters of the training module are ignored.

    Args:
        model: A classifier of the same architecture.
        checkpoint: File written by `fit`. No code in it is executed.
        fresh_head: Whether the classification layer keeps its weights, e.g. for other classes.

    Raises:
        ValueError: The file is not a checkpoint of `fit`, holds another network, or one that was trained with another
            normalisation.
    """
    mine, saved = _read(checkpoint)
    if fresh_head:
        mine |= {f"net.{model.head_name}.{key}": value for key, value in model.head.state_dict().items()}
    hint = "the same --model.net and activation, or --model.init_head fresh for other classes"
    _check_keys(model, mine, checkpoint, hint)
    _check_normalisation(model, checkpoint, saved)
    model.load_state_dict(mine)


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the weights of `model` in a checkpoint, and the module's arguments."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = content["state_dict"]
        if damage := checksum_error(checkpoint):
            raise ValueError(damage)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{checkpoint} must be a checkpoint of `fit`, got a damaged or foreign file ({type(error).__name__}). "
            "Pass RUN/checkpoints/last.ckpt."
        ) from error
    mine = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
    return mine, content.get("hyper_parameters") or {}


def _check_keys(model: nn.Module, mine: Mapping[str, Tensor], checkpoint: Path, hint: str) -> None:
    """Check that weights are those of the network."""
    if difference := key_difference(model.state_dict(), mine):
        raise ValueError(f"{checkpoint} holds another network:\n{difference}\nPass {hint}.")


def _check_normalisation(model: Classifier, checkpoint: Path, saved: Mapping[str, Any]) -> None:
    """Check that the weights were trained with the normalisation of the model."""
    trained, normalizes = saved.get("normalize"), bool((model.mean != 0).any() or (model.std != 1).any())
    if trained not in (None, normalizes):
        raise ValueError(
            f"model.normalize must be {str(trained).lower()} for the weights of {checkpoint}, as in their training, "
            f"got {str(normalizes).lower()}. Pass --model.normalize {str(trained).lower()}."
        )
    spec = training_dataset({"hyper_parameters": saved})
    if spec is not None and not torch.equal(torch.tensor(spec.mean), model.mean.flatten().cpu()):
        warnings.warn(
            f"The weights of {checkpoint} were trained on images normalised by mean {spec.mean} and std {spec.std}, "
            f"got mean {model.mean.flatten().tolist()}. Fine-tuning starts with a lower accuracy.",
            stacklevel=2,
        )


def key_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], most: int = 5) -> str:
    """Describe missing and unexpected keys and different shapes; empty if none."""
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


def training_dataset(checkpoint: Mapping[str, Any]) -> DatasetSpec | None:
    """Return the dataset whose statistics a checkpoint's network uses.

    None means that there is no normalisation, or that the checkpoint does not record the dataset.
    """
    saved = checkpoint.get("hyper_parameters") or {}
    if not saved.get("normalize") or saved.get("dataset") is None:
        return None
    return dataset_spec(saved["dataset"], saved.get("num_classes"), saved.get("channels"))

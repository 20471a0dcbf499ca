"""Networks of timm and torchvision by name; both libraries are imported when a network is asked for."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from torch import nn


def timm_net(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Build a network of timm with fresh weights; nothing is downloaded.

    Args:
        name: As in `timm.list_models()`, with or without the tag of pretrained weights.
        num_classes: Width of the logits.
        **kwargs: Passed to `timm.create_model`, e.g. `in_chans=1` or `img_size=32` (in YAML under `dict_kwargs`), or
            `pretrained=True` to download weights.

    Raises:
        ValueError: timm has no network of this name.
    """
    import timm

    _check_name("timm", name, {*timm.list_models(), *timm.list_pretrained()})
    net: nn.Module = timm.create_model(name, num_classes=num_classes, **kwargs)
    return net


def torchvision_net(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Build a classification network of torchvision with fresh weights; nothing is downloaded.

    Args:
        name: As in `torchvision.models.list_models(module=torchvision.models)`.
        num_classes: Width of the logits.
        **kwargs: Passed to the constructor (in YAML under `dict_kwargs`), e.g. `aux_logits=False` for googlenet and
            inception_v3, whose training output is a tuple otherwise.

    Raises:
        ValueError: torchvision has no classification network of this name.
    """
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    net: nn.Module = models.get_model(name, num_classes=num_classes, **kwargs)
    return net


def _check_name(library: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that the library does not know, with the closest ones that it does."""
    if name in known:
        return
    close = get_close_matches(name, known, n=5, cutoff=0.5)
    remedy = f"Did you mean {', '.join(close)}?" if close else f"Names are listed by {library}'s list_models()."
    raise ValueError(f"{library} has no network called {name!r}. {remedy}")

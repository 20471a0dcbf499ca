"""Networks of timm and torchvision by name, imported on first use."""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn


class LibraryNet(nn.Module):
    """A network of a library, wrapped in a class for configurations.

    Args:
        net: The network itself.
        num_classes: Width of its logits.
    """

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits


class TimmNet(LibraryNet):
    """Any network of timm, by default with new weights.

    Pretrained weights, `--model.net.pretrained true`, are downloaded once from the Hugging Face Hub.

    Args:
        name: As in `timm.list_models()`, with or without the tag of pretrained weights, or with a source that timm
            resolves, such as `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.
        num_classes: Width of the logits.
        **kwargs: Passed to `timm.create_model`, e.g. `in_chans=1` or `img_size=32` (in YAML under `dict_kwargs`), or
            `pretrained=True`.

    Raises:
        ValueError: timm has no network of this name, or cannot build it with these arguments or without a network.
    """

    def __init__(self, name: str, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(timm_net(name, num_classes, **kwargs), num_classes)

    def get_classifier(self) -> nn.Module | None:
        """Layer that returns the logits, if timm names one."""
        own = getattr(self.net, "get_classifier", None)
        return None if own is None else own()


class TorchvisionNet(LibraryNet):
    """Any classification network of torchvision, with random weights.

    Args:
        name: As in `torchvision.models.list_models(module=torchvision.models)`.
        num_classes: Width of the logits.
        **kwargs: Passed to the constructor (in YAML under `dict_kwargs`), e.g. `aux_logits=False` for googlenet and
            inception_v3, whose training output is a tuple otherwise.

    Raises:
        ValueError: torchvision has no classification network of this name, or cannot build it with these arguments.
    """

    def __init__(self, name: str, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(torchvision_net(name, num_classes, **kwargs), num_classes)


def timm_net(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Build a network of timm with new weights; arguments and errors as in `TimmNet`."""
    import timm

    if ":" not in name:
        _check_name("timm", name, {*timm.list_models(), *timm.list_pretrained()})
    return _built("timm", name, lambda: timm.create_model(name, num_classes=num_classes, **kwargs))


def torchvision_net(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Build a network of torchvision with random weights.

    Arguments and errors are those of `TorchvisionNet`.
    """
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    return _built("torchvision", name, lambda: models.get_model(name, num_classes=num_classes, **kwargs))


def _built(library: str, name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network; any error of the library becomes one line."""
    try:
        return build()
    except Exception as error:  # of a download, a file or a constructor
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        hint = "Check the files and the network, or pass" if isinstance(error, OSError) else "Pass"
        raise ValueError(
            f"--model.net.name must be a network that {library} can build with these arguments, got {name!r} and "
            f"{type(error).__name__}: {reason}. {hint} other arguments, or another name."
        ) from error


def _check_name(library: str, name: str, known: Collection[str]) -> None:
    """Check a name, and list the closest known ones in the error."""
    if name in known:
        return
    close = get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Names are listed by {library}'s list_models()."
    raise ValueError(f"{library} has no network called {name!r}. {hint}")

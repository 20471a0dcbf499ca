"""Stages of a network, and replacement of their outputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import Tensor, nn

from lightning_paf.nn.swap import stage_paths


def stages(net: nn.Module) -> list[str]:
    """List the paths of a network's stages in the order of definition.

    This is usually the order of the forward pass.

    These are the stages of a ResNet or ConvNeXt and the blocks of a transformer, as for the scope `stage` of
    `swap_activations`, but without activations between them, as in a stem. A single stage is split into its parts. In a
    plain chain of layers, every activation ends a stage.
    """
    paths = stage_paths(net)
    containers = [path for path in paths if next(net.get_submodule(path).children(), None) is not None]
    if len(containers) == 1:
        return [f"{containers[0]}.{inner}" for inner in stages(net.get_submodule(containers[0]))]
    return containers or paths


@contextmanager
def changed_stage(net: nn.Module, number: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of a stage during one forward pass of `net`.

    `net` must not be compiled.

    Args:
        net: A network with at least `number` stages.
        number: Number of the stage, from 1.
        change: Maps the output of the stage, a tensor, to its replacement.
    """
    paths = stages(net)
    stage = net.get_submodule(paths[number - 1])
    # One activation object can end several stages.
    before = sum(net.get_submodule(path) is stage for path in paths[: number - 1])
    calls = count()

    def changed(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return change(output) if next(calls) == before else None

    with stage.register_forward_hook(changed):
        yield

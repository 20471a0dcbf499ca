"""The stages of a network, and how to change what leaves one of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import Tensor, nn

from lightning_paf.nn.swap import stage_paths


def stages(net: nn.Module) -> list[str]:
    """Paths of the stages of a network, in the order of its definition, which is that of the data in all usual ones.

    They are what `swap_activations` in the scope `stage` gives an activation each: the stages of a ResNet or ConvNeXt,
    the blocks of a transformer. Activations between them, as in a stem, are none, and a single one is looked into; but
    where a network is a plain chain of layers, every activation ends a stage.
    """
    paths = stage_paths(net)
    containers = [path for path in paths if next(net.get_submodule(path).children(), None) is not None]
    if len(containers) == 1:
        return [f"{containers[0]}.{inner}" for inner in stages(net.get_submodule(containers[0]))]
    return containers or paths


@contextmanager
def changed_stage(net: nn.Module, number: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of a stage during one forward pass of `net`, which must not be a compiled one.

    Args:
        net: A network with at least so many stages.
        number: Which one, from 1.
        change: The output of the stage, a tensor, to what goes on in its place.
    """
    paths = stages(net)
    stage = net.get_submodule(paths[number - 1])
    # One activation object may end several stages.
    before = sum(net.get_submodule(path) is stage for path in paths[: number - 1])
    calls = count()

    def changed(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return change(output) if next(calls) == before else None

    hook = stage.register_forward_hook(changed)
    try:
        yield
    finally:
        hook.remove()

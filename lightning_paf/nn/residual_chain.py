"""Decomposition of a residual network into embedding, blocks and head."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_paf.nn.modes import frozen


class ResidualChain:
    """A network as embedding, chain of blocks, and head.

    A block is a module with submodules whose input is the very output of the block before it. The chain is the longest
    one of a forward pass: the blocks of a ResNet or the encoder blocks of a transformer. Operations between two blocks
    would break the chain. The network is left unchanged.

    Args:
        model: Images (N, C, H, W) to logits, with a network of one or more blocks.
        x: Images for a forward pass in eval mode.

    Attributes:
        blocks: The blocks by their path in `model`, in the order of the forward pass.

    Raises:
        ValueError: The network has no blocks.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = model
        paths = _longest_chain(model, x)
        if not paths:
            raise ValueError(
                "The network must have residual blocks that each run once, got "
                f"{type(getattr(model, 'net', model)).__name__}. Pass a ResNet or a vision transformer."
            )
        self.blocks = {path: model.get_submodule(path) for path in paths}

    def embed(self, x: Tensor) -> Tensor:
        """Input of the first block, for images (N, C, H, W)."""
        first = next(iter(self.blocks.values()))

        def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            raise _Reached(inputs[0])

        with first.register_forward_pre_hook(stop):
            try:
                self.model(x)
            except _Reached as reached:
                return reached.value
        raise RuntimeError("The forward pass must call the first block, as for the images of the constructor.")

    def head(self, z: Tensor, x: Tensor) -> Tensor:
        """Logits (N, num_classes) for outputs `z` of the last block.

        Args:
            z: Outputs of the last block, with a first dimension N.
            x: Any images (N, C, H, W); only parts of the network that bypass all blocks depend on their values.
        """
        *others, last = self.blocks
        with ExitStack() as restored:
            for path, stand_in in (*((path, nn.Identity()) for path in others), (last, _Constant(z))):
                self.model.set_submodule(path, stand_in)
                restored.callback(self.model.set_submodule, path, self.blocks[path])
            logits: Tensor = self.model(x)
        return logits

    def states(self, x: Tensor) -> list[Tensor]:
        """Input of the first block, and the outputs of all blocks."""
        found = [self.embed(x)]
        for block in self.blocks.values():
            found.append(block(found[-1]))
        return found


class _Reached(Exception):  # ends a forward pass early
    def __init__(self, value: Tensor) -> None:
        self.value = value


class _Constant(nn.Module):
    """Returns a constant instead of the output of a module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Tensor:
        return self.value


def _longest_chain(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Paths of the chain of modules with the most blocks.

    Each module gets the output of the one before. A block has submodules and is no container. Layers and containers
    join blocks where needed, as between the stages of a ConvNeXt; those before the first block belong to the embedding.
    """
    calls = _calls(model, x)
    paths = [path for path, _, _ in calls]
    chains: dict[int, tuple[str, ...]] = {}  # by the identity of the tensor at the end; `calls` keeps all of them

    def blocks(chain: tuple[str, ...]) -> tuple[int, int]:
        return sum(_is_block(model.get_submodule(path)) for path in chain), -len(chain)

    for path, before, after in calls:
        chain = (*chains.get(id(before), ()), path)
        if not _is_block(model.get_submodule(chain[0])):
            chain = chain[1:]
        changes = before is not after and before.ndim == after.ndim and paths.count(path) == 1
        if changes and blocks(chain) > blocks(chains.get(id(after), ())):
            chains[id(after)] = chain
    return max(chains.values(), key=blocks, default=())


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and type(module) not in (nn.Sequential, nn.ModuleList)


def _calls(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Path, input and output of every call of a module, in the order of their ends."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    with ExitStack() as hooks, frozen(model), torch.no_grad():
        for path, module in model.named_modules():

            def note(_: nn.Module, inputs: tuple[Any, ...], output: Any, path: str = path) -> None:
                if path and len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                    calls.append((path, inputs[0], output))

            hooks.enter_context(module.register_forward_hook(note))
        model(x)
    return calls

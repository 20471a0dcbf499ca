"""Options that accelerate a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lightning_paf.nn.activations import fuse_activations
from lightning_paf.nn.classifier import Classifier
from lightning_paf.speed.compiled_net import CompiledNet
from lightning_paf.speed.folded_model import FoldedModel
from lightning_paf.speed.recompute import recomputed_outputs


@dataclass(frozen=True)
class Speed:
    """Options for a faster training step, with equal results up to rounding.

    See docs/performance.md for measurements.

    Args:
        channels_last: Keep weights and images in the channels-last layout.
        fused: Compute parametric activations, and the sums for their parameters, by one kernel each: C on CPUs with a
            compiler, Triton on CUDA. Otherwise they are several torch operations, as in an evaluation.
        folded: Attack a copy of the network in eval mode with BatchNorm folded into the convolutions, and with weights
            in the precision of the training.
        recompute: Keep the inputs of parametric activations for the backward pass and recompute their outputs, which
            saves a quarter of the memory for a few percent of the time of a PGD-10 step.
        compile: Compile the network with `torch.compile`, once for the training pass, once for the pass without
            gradients, and once for the attack (if it is folded). For CUDA; on CPUs it takes longer than it saves.
    """

    channels_last: bool = True
    fused: bool = True
    folded: bool = True
    recompute: bool = True
    compile: bool = False

    def prepare(self, model: Classifier) -> None:
        """Prepare for training, before the model is wrapped for several devices."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        fuse_activations(model, self.fused)
        model.fast_forward = FoldedModel(model, compile=self.compile) if self.folded else None
        model.training_net = CompiledNet(model.net) if self.compile else None

    def restore(self, model: Classifier) -> None:
        """Undo `prepare`, so that evaluations are independent of these options."""
        model.to(memory_format=torch.contiguous_format)
        fuse_activations(model, False)
        model.fast_forward = model.training_net = None

    @contextmanager
    def step(self, model: Classifier) -> Iterator[None]:
        """Wrap the forward passes of a training step, including the attack."""
        if self.recompute and not self.compile:  # compilers have their own rules for recomputation
            with recomputed_outputs(model):
                yield
        else:
            yield

"""Fraction of the machine's bf16 matrix rate that a PGD training step reaches.

    python benchmarks/utilisation.py                                      # a small ResNet-18, on the CPU
    python benchmarks/utilisation.py --device cuda --net wrn28_10 --compile
    python benchmarks/utilisation.py --device cuda --net resnet18 --compile

The fraction counts multiplications and additions of convolutions and linear layers (`torch.utils.flop_counter`): the
pass without gradients for BatchNorm; for every attack step a forward pass and the gradient of the images; for the
update a forward pass and the gradient of the weights, which needs that of the activations, but not that of the images.
Recomputation and other work do not count. The rate is that of a large square matrix product in bf16, measured between
the steps.
"""

from collections.abc import Callable

import measure
import ours
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices: large enough for the full rate, small enough for many repeats."""
PRODUCTS = 10
"""Consecutive products, so that the launch time of the first one has no effect."""
TARGETS = {"wrn28_10": ">= 0.40 on CUDA", "resnet18": ">= 0.25 on CUDA"}
WARMUP = 2


def operations(model: nn.Module, x: Tensor, attack_steps: int) -> dict[str, int]:
    """Multiplications and additions of the three kinds of passes, and of the step.

    The gradient of a layer's input, and that of its weights, take as many operations as its forward pass.
    """
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    forward = counted(lambda: model(x))
    images, weights = 2 * forward, 3 * forward - counted(lambda: first(x))
    return {
        "forward": forward,
        "with gradient of the images": images,
        "with gradient of the weights": weights,
        "step": forward + attack_steps * images + weights,
    }


@torch.no_grad()
def counted(call: Callable[[], Tensor]) -> int:
    """Operations of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def main() -> None:
    options, device = ours.start(__doc__)
    x, y = ours.images(options, device)
    step = ours.OurStep(ours.module(options), device, options.precision)
    found = operations(ours.NETS[options.net](options.width).to(device), x[:1].clone(), options.steps)
    side = 256 if options.quick else MATRIX_SIZE[device.type]
    left, right = (torch.rand(side, side, device=device).bfloat16() for _ in range(2))
    calls = {"step": lambda: step(x, y), "products": lambda: [left @ right for _ in range(PRODUCTS)]}
    times = measure.interleaved(calls, options.repeats, WARMUP, device)
    needed = found["step"] * options.batch
    # The fastest product shows the machine's rate; slower ones were disturbed by other work.
    rate = PRODUCTS * 2 * side**3 / min(times["products"])
    name = f"{options.net}, width {options.width}, batch {options.batch}, PGD-{options.steps}, {options.precision}"
    fractions = measure.spread([needed / seconds / rate for seconds in times["step"]])
    rows = {
        f"share of the bf16 matrix rate: {name}": fractions | {"target": TARGETS.get(options.net)},
        "step, in forward passes": {"median": found["step"] / found["forward"]},
    }
    if device.type == "cuda":
        rows["matrix product, TFLOP/s"] = {"median": rate / 1e12}
        rows["step, milliseconds"] = measure.spread([1000 * seconds for seconds in times["step"]])
        rows["images a second"] = measure.spread([options.batch / seconds for seconds in times["step"]])
    measure.report(options, rows, operations_per_image=found)


if __name__ == "__main__":
    main()

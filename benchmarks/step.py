"""Time and memory of a training step with PSSiLU relative to ReLU, and to a textbook implementation.

    python benchmarks/step.py                                                  # ResNet-18 at half width, on the CPU
    python benchmarks/step.py --device cuda --net wrn28_10 --compile

Our steps are those of the GPU recipes: `RobustModule` with bf16 autocast and the default `Speed`, PGD-10, mixed
BatchNorm statistics. The textbook's step is in benchmarks/textbook.py: eager, fp32, PSSiLU by its formula.
"""

import argparse
from collections.abc import Callable

import measure
import ours
import textbook
import torch

from lightning_paf.nn.activations import PSSiLU, ReLU
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec

WARMUP = {"cpu": 1, "cuda": 3}
"""Steps before the measurement, for compilation, choice of algorithms and memory pools."""


def variants(options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    x, y = ours.images(options, device)
    steps = {
        activation.__name__: ours.OurStep(ours.module(options, activation()), device, options.precision)
        for activation in (PSSiLU, ReLU)
    }
    return {
        "PSSiLU": lambda: steps["PSSiLU"](x, y),
        "ReLU": lambda: steps["ReLU"](x, y),
        "textbook": textbook_step(options, device, x.contiguous(), y),
    }


def textbook_step(
    options: argparse.Namespace, device: torch.device, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    net, activation = ours.NETS[options.net](options.width), textbook.PlainPSSiLU()
    swap_activations(net, lambda: activation)
    spec = dataset_spec("cifar10")
    model = textbook.Normalized(net, spec.mean, spec.std).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return lambda: textbook.training_step(model, activation, optimizer, x, y, options.steps)


def main() -> None:
    options, device = ours.start(__doc__)
    calls = variants(options, device)
    times = measure.interleaved(calls, options.repeats, WARMUP[device.type], device)
    peaks = {name: float(measure.peak_memory(call, device)) for name, call in calls.items()}
    cuda = options.device == "cuda"
    rows: dict[str, dict[str, float | str]] = {
        "time, PSSiLU / ReLU": {
            **measure.ratios(times["PSSiLU"], times["ReLU"]),
            "target": "<= 1.05" if cuda else "<= 1.10",
        },
        "peak memory, PSSiLU / ReLU": {"median": peaks["PSSiLU"] / peaks["ReLU"], "target": "<= 1.05"},
        "time, PSSiLU / textbook": {
            **measure.ratios(times["PSSiLU"], times["textbook"]),
            "target": "<= 0.25" if cuda else "<= 0.45 with bf16 instructions",
        },
        "peak memory, PSSiLU / textbook": {"median": peaks["PSSiLU"] / peaks["textbook"]},
    }
    if cuda:
        rows |= {f"milliseconds, {name}": measure.spread([1000 * t for t in taken]) for name, taken in times.items()}
        rows |= {f"peak memory, {name}, MiB": {"median": peak / 2**20} for name, peak in peaks.items()}
    print(f"{options.net}, width {options.width}, batch {options.batch}, PGD-{options.steps}, {options.precision}\n")
    measure.report(options, rows)


if __name__ == "__main__":
    main()

"""Effect of each option of `Speed`: time and memory of a step without it relative to a step with all.

    python benchmarks/options.py
    python benchmarks/options.py --device cuda --net wrn28_10

The step is that of benchmarks/ours.py with PSSiLU and bf16 autocast: with the defaults, without each option alone,
without all options, and in fp32.
"""

import argparse
from dataclasses import fields, replace

import measure
import ours
import torch

from lightning_paf.speed.options import Speed

NONE = Speed(channels_last=False, fused=False, folded=False, recompute=False)


def variants(options: argparse.Namespace, device: torch.device) -> dict[str, ours.OurStep]:
    speeds = {"defaults": Speed()}
    speeds |= {
        f"without {f.name}": replace(Speed(), **{f.name: False}) for f in fields(Speed) if getattr(Speed(), f.name)
    }
    speeds["without any"] = NONE
    steps = {
        name: ours.OurStep(ours.module(options, speed=speed), device, options.precision)
        for name, speed in speeds.items()
    }
    return steps | {"in fp32": ours.OurStep(ours.module(options, speed=Speed()), device, "fp32")}


def main() -> None:
    options, device = ours.start(__doc__)
    x, y = ours.images(options, device)
    calls = {name: (lambda step=step: step(x, y)) for name, step in variants(options, device).items()}
    times = measure.interleaved(calls, options.repeats, 1, device)
    peaks = {name: measure.peak_memory(call, device) for name, call in calls.items()}
    rows = {}
    for name in list(calls)[1:]:
        rows[f"time, {name} / defaults"] = measure.ratios(times[name], times["defaults"])
        rows[f"peak memory, {name} / defaults"] = {"median": peaks[name] / peaks["defaults"]}
    print(f"{options.net}, width {options.width}, batch {options.batch}, PGD-{options.steps}, {options.precision}\n")
    measure.report(options, rows)


if __name__ == "__main__":
    main()

"""Episodes per second of few-shot segmentation: drawn alone, and trained on.

    python benchmarks/episodes.py

Synthetic slices of 32 x 32 pixels, 1 way, 1 shot, batches of 5, and the networks of `configs/segmentation/shapes.yaml`.
A training step is the draw, the loss, the backward pass and Adam. Rates are those of the time on the clock, and of the
time of the processor, which other programs on the machine do not count to.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from measure import parser, prepare, report, spread, synchronize

from lightning_paf.attacks import PGD
from lightning_paf.data import EpisodeDataModule
from lightning_paf.data.episode_set import EpisodeBatch
from lightning_paf.nets.few_shot import PNODE, FewShotSegmenter, PANet
from lightning_paf.objectives.segmentation import EpisodeCE, EpisodeObjective, RegularizedEpisodeCE

TARGET = 30
"""Episodes per second on two cores."""


def main() -> None:
    options = parse()
    device = prepare(options)
    data = EpisodeDataModule(batch_size=options.batch_size, epoch=50_000, subjects=options.subjects)
    data.setup("fit")
    batches = (
        data.on_after_batch_transfer(EpisodeBatch(*(part.to(device) for part in batch)), 0)
        for batch in data.train_dataloader()
    )
    rows = {}
    for name, step in variants(data, batches, device).items():
        step()
        found = [measured(step, device, options.steps) for _ in range(options.repeats)]
        for kind, rates in zip(("clock", "processor"), zip(*found, strict=True), strict=True):
            target = f">= {TARGET}" if kind == "clock" and name != "drawn" else None
            rows[f"{name}, {kind}"] = spread([options.batch_size * rate for rate in rates]) | {"target": target}
    report(options, rows)


def variants(
    data: EpisodeDataModule, batches: Iterator[EpisodeBatch], device: torch.device
) -> dict[str, Callable[[], object]]:
    """Functions that draw one batch, or train on it."""
    trained: dict[str, tuple[torch.nn.Module, EpisodeObjective]] = {
        "PANet": (PANet(), EpisodeCE()),
        "PNODE": (PNODE(), EpisodeCE()),
        "R-PNODE": (PNODE(), RegularizedEpisodeCE()),
    }
    steps: dict[str, Callable[[], object]] = {"drawn": lambda: next(batches)}
    for name, (net, objective) in trained.items():
        model = FewShotSegmenter(net, data.spec.mean, data.spec.std).to(device)
        steps[name] = training_step(model, objective, batches)
    return steps


def training_step(
    model: FewShotSegmenter, objective: EpisodeObjective, batches: Iterator[EpisodeBatch]
) -> Callable[[], None]:
    optimizer, attack = torch.optim.Adam(model.parameters(), lr=1e-3), PGD()

    def step() -> None:
        loss, _ = objective(model, next(batches), attack)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measured(step: Callable[[], object], device: torch.device, steps: int) -> tuple[float, float]:
    """Steps per second of the clock and of the processor."""
    synchronize(device)
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    synchronize(device)
    return steps / (time.perf_counter() - clock), steps / max(time.process_time() - processor, 1e-9)


def parse() -> argparse.Namespace:
    options = parser(__doc__, repeats=10)
    options.add_argument("--batch_size", type=int, default=5)
    options.add_argument("--subjects", type=int, default=60, help="synthetic volumes")
    options.add_argument("--steps", type=int, default=10, help="batches in one measurement")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.repeats, chosen.steps, chosen.batch_size, chosen.subjects = 2, 1, 2, 30
    return chosen


if __name__ == "__main__":
    main()

"""Training with and without the speed options: loss curves and robust accuracies.

    python benchmarks/equivalence.py --picture curves.png                  # the 8x8 digits
    python benchmarks/equivalence.py --data FOLDER --picture curves.png    # train.npz and test.npz, as `--data.root`

A ResNet-18 of width 8 with PSSiLU is trained by PGD-10 for 200 steps: in fp32 without the options of `Speed`, in fp32
with its defaults, and in bf16 with its defaults. With one seed, all variants have the same weights, batches and random
starts; later, rounding separates them as much as another seed would. A variant passes if the 95 % interval of its
difference from the first, in the mean loss of the last 50 steps, contains 0 (Welch, over `--repeats` seeds). The robust
accuracy is under PGD-20 in fp32, with the exact 95 % interval of the first seed.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import measure
import ours
import torch
from networks import tensors
from scipy.stats import ttest_ind
from torch import Tensor

from lightning_paf.attacks import PGD
from lightning_paf.data.sources import ImageSet, read_dataset
from lightning_paf.evaluation.statistics import Accuracy, exact_accuracy
from lightning_paf.nets import CifarResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.modes import frozen
from lightning_paf.objectives import AdversarialCE
from lightning_paf.specs import DatasetSpec, dataset_spec
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule
from lightning_paf.utils.figures import COLOURS, open_figure, save_figure

PLAIN = Speed(channels_last=False, fused=False, folded=False, recompute=False)
VARIANTS = {"fp32, plain": ("fp32", PLAIN), "fp32": ("fp32", Speed()), "bf16": ("bf16", Speed())}
"""Precision and speed options; the first variant is the baseline."""
DIGITS_EPS = 0.2
TAIL = 50
"""Number of compared steps."""
WINDOW = 20
"""Steps of the running mean in the figure."""


@dataclass(frozen=True)
class Task:
    """Training and test images (N, C, H, W) with labels, and eps."""

    spec: DatasetSpec
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    eps: float

    def attack(self, steps: int) -> PGD:
        return PGD(self.eps, step_size=self.eps / 4, steps=steps)


@dataclass(frozen=True)
class Run:
    """Loss of every step, and robust accuracy at the end."""

    losses: list[float]
    robust: Accuracy

    @property
    def tail(self) -> float:
        return mean(self.losses[-TAIL:])


def load(options: argparse.Namespace, device: torch.device) -> Task:
    spec = dataset_spec("npz", 10) if options.data else dataset_spec("digits")
    data = read_dataset(spec, options.data or Path("data"), download=False)

    def on_device(part: ImageSet) -> tuple[Tensor, Tensor]:
        x, y = tensors(part.images, part.labels)
        return x.to(device), y.to(device)

    test = on_device(data.test.take(slice(options.images)))
    return Task(spec, on_device(data.train), test, 8 / 255 if options.data else DIGITS_EPS)


def train(options: argparse.Namespace, task: Task, variant: str, seed: int, device: torch.device) -> Run:
    precision, speed = VARIANTS[variant]
    torch.manual_seed(seed)
    net = CifarResNet(18, in_channels=task.spec.channels, width=options.width)
    attack, classes = task.attack(options.steps), task.spec.num_classes if task.spec.name == "npz" else None
    with ours.quiet():
        module = RobustModule(net, attack, AdversarialCE(), task.spec.name, classes, activation=PSSiLU(), speed=speed)
    step = ours.OurStep(module, device, precision)
    layout = torch.channels_last if speed.channels_last else torch.contiguous_format
    batches = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(options.updates):
        chosen = torch.randint(len(task.train[1]), (options.batch,), generator=batches).to(device)
        x, y = (part[chosen] for part in task.train)
        losses.append(step(x.contiguous(memory_format=layout), y))
    speed.restore(module.model)
    return Run([loss.item() for loss in losses], robust(module, task))


def robust(module: RobustModule, task: Task) -> Accuracy:
    x, y = task.test
    with frozen(module.model):
        x_adv = task.attack(20)(module.model, x, y)
        with torch.no_grad():
            return exact_accuracy(int((module.model(x_adv).argmax(1) == y).sum()), len(y))


def compared(runs: Mapping[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Rows of final losses and robust accuracies, and the comparison with the first variant."""
    first, *others = runs
    base = [run.tail for run in runs[first]]
    rows: dict[str, dict[str, Any]] = {}
    for name, seeds in runs.items():
        rows[f"loss of the last {TAIL} steps, {name}"] = measure.spread([run.tail for run in seeds])
    for name in others:
        interval = ttest_ind([run.tail for run in runs[name]], base, equal_var=False).confidence_interval(0.95)
        rows[f"mean loss, {name} minus {first}, 95 % interval"] = {
            "median": mean(run.tail for run in runs[name]) - mean(base),
            "min": float(interval.low),
            "max": float(interval.high),
            "target": f"contains 0: {'yes' if interval.low <= 0 <= interval.high else 'no'}",
        }
    for name, seeds in runs.items():
        spread = measure.spread([run.robust.value for run in seeds])
        rows[f"robust accuracy, {name}"] = spread | {"target": f"seed 0: {seeds[0].robust}"}
    return rows


def draw(runs: Mapping[str, list[Run]], file: Path) -> None:
    """Draw running means of the loss, one colour per variant."""
    with open_figure(7, 4) as figure:
        axes = figure.subplots()
        for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
            for seed, run in enumerate(seeds):
                width = min(WINDOW, -(-len(run.losses) // 4))
                curve = torch.tensor(run.losses).unfold(0, width, 1).mean(1)
                axes.plot(range(width, len(run.losses) + 1), curve, color=colour, lw=1, label="" if seed else name)
        axes.set(xlabel="step", ylabel=f"training loss, mean of {WINDOW} steps")
        axes.legend()
    save_figure(figure, file)


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--data", type=Path, help="folder with train.npz and test.npz of ten classes; default: digits")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="PGD steps")
    parser.add_argument("--updates", type=int, default=200, help="training steps")
    parser.add_argument("--images", type=int, default=500, help="test images for the robust accuracy")
    parser.add_argument("--picture", type=Path, help="file for the curves")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.steps, options.updates, options.images, options.repeats = 8, 4, 4, 20, 2
    device = measure.prepare(options)
    task = load(options, device)
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for seed in range(options.repeats):
        for name in VARIANTS:
            run = train(options, task, name, seed, device)
            runs[name].append(run)
            print(f"seed {seed}, {name}: loss {run.tail:.4f}, robust {run.robust}", flush=True)
    losses = {name: [run.losses for run in seeds] for name, seeds in runs.items()}
    print()
    measure.report(options, compared(runs), losses=losses)
    if options.picture:
        draw(runs, options.picture)


if __name__ == "__main__":
    main()

"""Sparsify the inputs of the activations of a trained run (MeanSparse)."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_paf.utils.arguments import command_parser, number, positive

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run
    from lightning_paf.nn.mean_sparse import MeanSparseNet

GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
CHECKPOINT = "mean_sparse.ckpt"


class Point(NamedTuple):
    """Accuracies on the validation images for one `alpha`."""

    alpha: float
    clean: float
    robust: float


def main(argv: list[str]) -> int:
    """Write a run with the sparsified network of another run."""
    options, rest = _parse(argv)
    if (options.out / "config.yaml").exists():
        raise ValueError(f"--out must be a folder without a run, got {options.out}. Pass another --out.")
    from rich.console import Console

    from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
    from lightning_paf.loading import load_run
    from lightning_paf.nn.mean_sparse import MeanSparseNet, fit_statistics

    run = load_run(checkpoint_of(options.run), options.config, options.device, rest)
    with Console(stderr=True, highlight=False).status("statistics of the training images") as status:
        sparse = MeanSparseNet(run.model.net, run.model.num_classes).to(run.device)
        run.model.net = sparse.eval().requires_grad_(False)
        images = fit_statistics(run.model, sparse, _training_batches(run))
        validation, points = _validation(run, options.examples), []
        for alpha in sorted({0.0, *options.grid}):
            status.update(f"PGD on validation images, alpha {alpha:g}")
            points.append(_evaluated(run, sparse, validation, alpha, options))
    best = chosen(points, options.drop)
    sparse.set_alpha(best.alpha)
    checkpoint = _write(options.out, run, options.config, best)
    print(f"Statistics of {images} training images before {len(sparse.sites())} activations")
    print("\n".join(_table(points, best)))
    print(f"Written: {checkpoint}. Check it for masked gradients, and evaluate it, with")
    print(f"lightning-paf sanity-check --ckpt {checkpoint}")
    print(f"lightning-paf test --ckpt_path {checkpoint}")
    return 0


def chosen(points: "Sequence[Point]", drop: float) -> Point:
    """The most robust point with a small loss of clean accuracy, at most `drop`.

    Of equals, the one with the smallest `alpha`.
    """
    plain = next(point for point in points if point.alpha == 0)
    allowed = [point for point in points if point.clean >= plain.clean - drop - 1e-9]
    return max(allowed, key=lambda point: (point.robust, -point.alpha))


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    epilog = "Amini et al. 2024, arXiv:2406.05927. The threshold is alpha standard deviations of each channel."
    parser = command_parser("mean-sparse", __doc__, epilog)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or checkpoint file")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="run folder to write")
    add_model_arguments(parser)
    add = parser.add_argument
    grid = ", ".join(f"{alpha:g}" for alpha in GRID)
    add("--grid", type=number(float, least=0), nargs="+", default=GRID, help=f"values of alpha (default: {grid})")
    add("--drop", type=number(float, least=0, most=1), default=0.01, help="allowed loss of clean accuracy (0.01)")
    add("--examples", type=positive, default=512, help="number of validation images (default: 512)")
    add("--steps", type=positive, default=20, help="steps of PGD (default: 20)")
    add("--seed", type=int, default=0, help="seed of PGD")
    return parser.parse_known_args(argv)


def _training_batches(run: "Run", size: int = 256) -> "Iterator[Tensor]":
    """Training images (n, C, H, W) in [0, 1], without augmentation."""
    import torch

    from lightning_paf.data.image_batches import as_floats

    run.datamodule.prepare_data("fit")
    run.datamodule.setup("fit")
    real: Any = run.datamodule.train_dataloader().dataset
    for first in range(0, len(real.real), size):
        yield as_floats(torch.from_numpy(real.real.images[first : first + size]).to(run.device))


def _validation(run: "Run", examples: int) -> "tuple[Tensor, Tensor]":
    """First validation images (N, C, H, W) in [0, 1] and their labels."""
    from lightning_paf.data.image_batches import as_floats

    raw: Any = run.datamodule.val_dataloader().dataset
    raw = raw.__getitems__(list(range(min(examples, len(raw)))))
    return as_floats(raw.images.to(run.device)), raw.labels.to(run.device)


def _evaluated(
    run: "Run",
    sparse: "MeanSparseNet",
    validation: "tuple[Tensor, Tensor]",
    alpha: float,
    options: argparse.Namespace,
) -> Point:
    """Clean accuracy, and that under PGD with both kinds of gradients."""
    import torch

    from lightning_paf.attacks import PGD
    from lightning_paf.attacks.sub_attack import seeded
    from lightning_paf.functional.predictions import misclassified

    sparse.set_alpha(alpha)
    training = run.module.attack
    length = 2.5 * float(training.eps) / options.steps
    attack = PGD(training.eps, norm=training.norm, step_size=length, steps=options.steps, best=True, fold=False)
    clean = robust = 0
    for x, y in zip(*(torch.split(part, 256) for part in validation), strict=True):
        with seeded(options.seed, run.device):
            attacked = [attack(run.model, x, y)]
            with sparse.straight_through():
                attacked.append(attack(run.model, x, y))
        with torch.no_grad():
            correct = [~misclassified(run.model(z), y) for z in (x, *attacked)]
        clean += int(correct[0].sum())
        robust += int((correct[0] & correct[1] & correct[2]).sum())
    count = len(validation[1])
    return Point(alpha, clean / count, robust / count)


def _write(out: Path, run: "Run", config_file: Path | None, best: Point) -> Path:
    """Write checkpoint and configuration."""
    import torch
    import yaml

    from lightning_paf.runs.checkpoints import AtomicCheckpointIO
    from lightning_paf.runs.config_file import run_of
    from lightning_paf.utils.files import write_whole

    text = (config_file or run_of(run.checkpoint) / "config.yaml").read_text()
    header = [line for line in text.splitlines()[:3] if line.startswith("#")]
    config = yaml.safe_load(text)
    config.pop("ckpt_path", None)
    model = config["model"].get("init_args", config["model"])
    name = "lightning_paf.nn.mean_sparse.MeanSparseNet"
    shapes = [list(site.mean.shape) for site in run.model.net.sites().values()]  # type: ignore[operator]
    model["net"] = {"class_path": name, "init_args": {"net": model["net"], "shapes": shapes}}
    old = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    kept = ("pytorch-lightning_version", "epoch", "global_step", "hyper_parameters", "imported")
    content = {key: old[key] for key in kept if key in old}
    content |= {"state_dict": run.module.state_dict(), "mean_sparse": best._asdict()}
    checkpoint = out / "checkpoints" / CHECKPOINT
    AtomicCheckpointIO().save_checkpoint(content, checkpoint)
    write_whole(out / "config.yaml", "\n".join([*header, yaml.safe_dump(config, sort_keys=False)]).encode())
    return checkpoint


def _table(points: "Sequence[Point]", best: Point) -> list[str]:
    lines = ["alpha  clean  PGD    (accuracy in % on validation images)"]
    return lines + [
        f"{point.alpha:5.2f}  {100 * point.clean:5.1f}  {100 * point.robust:5.1f}{'  chosen' * (point == best)}"
        for point in points
    ]

"""Training images by LADDER: moves towards class boundaries (Zhou et al., 2022)."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.analysis.base import Load, Progress, Report, TrainedRun, json_file, outputs_of, percent
from lightning_paf.functional.predictions import misclassified, predicted
from lightning_paf.synthesis.ladder.generator import Generator, train_generator
from lightning_paf.synthesis.ladder.moves import (
    Flips,
    LatentMoves,
    adaptive_eps,
    eps_for_fraction,
    flips_of,
    in_parts,
    latent_moves,
    random_directions,
)
from lightning_paf.utils.arguments import number, positive
from lightning_paf.utils.figures import sheet_png
from lightning_paf.utils.files import npz_bytes

CHECKPOINTS = 1

RECOGNISED = 0.75
"""Fraction of the accuracy that must remain after decoding, else a warning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `analyze ladder`."""
    parser.add_argument("--out", type=Path, required=True, help="npz file to write, for --data.synthetic")
    per_class = number(int, least=0)
    parser.add_argument(
        "--per-class", type=per_class, default=450, help="source images per class; 0 for all (default: 450)"
    )
    length = parser.add_mutually_exclusive_group()
    fraction, flip = number(float, above=0, most=1), "choose eps such that this fraction changes class (default: 0.3)"
    length.add_argument("--flip", type=fraction, default=0.3, metavar="P", help=flip)
    length.add_argument("--eps", type=number(float, above=0), metavar="E", help="fixed eps for all images")
    adaptive, until = number(float, least=0), "increase eps from E to at most MAX until the class changes"
    length.add_argument("--adaptive", type=adaptive, nargs=3, metavar=("E", "STEP", "MAX"), help=until)
    boundaries = number(int, least=2)
    parser.add_argument(
        "--svm-images", type=boundaries, default=200, help="images per class for the SVMs (default: 200)"
    )
    temperature, softmax = number(float, above=0), "softmax temperature of the attention (default: 1, as in the paper)"
    parser.add_argument("--temperature", type=temperature, default=1.0, help=softmax)
    parser.add_argument("--no-attention", action="store_true", help="use linear SVMs without attention")
    parser.add_argument("--random-directions", action="store_true", help="control: move along random directions")
    parser.add_argument("--epochs", type=positive, default=200, help="epochs of the generator (default: 200)")
    parser.add_argument("--width", type=positive, default=64, help="channels of the generator (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def analyze(options: argparse.Namespace, load: Load, progress: Progress) -> Report:
    """Train a generator, fit the boundaries, move and decode."""
    if options.out.suffix != ".npz":
        raise ValueError(f"--out must be an npz file, got {options.out}. Pass --out NAME.npz.")
    if options.out.exists() and not options.force:
        raise ValueError(f"{options.out} exists. Pass another --out, or --force to overwrite it.")
    (checkpoint,) = options.ckpt
    torch.manual_seed(options.seed)
    run = load(checkpoint)
    images, labels, features, accuracy = _training_images(run)
    generator = Generator(features.shape[1], images.shape[1:], options.width).to(run.device)
    train_generator(generator, features, images, epochs=options.epochs, progress=progress)
    generator.eval()
    decoded = _accuracy(in_parts(nn.Sequential(generator, run.model), features), labels)
    moves = latent_moves(
        features,
        labels,
        run.model.num_classes,
        per_class=options.per_class,
        svm_images=options.svm_images,
        attention=not options.no_attention,
        temperature=options.temperature,
        seed=options.seed,
        progress=progress,
    )
    if options.random_directions:
        moves = random_directions(moves, options.seed)
    progress("lengths of the moves")
    eps = _lengths(options, flips_of(run.model, generator, moves), moves.z)
    made = (255 * in_parts(generator, moves.moved(eps))).round().byte()
    plain, sources = in_parts(generator, moves.z), images[moves.rows.cpu()]
    shown = torch.linspace(0, len(made) - 1, 20).long()
    rows = torch.stack([row.cpu()[shown].float() for row in (sources, 255 * plain, made)])
    found = _metrics(run, sources, plain, made, moves, eps)
    warning = _warning(options, accuracy, decoded) if decoded < RECOGNISED * accuracy else []
    files = {
        options.out: _archive(made, moves.labels),
        options.out.with_suffix(".json"): json_file(found),
        options.out.with_suffix(".png"): sheet_png((rows / 255).permute(0, 1, 3, 4, 2).numpy()),
    }
    return Report([*warning, *(f"{name}: {value:.4g}" for name, value in found.items())], files)


def _training_images(run: TrainedRun) -> tuple[Tensor, Tensor, Tensor, float]:
    """Training images (N, C, H, W) uint8, labels, features (N, d), and accuracy.

    Held-out images are excluded. Labels and features are on the device of the run.
    """
    run.datamodule.prepare_data()
    run.datamodule.setup("fit")
    real = run.datamodule.train_dataloader().dataset.real
    images = torch.from_numpy(real.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(real.labels).to(run.device)
    found = outputs_of(run, images)
    return images, labels, found.features, _accuracy(found.logits, labels)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((~misclassified(logits, labels)).float().mean())


def _warning(options: argparse.Namespace, accuracy: float, decoded: float) -> list[str]:
    return [
        f"Warning: the network classifies {percent(accuracy)} of the training images correctly,",
        f"but {percent(decoded)} after decoding, so the measured effect of moves is unreliable.",
        f"Train the generator longer, e.g. --epochs {max(200, 5 * options.epochs)}, or make it wider, "
        f"e.g. --width {max(64, 2 * options.width)}.",
    ]


def _lengths(options: argparse.Namespace, flips: Flips, z: Tensor) -> Tensor:
    if options.adaptive is not None:
        return adaptive_eps(flips, z, *options.adaptive)
    if options.eps is not None:
        return torch.full((len(z),), options.eps, device=z.device)
    return eps_for_fraction(flips, z, options.flip)


def _metrics(
    run: TrainedRun, sources: Tensor, plain: Tensor, made: Tensor, moves: LatentMoves, eps: Tensor
) -> dict[str, float]:
    """Effect of the moves, as plain numbers."""
    before, after = (images.to(run.device).float() / 255 for images in (sources, made))
    classes = [predicted(in_parts(run.model, batch)) for batch in (before, plain, after)]
    change = (after - before).flatten(1)
    return {
        "images": float(len(made)),
        "boundaries: accuracy on unseen examples": moves.svm_accuracy,
        "score before": float(moves.score.mean()),
        "score after, attention held": float((moves.score + eps * moves.gain).mean()),
        "eps": float(eps.mean()),
        "accuracy of the network on the images": float((classes[0] == moves.labels).float().mean()),
        "accuracy on the decoded images": float((classes[1] == moves.labels).float().mean()),
        "class changed by the move": float((classes[2] != classes[1]).float().mean()),
        "class of the target": float((classes[2] == moves.targets).float().mean()),
        "decoding: mean squared error": float((plain - before).square().mean()),
        "distance to the image, l2, median": float(change.norm(dim=1).median()),
        "distance to the image, linf, median": float(change.abs().amax(1).median()),
    }


def _archive(images: Tensor, labels: Tensor) -> bytes:
    """Shuffled images (N, C, H, W) uint8 and labels (N,) as an npz archive."""
    order = torch.randperm(len(images))
    image = images.cpu().permute(0, 2, 3, 1)[order].numpy()
    return npz_bytes(image=image, label=labels.cpu()[order].numpy().astype(np.int64))

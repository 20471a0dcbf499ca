"""Make LADDER's training images: features of training images moved towards class boundaries, and decoded."""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_paf.loading import Run
    from lightning_paf.synthesis.ladder.moves import Flips, LatentMoves

    Progress = Callable[[str], object]

RECOGNISED = 0.75
"""Share of the network's accuracy that decoding has to leave; below, a move changes less than decoding itself."""


def main(argv: list[str]) -> int:
    """Train a generator, fit the boundaries, move, decode; write images, picture and report.

    Args:
        argv: Options, see `--help`.

    Raises:
        ValueError: An option makes no sense, the output exists, or the run cannot be read.
    """
    options, rest = _parse(argv)
    _check(options)
    import torch
    from rich.console import Console

    from lightning_paf.loading import load_run
    from lightning_paf.synthesis.ladder.generator import Generator, train_generator
    from lightning_paf.synthesis.ladder.moves import flips_of, in_parts

    torch.manual_seed(options.seed)
    console = Console(stderr=True, highlight=False)
    with console.status("reading the run") as status:
        run = load_run(options.ckpt, options.config, options.device, rest)
        images, labels, features, accuracy = _training_images(run)
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        generator = Generator(features.shape[1], shape, options.width).to(run.device)
        train_generator(generator, features, images, epochs=options.epochs, progress=status.update)
        generator.eval()
        decoded = _accuracy(in_parts(torch.nn.Sequential(generator, run.model), features), labels)
        if decoded < RECOGNISED * accuracy:
            console.print(_doubt(options, accuracy, decoded), soft_wrap=True)
        moves = _moves(options, features, labels, run.model.num_classes, status.update)
        status.update("lengths of the moves")
        eps = _lengths(options, flips_of(run.model, generator, moves), moves.z)
        made = (255 * in_parts(generator, moves.moved(eps))).round().byte()
        plain = in_parts(generator, moves.z)
    found = _report(run, images, plain, made, moves, eps)
    print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()))
    _write(options.out, images[moves.rows.cpu()], plain, made, moves.labels, found)
    return 0


def _training_images(run: "Run") -> "tuple[Tensor, Tensor, Tensor, float]":
    """Training images uint8 (N, C, H, W) without those held out; labels and features (N, d) on the device; accuracy."""
    import torch

    run.datamodule.prepare_data()
    run.datamodule.setup("fit")
    real = run.datamodule.train_dataloader().dataset.real  # type: ignore[attr-defined]
    images = torch.from_numpy(real.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(real.labels).to(run.device)
    with torch.no_grad():
        parts = [run.model.outputs(part.to(run.device).float() / 255) for part in torch.split(images, 512)]
    accuracy = _accuracy(torch.cat([part.logits for part in parts]), labels)
    return images, labels, torch.cat([part.features for part in parts]), accuracy


def _accuracy(logits: "Tensor", labels: "Tensor") -> float:
    from lightning_paf.functional.predictions import misclassified

    return float((~misclassified(logits, labels)).float().mean())


def _doubt(options: argparse.Namespace, accuracy: float, decoded: float) -> str:
    return (
        "Warning: decoded images must look to the network like the images themselves, but of the training images it "
        f"recognises {100 * accuracy:.1f} %, and decoded, before any move, {100 * decoded:.1f} %: what moves change "
        f"means little then. Train the generator longer, e.g. --epochs {max(200, 5 * options.epochs)}, or make it "
        f"wider, e.g. --width {max(64, 2 * options.width)}."
    )


def _moves(
    options: argparse.Namespace, features: "Tensor", labels: "Tensor", num_classes: int, progress: "Progress"
) -> "LatentMoves":
    from lightning_paf.synthesis.ladder.moves import Fitting, latent_moves, random_directions

    fitting = Fitting(images=options.svm_images, attention=not options.no_attention, temperature=options.temperature)
    moves = latent_moves(
        features,
        labels,
        num_classes,
        per_class=options.per_class,
        fitting=fitting,
        seed=options.seed,
        progress=progress,
    )
    return random_directions(moves, options.seed) if options.random_directions else moves


def _lengths(options: argparse.Namespace, flips: "Flips", like: "Tensor") -> "Tensor":
    import torch

    from lightning_paf.synthesis.ladder.moves import adaptive_eps, eps_for_share

    if options.adaptive is not None:
        return adaptive_eps(flips, like, *options.adaptive)
    if options.eps is not None:
        return torch.full((len(like),), options.eps, device=like.device)
    return eps_for_share(flips, like, options.flip)


def _report(
    run: "Run", images: "Tensor", plain: "Tensor", made: "Tensor", moves: "LatentMoves", eps: "Tensor"
) -> dict[str, float]:
    """What the moves did, as plain numbers."""
    from lightning_paf.functional.predictions import predicted
    from lightning_paf.synthesis.ladder.moves import in_parts

    sources = images[moves.rows.cpu()].to(run.device).float() / 255
    moved = made.to(run.device).float() / 255
    seen = [predicted(in_parts(run.model, batch)) for batch in (sources, plain, moved)]
    change = (moved - sources).flatten(1)
    return {
        "images": float(len(moved)),
        "boundaries: accuracy on unseen examples": moves.svm_accuracy,
        "score before": float(moves.score.mean()),
        "score after, attention held": float((moves.score + eps * moves.gain).mean()),
        "eps": float(eps.mean()),
        "accuracy of the network on the images": float((seen[0] == moves.labels).float().mean()),
        "accuracy on the decoded images": float((seen[1] == moves.labels).float().mean()),
        "class changed by the move": float((seen[2] != seen[1]).float().mean()),
        "class of the target": float((seen[2] == moves.targets).float().mean()),
        "decoding: mean squared error": float((plain - sources).square().mean()),
        "distance to the image, l2, median": float(change.norm(dim=1).median()),
        "distance to the image, linf, median": float(change.abs().amax(1).median()),
    }


def _write(
    out: Path, sources: "Tensor", plain: "Tensor", made: "Tensor", labels: "Tensor", found: dict[str, float]
) -> None:
    """The images as `--data.synthetic` takes them; beside them a picture and the report."""
    import numpy as np
    import torch
    from matplotlib.image import imsave

    from lightning_paf.utils.files import explained, write_whole

    order = torch.randperm(len(made))
    archive = io.BytesIO()
    np.savez(
        archive, image=made.cpu().permute(0, 2, 3, 1).numpy()[order], label=labels.cpu().numpy()[order].astype(np.int64)
    )
    with explained(out, "the file of --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, archive.getvalue())
        write_whole(out.with_suffix(".json"), (json.dumps(found, indent=2) + "\n").encode())
        columns = torch.linspace(0, len(made) - 1, 20).long()
        decoded = (255 * plain).round().byte()
        rows = [part.cpu()[columns] for part in (sources, decoded, made)]
        imsave(out.with_suffix(".png"), _sheet(rows))
    print(f"Images: {out}; picture (image, decoded, moved and decoded) and report beside it")


def _sheet(rows: "list[Tensor]") -> "NDArray[np.uint8]":
    """Rows of images uint8 (k, C, H, W) as one large RGB image (H', W', 3)."""
    import numpy as np

    lines = []
    for row in rows:
        tiles = np.pad(row.permute(0, 2, 3, 1).numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(tiles), axis=1))
    sheet = np.concatenate(lines)
    zoom = max(1, 960 // sheet.shape[1])
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return np.ascontiguousarray(np.broadcast_to(sheet, (*sheet.shape[:2], 3)))


def _check(options: argparse.Namespace) -> None:
    for name, least in (("epochs", 1), ("width", 1), ("svm_images", 2), ("per_class", 0)):
        if getattr(options, name) < least:
            word = name.replace("_", "-")
            raise ValueError(f"{word} is at least {least}, but is {getattr(options, name)}. Pass --{word} {least}.")
    if not 0 < options.flip < 1:
        raise ValueError(f"flip is a share in (0, 1), but is {options.flip}. Pass --flip 0.3.")
    if not options.temperature > 0:
        raise ValueError(f"temperature is positive, but is {options.temperature}. Pass --temperature 1.")
    if options.out.suffix != ".npz":
        raise ValueError(f"The output is an npz file, but --out is {options.out}. Pass --out NAME.npz.")
    if options.out.exists() and not options.force:
        raise ValueError(f"{options.out} exists. Pass another --out, or --force to write over it.")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_run_arguments

    parser = argparse.ArgumentParser("lightning-paf ladder", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="npz file to write, for --data.synthetic")
    parser.add_argument("--per-class", type=int, default=450, help="source images of each class; 0: all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--flip", type=float, default=0.3, help="choose eps so that this share changes its class (0.3)")
    length.add_argument("--eps", type=float, help="one eps for all images instead")
    length.add_argument(
        "--adaptive",
        type=float,
        nargs=3,
        metavar=("START", "STEP", "MOST"),
        help="let eps grow until the class changes",
    )
    parser.add_argument("--svm-images", type=int, default=200, help="images of each class for the boundaries (200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the attention; the paper's is 1")
    parser.add_argument("--no-attention", action="store_true", help="ordinary linear boundaries")
    parser.add_argument("--random-directions", action="store_true", help="control: move along random directions")
    parser.add_argument("--epochs", type=int, default=200, help="of the generator (200)")
    parser.add_argument("--width", type=int, default=64, help="channels of the generator (64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    return parser.parse_known_args(argv)

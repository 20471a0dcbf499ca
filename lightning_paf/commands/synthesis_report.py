"""Measure quality and leaks of synthetic images: FID, recall, near copies."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.utils.arguments import command_parser, number

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress
    from torch import Tensor

    from lightning_paf.analysis.image_quality import ImageQuality
    from lightning_paf.analysis.leaks import Leaks
    from lightning_paf.data.sources import ImageSet
    from lightning_paf.evaluation.statistics import Accuracy
    from lightning_paf.loading import Run
    from lightning_paf.specs import DatasetSpec

    Sets = Mapping[str, ImageSet]
    """The sets `pool`, `training` and `test`."""

    Network = Callable[[Tensor], Sequence[Tensor]]
    """Maps images uint8 (N, C, H, W) to features (N, d).

    With a classifier, logits (N, num_classes) follow.
    """

BATCH_SIZE = 256

LISTED = 10
"""Classes in the printed table."""

UNITS = {"pixels": "RMS difference of pixels in [0, 1]", "features": "l2 distance of features"}


def main(argv: list[str]) -> int:
    """Print tables, write report and figures, and the cleaned pool if requested."""
    options, rest = _parse(argv)
    _check(options, rest)
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.analysis.base import Report
    from lightning_paf.analysis.image_quality import quality_table
    from lightning_paf.analysis.leaks import leak_content, leak_table
    from lightning_paf.commands.analyze import finish

    run = _load(options, rest)
    spec, sets = _read(options, run)
    network, device = _network(options, run)
    with Progress(console=Console(stderr=True, highlight=False)) as bar:
        outputs = _outputs(network, sets, device, bar)
        features = {name: found[0] for name, found in outputs.items()}
        quality = _quality(options, features, bar)
        leaks = _leaks(options, sets, features, device, bar)
    accuracies = _accuracies(outputs, sets)
    shape, source = sets["pool"].images.shape, "Inception v3" if options.inception else str(options.ckpt)
    lines = [
        f"{options.pool.name}: {shape[0]:,} images {shape[1:]} of {spec.num_classes} classes",
        f"Features: {features['pool'].shape[1]}, of {source}",
        *quality_table(quality, min(options.samples, len(sets["training"]))),
        *_accuracy_lines(accuracies),
        *leak_table(leaks),
    ]
    content = {
        **{name: getattr(options, name) for name in ("quantile", "threshold", "seed")},
        "pool": str(options.pool),
        "features_of": source,
        "images": {name: len(images) for name, images in sets.items()},
        "quality": {name: asdict(found) for name, found in quality.items()},
        "class_accuracy": {
            name: {key: asdict(value) for key, value in row.items()} for name, row in accuracies.items()
        },
        "leaks": leak_content(leaks),
    }
    return finish(Report(*_with_files(options, lines, content, sets, leaks)))


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from lightning_paf.loading import add_model_arguments

    parser = command_parser("synthesis-report", __doc__)
    add = parser.add_argument
    add("pool", type=Path, metavar="POOL.npz", help="synthetic images, as for --data.synthetic")
    _add_network_and_data(parser)
    add(
        "--samples",
        type=number(int, least=10),
        default=5000,
        help="most images of each set for FID, KID, precision and recall (default: 5000)",
    )
    add(
        "--quantile",
        type=number(float, least=0, most=1),
        default=0.01,
        help="a near copy is nearer to a real image than all but this fraction of the test images are to their nearest "
        "training image (default: 0.01)",
    )
    add("--threshold", type=number(float, least=0), help="RMS difference of near copies instead, pixels in [0, 1]")
    add(
        "--drop",
        type=Path,
        metavar="OUT.npz",
        help="write the pool without near copies of test images (pixels or features)",
    )
    add("--out", type=Path, help="folder of report.json and figures (default: POOL_report next to the pool)")
    add("--seed", type=int, default=0, help="seed of the random parts for FID and others")
    add_model_arguments(parser)
    return parser.parse_known_args(argv)


def _add_network_and_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ckpt",
        "--ckpt_path",
        type=Path,
        help="trained classifier for features and class accuracy; its run names the real images",
    )
    add(
        "--inception",
        action="store_true",
        help="features of torch-fidelity's Inception v3, as in published FIDs; its weights are downloaded once",
    )
    add("--dataset", help="without --ckpt: digits, cifar10, cifar100, svhn or npz")
    add("--root", type=Path, default=Path("data"), help="without --ckpt: folder of the real images")
    add("--num_classes", type=int, help="without --ckpt: only for npz")


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    if options.ckpt is None and not options.inception:
        raise ValueError(
            "A network must compute the features, got neither --ckpt nor --inception. Pass --ckpt "
            "RUN/checkpoints/last.ckpt of a trained classifier."
        )
    if options.ckpt is not None and options.dataset is not None:
        raise ValueError(
            f"--dataset must be left out with --ckpt, got {options.dataset}. Pass --data.dataset and --data.root to "
            "replace the data of the run."
        )
    if options.ckpt is None and options.dataset is None:
        raise ValueError("--dataset must name the real images, got no --dataset and no --ckpt. Pass --dataset digits.")
    if options.ckpt is None and rest:
        raise ValueError(f"Options of fit must come with --ckpt, got {' '.join(rest)}. Pass --dataset and --root.")
    if options.drop and options.drop.suffix != ".npz":
        raise ValueError(f"--drop must be an npz file, got {options.drop}. Pass --drop NAME.npz.")
    if options.drop and options.drop.exists():
        raise ValueError(f"{options.drop} exists. Pass another --drop.")


def _load(options: argparse.Namespace, rest: list[str]) -> "Run | None":
    from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
    from lightning_paf.loading import load_run

    if options.ckpt is None:
        return None
    return load_run(checkpoint_of(options.ckpt), options.config, options.device, rest)


def _read(options: argparse.Namespace, run: "Run | None") -> "tuple[DatasetSpec, Sets]":
    """Read and check all images."""
    from lightning_paf.analysis.image_quality import LEAST
    from lightning_paf.data.checks import check_labels, check_same_size
    from lightning_paf.data.sources import read_dataset, read_file
    from lightning_paf.specs import dataset_spec

    spec = run.datamodule.spec if run else dataset_spec(options.dataset, options.num_classes)
    real = read_dataset(spec, run.datamodule.root if run else options.root, download=True)
    pool = read_file(options.pool, spec.channels)
    check_same_size(pool.images.shape, real.train.images.shape, str(options.pool))
    check_labels(pool.labels, spec.num_classes, str(options.pool))
    if len(pool) < LEAST:
        raise ValueError(f"{options.pool}: there must be at least {LEAST} images, got {len(pool)}. Pass a larger pool.")
    return spec, {"pool": pool, "training": real.train, "test": real.test}


def _network(options: argparse.Namespace, run: "Run | None") -> "tuple[Network, torch.device]":
    import torch

    device = run.device if run else torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    inception = _inception().to(device) if options.inception else None

    def network(x: "Tensor") -> "Sequence[Tensor]":
        if inception is not None:
            features = inception(x.expand(-1, 3, -1, -1))
            return (features, run.model(x.float() / 255)) if run else (features,)
        assert run is not None  # see `_check`
        outputs = run.model.outputs(x.float() / 255)
        return outputs.features.flatten(1), outputs.logits

    if inception is None and run is not None:
        _ = run.model.head  # refuses a network without features
    return network, device


def _inception() -> "torch.nn.Module":
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(
            f"--inception must find the package torch-fidelity and its weights, got: {error} Install torch-fidelity, "
            "with network access at the first use, or pass --ckpt alone."
        ) from error


def _outputs(network: "Network", sets: "Sets", device: "torch.device", bar: "Progress") -> "dict[str, list[Tensor]]":
    """Features, and predicted classes of a classifier, for all sets, on the CPU."""
    import torch

    from lightning_paf.functional.predictions import predicted

    task = bar.add_task("features", total=sum(map(len, sets.values())))
    found = {}
    for name, images in sets.items():
        parts = []
        for part in torch.split(torch.from_numpy(images.images).permute(0, 3, 1, 2), BATCH_SIZE):
            with torch.no_grad():
                features, *logits = network(part.to(device))
            parts.append([features.cpu(), *(predicted(each).cpu() for each in logits)])
            bar.advance(task, len(part))
        found[name] = [torch.cat(column) for column in zip(*parts, strict=True)]
        if not found[name][0].isfinite().all():
            raise ValueError(f"Features must be finite, got NaN or infinity in the {name} set. Pass another --ckpt.")
    return found


def _leaks(
    options: argparse.Namespace, sets: "Sets", features: "Mapping[str, Tensor]", device: "torch.device", bar: "Progress"
) -> "dict[str, Leaks]":
    import torch

    from lightning_paf.analysis.leaks import find_leaks

    sizes = {name: len(images) for name, images in sets.items()}
    pixels = {name: torch.from_numpy(images.images).flatten(1) for name, images in sets.items()}
    scale = 1 / (255 * pixels["pool"].shape[1] ** 0.5)  # l2 of bytes to RMS in [0, 1]
    settings = {"pixels": (pixels, options.threshold, scale), "features": (features, None, 1.0)}
    found = {}
    for space, (vectors, threshold, factor) in settings.items():
        task = bar.add_task(f"nearest {space}", total=sum(sizes.values()) + sizes["pool"])

        def advance(rows: int, task: Any = task) -> None:
            bar.advance(task, rows)

        found[space] = find_leaks(vectors, options.quantile, threshold, factor, device, advance)
    return found


def _quality(
    options: argparse.Namespace, features: "Mapping[str, Tensor]", bar: "Progress"
) -> "dict[str, ImageQuality]":
    """Quality of test images, of as many samples, and of more samples if any."""
    import torch

    from lightning_paf.analysis.image_quality import image_quality

    def some(name: str, most: int) -> "Tensor":
        order = torch.randperm(len(features[name]), generator=torch.Generator().manual_seed(options.seed))
        return features[name][order[:most]]

    least = min(options.samples, len(features["test"]), len(features["pool"]))
    compared = {"test images": some("test", least), "pool, as many": some("pool", least)}
    if least < len(more := some("pool", options.samples)):
        compared["pool"] = more
    reference = some("training", options.samples)
    return {
        name: image_quality(part, reference, options.seed)
        for name, part in bar.track(compared.items(), description="FID, KID and recall")
    }


def _accuracies(outputs: "Mapping[str, list[Tensor]]", sets: "Sets") -> "dict[str, dict[str, Accuracy]]":
    """Accuracies of pool and test set: `all`, and each class by its number.

    Empty without a classifier.
    """
    from lightning_paf.evaluation.statistics import exact_accuracy

    found: dict[str, dict[str, Accuracy]] = {}
    for name in ("pool", "test"):
        for classes in outputs[name][1:]:
            labels = sets[name].labels
            correct = classes.numpy() == labels
            found[name] = {"all": exact_accuracy(int(correct.sum()), len(labels))}
            for label in sorted(set(labels.tolist())):
                mask = labels == label
                found[name][str(label)] = exact_accuracy(int(correct[mask].sum()), int(mask.sum()))
    return found


def _accuracy_lines(accuracies: "Mapping[str, Mapping[str, Accuracy]]") -> list[str]:
    """Accuracies of all images, and of the least accurate classes of the pool."""
    from lightning_paf.analysis.base import table

    if not accuracies:
        return []
    pool, test = accuracies.values()
    classes = sorted((label for label in pool if label != "all"), key=lambda label: pool[label].value)
    shown = sorted(classes[:LISTED], key=int)
    cells = [[f"{100 * row[label].value:.0f}" if label in row else "-" for label in shown] for row in (pool, test)]
    return [
        "",
        *table(("class accuracy, pool", str(pool["all"])), ("class accuracy, test images", str(test["all"]))),
        *table(
            ["lowest classes" if len(classes) > LISTED else "class", *shown],
            ["  pool, %", *cells[0]],
            ["  test images, %", *cells[1]],
        ),
    ]


def _with_files(
    options: argparse.Namespace, lines: list[str], content: Any, sets: "Sets", leaks: "Mapping[str, Leaks]"
) -> tuple[list[str], dict[Path, bytes]]:
    """Lines, with the number of dropped samples if requested, and all files."""
    from lightning_paf.analysis.base import json_file
    from lightning_paf.analysis.leaks import draw_distances, draw_pairs, near_test
    from lightning_paf.utils.figures import figure_png
    from lightning_paf.utils.files import npz_bytes

    out = options.out or options.pool.with_name(f"{options.pool.stem}_report")
    files = {}
    if options.drop:
        dropped = near_test(leaks).numpy()
        content["dropped"] = int(dropped.sum())
        lines = [*lines, f"Dropped as near copies of test images, in pixels or features: {content['dropped']:,}"]
        if dropped.all():
            lines.append(f"No sample is left: {options.drop} was not written.")
        else:
            kept = sets["pool"].take(~dropped)
            files[options.drop] = npz_bytes(image=kept.images, label=kept.labels)
    files[out / "report.json"] = json_file(content)
    files[out / "closest.png"] = figure_png(draw_pairs(leaks, {name: part.images for name, part in sets.items()}))
    files[out / "distances.png"] = figure_png(draw_distances(leaks, UNITS))
    return lines, files

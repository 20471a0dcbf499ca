"""Generate synthetic images with a diffusion model, or with Gaussian mixtures."""

import argparse
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_paf.runs.trust import TRUST, TRUST_HELP
from lightning_paf.utils.arguments import command_parser, number, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lightning_paf.data.sources import ImageSet
    from lightning_paf.loading import Run
    from lightning_paf.specs import DatasetSpec
    from lightning_paf.synthesis.diffusion import DiffusionGenerator
    from lightning_paf.synthesis.generator import ImageGenerator
    from lightning_paf.synthesis.pool import PoolSource

MIXTURE = "mixture"
OF_MIXTURE = {"components": 3, "pca": None, "val_size": None}
"""Default values of the options of the mixture."""
OF_DIFFUSION = {
    "sampler": "ddim",
    "sampling_steps": None,
    "guidance": 0.0,
    "batch_size": 500,
    "proportions": None,
    "filter": None,
    "keep": None,
    "pseudo_label": None,
    "device": None,
}
KEEP = Fraction(1, 5)
"""Fraction that `--filter` keeps by default, as Gowal et al. (2021) did."""
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun"}
LISTED = 20
"""Classes whose number of images is printed."""


def main(argv: list[str]) -> int:
    """Write the pool and a contact sheet."""
    options = _parse(argv)
    _check(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return _mixture(options) if options.source == MIXTURE else _diffusion(options)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser("synthesize", __doc__)
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        default=MIXTURE,
        metavar="RUN|NAME|mixture",
        help="run of `fit --model Diffusion`, or its checkpoint; diffusion pipeline of the Hugging Face Hub, or its "
        "folder; or mixture: Gaussians fitted to each class (default)",
    )
    add("--out", type=Path, required=True, help="npz file to write; a PNG is written next to it")
    add("--count", type=positive, default=10_000, help="images in total, equally many of each class (default: 10000)")
    add("--seed", type=number(int, least=0), default=0, help="seed of the images and their order")
    add("--force", action="store_true", help="overwrite an existing file")
    add(
        "--dataset",
        help="digits, cifar10, cifar100, svhn or npz: images to fit, or to show next to those of a diffusion model "
        "(default: digits for the mixture, else none)",
    )
    add("--root", type=Path, default=Path("data"), help="folder of the real images, as in --data.root")
    add("--num_classes", type=int, help="only for npz")
    _add_mixture(parser)
    _add_diffusion(parser)
    return parser.parse_args(argv)


def _add_mixture(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("mixture").add_argument
    add("--components", type=positive, help="Gaussians for each class; they share a covariance (default: 3)")
    add(
        "--pca",
        type=number(int, least=0),
        help="principal components of the images to fit; 0: fit the pixels (default: 128 for images of more than 256 "
        "values, else 0)",
    )
    add(
        "--val_size",
        type=positive,
        help="training images to leave out, at least the --data.val_size of `fit` (default: 1024, or half of the "
        "training images if that is fewer)",
    )


def _add_diffusion(parser: argparse.ArgumentParser) -> None:
    from lightning_paf.loading import add_device_argument

    group = parser.add_argument_group(
        "diffusion model",
        "An interrupted command resumes. Several processes of the same command, or of torchrun, share the work.",
    )
    add = group.add_argument
    add("--sampler", choices=list(SAMPLERS), help="default: ddim")
    add("--sampling_steps", type=positive, help="default: 50 for ddim, 1000 for ddpm, 18 for heun")
    add("--guidance", type=float, help="weight of classifier-free guidance (default: 0)")
    add("--batch_size", type=positive, help="images drawn together; changes the images (default: 500)")
    add(
        "--proportions",
        type=number(Fraction, least=0, most=1),
        nargs="+",
        metavar="P",
        help="fraction of each class, such as 0.1 or 1/3 (default: equal)",
    )
    add("--filter", type=Path, metavar="RUN", help="keep images of whose class the classifier of this run is most sure")
    add(
        "--keep",
        type=number(Fraction, above=0, most=1),
        help="with --filter: fraction of the drawn images of each class to keep (default: 0.2)",
    )
    add("--pseudo_label", type=Path, metavar="RUN", help="label unconditional images by the classifier of this run")
    add_device_argument(group, "all GPUs, else cpu")
    add(TRUST, action="store_true", dest="trust", help=TRUST_HELP)


def _check(options: argparse.Namespace) -> None:
    """Check the options, and set those of the source by default."""
    if options.out.suffix != ".npz":
        raise ValueError(f"--out must be an npz file, got {options.out}. Pass --out NAME.npz.")
    for path in (options.out, options.out.with_suffix(".png")):
        if path.exists() and not options.force:
            raise ValueError(f"{path} exists. Pass another --out, or --force to overwrite it.")
    own, other = (OF_MIXTURE, OF_DIFFUSION) if options.source == MIXTURE else (OF_DIFFUSION, OF_MIXTURE)
    for name in other:
        if getattr(options, name) is not None:
            hint = "a run or pipeline as --from" if other is OF_DIFFUSION else "--from mixture"
            raise ValueError(f"--{name} must be left out for --from {options.source}. Leave it out, or pass {hint}.")
    for name, value in own.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.keep is not None and options.filter is None:
        raise ValueError(
            f"--keep must come with --filter, got --keep {options.keep}. Pass --filter RUN of a classifier."
        )


def _mixture(options: argparse.Namespace) -> int:

    from lightning_paf.data.sources import hold_out
    from lightning_paf.synthesis.contact_sheet import save_contact_sheet
    from lightning_paf.synthesis.mixture import sample_mixture
    from lightning_paf.utils.files import npz_bytes, write_whole

    spec, train = _real(options, options.dataset or "digits", download=True)
    # Validation images must not influence the pool. A larger validation split contains every smaller one.
    fitted, _ = hold_out(train, options.val_size or min(1024, len(train) // 2))
    pool = sample_mixture(fitted, spec, options.count, options.components, options.pca, options.seed)
    write_whole(options.out, npz_bytes(image=pool.images, label=pool.labels))
    sheet = save_contact_sheet(fitted, pool, spec.num_classes, options.out)
    print(
        f"{options.out}: {len(pool)} images {pool.images.shape[1:]} of {spec.num_classes} classes, from a mixture of "
        f"{options.components} Gaussians per class, fitted on {len(fitted)} training images of {spec.name}; "
        f"contact sheet: {sheet}"
    )
    return 0


def _diffusion(options: argparse.Namespace) -> int:
    from lightning_paf.synthesis.contact_sheet import first_images, save_contact_sheet
    from lightning_paf.synthesis.pool import write_pool
    from lightning_paf.synthesis.pool_plan import PoolPlan
    from lightning_paf.utils.distributed import wait_for_torchrun
    from lightning_paf.utils.meter import Meter

    sources = [_source(options, device) for device in _devices(options.device)]
    generator, labeller = sources[0].generator, sources[0].labeller
    conditional, classes = generator.num_classes is not None, (labeller or generator).num_classes
    assert classes is not None  # `_source` checks it
    plan = PoolPlan(
        options.count,
        classes,
        conditional,
        options.batch_size,
        options.seed,
        options.proportions and tuple(options.proportions),
        options.filter and (options.keep or KEEP),
    )
    real = _real_like(options, generator, classes)
    wait_for_torchrun()
    with Meter("Drawing images", plan.drawn) as meter:
        written = write_pool(options.out, plan, sources, meter.update, options.force)
    if not written:
        print(f"{options.out}: written by another process")
        return 0
    images, labels = first_images(options.out)
    sheet = save_contact_sheet(real, images, classes, options.out)
    settings = generator.describe()
    kept = "" if plan.keep is None else f", the most certain of {plan.drawn} for {options.filter}"
    print(
        f"{options.out}: {plan.count} images {images.images.shape[1:]} of {classes} classes, from "
        f"{options.source}, {settings['sampler']} with {settings['sampler.steps']} steps{kept}; contact "
        f"sheet: {sheet}"
    )
    _print_classes(labels, classes, even=conditional and plan.proportions is None)
    return 0


def _devices(given: str | None) -> list[str]:
    """Return the device of this rank under torchrun, else all GPUs or the CPU."""
    import torch

    if given or not torch.cuda.is_available():
        return [given or "cpu"]
    count, rank = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
    return [f"cuda:{number}" for number in (range(count) if rank is None else [int(rank) % count])]


def _source(options: argparse.Namespace, device: str) -> "PoolSource":
    """Load the generator and the classifiers, and check that they fit."""
    from lightning_paf.synthesis.pool import PoolSource

    generator, chosen = _generator(options, device), options.pseudo_label
    if generator.num_classes is None and chosen is None:
        raise ValueError(
            f"An unconditional model must have a classifier for its labels, got {options.source} alone. Pass "
            "--pseudo_label RUN of a classifier."
        )
    if generator.num_classes is not None and chosen is not None:
        raise ValueError(
            f"--pseudo_label must be left out for a class-conditional model, got {chosen}. Pass --filter {chosen} to "
            "keep images of whose class a classifier is most sure."
        )
    classes, models = generator.num_classes, []
    for name in ("pseudo_label", "filter"):
        run = getattr(options, name) and _load(getattr(options, name), options, device)
        if run:
            _check_classifier(f"--{name} {getattr(options, name)}", run, generator, classes)
            classes = run.model.num_classes
        models.append(run.model if run else None)
    return PoolSource(generator, *models)


def _generator(options: argparse.Namespace, device: str) -> "DiffusionGenerator":
    from lightning_paf.synthesis import samplers
    from lightning_paf.synthesis.diffusion import check_guidance, load_pipeline

    steps = [options.sampling_steps] if options.sampling_steps else []
    sampler, path = getattr(samplers, SAMPLERS[options.sampler])(*steps), Path(options.source)
    if path.exists() and not (path / "model_index.json").is_file():
        generator: DiffusionGenerator = _load(path, options, device, "image generator").module.generator(
            sampler, options.guidance
        )
        return generator
    try:
        generator = load_pipeline(options.source, sampler, device)
    except ValueError as error:
        if path.exists():
            raise
        raise ValueError(
            f"--from must be a run, a pipeline or mixture; no file or folder is called {path}. {error}"
        ) from error
    check_guidance(options.guidance, conditional=False, with_null=False)
    return generator


def _load(path: Path, options: argparse.Namespace, device: str, kind: str = "classifier") -> "Run":
    """Load a checkpoint, or the newest one of a run folder."""
    from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
    from lightning_paf.loading import load_run

    return load_run(checkpoint_of(path), device=device, options=[TRUST] * options.trust, kind=kind)


def _check_classifier(name: str, run: "Run", generator: "DiffusionGenerator", classes: int | None) -> None:
    """Check that a classifier takes the images of a generator, and has its classes."""
    import torch

    spec, (channels, height, width) = run.datamodule.spec, generator.shape
    if classes not in (None, run.model.num_classes):
        raise ValueError(
            f"{name} must have {classes} classes, as the labels, got {run.model.num_classes}. Pass another run."
        )
    shape = (spec.channels, spec.size, spec.size)
    fits = spec.channels == channels if spec.name == "npz" else shape == generator.shape
    try:
        run.model(torch.zeros(1, *generator.shape, device=run.device)) if fits else None
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must classify images of {channels} x {height} x {width}, those of --from, got a classifier of "
            f"{spec.name}. Pass another run."
        )


def _real(options: argparse.Namespace, dataset: str, download: bool) -> "tuple[DatasetSpec, ImageSet]":
    """Read the training images of a dataset."""
    from lightning_paf.data.sources import read_dataset
    from lightning_paf.specs import dataset_spec

    spec = dataset_spec(dataset, options.num_classes)
    return spec, read_dataset(spec, options.root, download=download).train


def _real_like(options: argparse.Namespace, generator: "ImageGenerator", classes: int) -> "ImageSet | None":
    """Read the images of `--dataset`, if given, and check their size and classes."""
    if options.dataset is None:
        return None
    spec, train = _real(options, options.dataset, download=False)
    channels, height, width = generator.shape
    found, expected = train.images.shape[1:], (height, width, channels)
    if found != expected or spec.num_classes != classes:
        raise ValueError(
            f"--dataset must have images (H, W, C) = {expected} and {classes} classes, as {options.source}, got "
            f"{found} and {spec.num_classes} from {spec.name}. Pass another --dataset, or none."
        )
    return train


def _print_classes(labels: "NDArray[np.int64]", num_classes: int, even: bool) -> None:
    """Print the number of images of each class, unless even; name empty classes."""
    import numpy as np

    counts = np.bincount(labels, minlength=num_classes)
    if not even:
        listed = ", ".join(f"{label}: {count}" for label, count in enumerate(counts[:LISTED]))
        print(f"Images of each class: {listed}{', ...' * (num_classes > LISTED)}")
    if not counts.all():
        empty = ", ".join(map(str, np.flatnonzero(counts == 0)))
        print(f"No image of the classes {empty}. Training needs some of each; draw more, or use another classifier.")

"""Images per second of a folder of JPEG files, beside torchvision's `ImageFolder` in a plain `DataLoader`; memory.

    python benchmarks/folder_loader.py

Both draw random resized crops of the same files (375 x 500) in the same number of workers. Ours sends uint8; the plain
loader has RandomResizedCrop, RandomHorizontalFlip, conversion to float and Normalize, as in PyTorch's example for
ImageNet. At 32 pixels our loader also reads the converted array, without random crops. The memory is the resident size
that four epochs add after the first one, without workers, for a set and for one with four times as many files.
"""

import argparse
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import interleaved, parser, prepare, ratios, report, spread
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_paf.data import RobustDataModule

SIZES = (32, 224)
CLASSES = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    options = parse()
    device = prepare(options)
    rows: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        root, more = Path(folder) / "images", Path(folder) / "more"
        write(root, options.images)
        for copy in range(4):
            link(root, more, copy)
        for size in SIZES:
            loaders = {"streamed": ours(root, size, options), "torchvision": plain(root, size, options)}
            if size == min(SIZES):
                loaders["array"] = ours(root, size, options, random_crop=None)
            calls = {name: partial(consume, loader) for name, loader in loaders.items()}
            times = interleaved(calls, options.repeats, 1, device)
            for name, taken in times.items():
                rows[f"{size} px, {name}, images a second"] = spread([options.images / t for t in taken])
            rows[f"{size} px, streamed : torchvision"] = ratios(times["torchvision"], times["streamed"])
        options.workers = 0
        for name, images in (("one set", root), ("four times as many files", more)):
            rows[f"memory added by four epochs, {name}, MiB"] = {"median": added(ours(images, min(SIZES), options))}
    report(options, rows)


def ours(root: Path, size: int, options: argparse.Namespace, random_crop: float | None = 0.08) -> DataLoader[Any]:
    """Our training loader."""
    data = RobustDataModule(
        "folder",
        root,
        real_fraction=1.0,
        batch_size=options.batch_size,
        num_workers=options.workers,
        val_size=1,
        size=size,
        random_crop=random_crop,
    )
    data.prepare_data("fit")
    data.setup("fit")
    return data.train_dataloader()


def plain(root: Path, size: int, options: argparse.Namespace) -> DataLoader[Any]:
    """The loader of PyTorch's example for ImageNet."""
    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    dataset = ImageFolder(
        str(root / "train"), v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *to_float])
    )
    return DataLoader(
        dataset,
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def consume(loader: Iterable[Any]) -> None:
    for _ in loader:
        pass


def added(loader: Iterable[Any]) -> float:
    """MiB that four epochs add to the resident size after the first one."""
    consume(loader)
    before = resident()
    for _ in range(4):
        consume(loader)
    return resident() - before


def resident() -> float:
    """Resident size of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write(root: Path, count: int) -> None:
    """Write smooth random photographs with some noise, about 60 KB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.clip(np.asarray(coarse) + rng.integers(-12, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        folder = root / "train" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)


def link(root: Path, more: Path, copy: int) -> None:
    for path in (root / "train").rglob("*.jpg"):
        new = more / path.relative_to(root).with_stem(f"{path.stem}_{copy}")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.hardlink_to(path)


def parse() -> argparse.Namespace:
    options = parser(__doc__, repeats=5)
    options.set_defaults(threads=1)
    options.add_argument("--batch_size", type=int, default=64)
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--workers", type=int, default=1)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.images, chosen.batch_size, chosen.repeats, chosen.workers = 8, 4, 1, 0
    return chosen


if __name__ == "__main__":
    main()

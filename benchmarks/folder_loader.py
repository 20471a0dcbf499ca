"""Images per second of a folder of JPEG files, beside torchvision's `ImageFolder` in a plain `DataLoader`; memory.

    python benchmarks/folder_loader.py

Both draw random resized crops of the same files (375 x 500) without workers, so that all CPU time is counted. Ours
sends uint8; the plain loader has RandomResizedCrop, RandomHorizontalFlip, conversion to float and Normalize, as in
PyTorch's example for ImageNet. At 32 pixels our loader also reads the converted array, without random crops. The
memory is the largest resident size of a process that streams one epoch, for a set and for one with ten times as many
files.
"""

import argparse
import subprocess
import sys
import time
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
    if options.epoch_of is not None:
        consume(ours(options.epoch_of, max(SIZES), options), [])
        # `ru_maxrss` would be at least that of the parent process.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 2**10)
        return
    rows: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        root, more = Path(folder) / "images", Path(folder) / "more"
        write(root, options.images)
        for copy in range(10):
            link(root, more, copy)
        for size in SIZES:
            loaders = {"streamed": ours(root, size, options), "torchvision": plain(root, size, options)}
            if size == min(SIZES):
                loaders["array"] = ours(root, size, options, random_crop=None)
            cpu: dict[str, list[float]] = {name: [] for name in loaders}
            calls = {name: partial(consume, loader, cpu[name]) for name, loader in loaders.items()}
            interleaved(calls, options.repeats, 1, device)
            times = {name: taken[-options.repeats :] for name, taken in cpu.items()}
            for name, taken in times.items():
                rows[f"{size} px, {name}, images per CPU second"] = spread([options.images / t for t in taken])
            rows[f"{size} px, streamed : torchvision"] = ratios(times["torchvision"], times["streamed"])
        for count, images in ((options.images, root), (10 * options.images, more)):
            rows[f"peak memory, {count} files, MiB"] = {"median": peak(images, options)}
    report(options, rows)


def ours(root: Path, size: int, options: argparse.Namespace, random_crop: float | None = 0.08) -> DataLoader[Any]:
    """Our training loader."""
    data = RobustDataModule(
        "folder",
        root,
        real_fraction=1.0,
        batch_size=options.batch_size,
        num_workers=0,
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
    return DataLoader(dataset, options.batch_size, shuffle=True)


def consume(loader: Iterable[Any], cpu: list[float]) -> None:
    """Iterate once, and append the seconds of CPU time."""
    started = time.process_time()
    for _ in loader:
        pass
    cpu.append(time.process_time() - started)


def peak(root: Path, options: argparse.Namespace) -> float:
    """Largest resident size in MiB of a new process that streams one epoch."""
    words = [sys.executable, __file__, "--epoch_of", str(root), "--batch_size", str(options.batch_size)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


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
    options.add_argument("--images", type=int, default=500)
    options.add_argument("--epoch_of", type=Path, help="only stream one epoch of this folder, print the peak memory")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.images, chosen.batch_size, chosen.repeats = 8, 4, 1
    return chosen


if __name__ == "__main__":
    main()

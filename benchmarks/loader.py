"""Images per second of the mixed loader, from memory-mapped files to augmented uint8, in one process; peak memory.

    python benchmarks/loader.py                     # writes 1.1 GB of temporary files, and removes them
    python benchmarks/loader.py --device cuda       # the same with augmentation on the GPU

CIFAR-sized noise, 30 % of each batch real; after the warm-up, the files are mapped and in the page cache. The spread is
over batches. Memory is the peak of numpy and Python while a pool is opened and checked and an epoch begins; these pools
are sparse files, and skipped if the file system has none.
"""

import argparse
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measure import parser, prepare, report, spread, synchronize

from lightning_paf.data import CropFlip, MixedSampler, RobustDataModule, SyntheticPool
from lightning_paf.data.datasets import MixedDataset, RawBatch
from lightning_paf.data.sources import ImageSet

SHAPE = (32, 32, 3)
WARMUP = 300  # batches, until nearly every page of the files has been read
TARGET = 100_000
MEMORY_SIZES = (5_000_000, 50_000_000)


def main() -> None:
    options = parse()
    device = prepare(options)
    with TemporaryDirectory() as folder:
        data = data_module(Path(folder), options)
        times = list(batch_times(data, device))[WARMUP:]
    loading, augmentation, conversion = map(list, zip(*times, strict=True))
    parts = {
        "loading": loading,
        "augmentation": augmentation,
        "loading and augmentation": [a + b for a, b in zip(loading, augmentation, strict=True)],
        "conversion to float": conversion,
    }
    rows = {f"{name}, images a second": spread([options.batch_size / t for t in part]) for name, part in parts.items()}
    rows["loading and augmentation, images a second"]["target"] = TARGET
    rows |= {f"memory, {size:,} synthetic images, MiB": {"median": mib} for size, mib in memory().items()}
    report(options, rows, seconds=parts)


def data_module(root: Path, options: argparse.Namespace) -> RobustDataModule:
    """Noise as real and synthetic images, ready to train on."""
    rng = np.random.default_rng(0)
    for name, size in (("train", 1024 + options.real), ("test", 10)):
        images = rng.integers(0, 256, (size, *SHAPE), np.uint8)
        np.savez(root / f"{name}.npz", image=images, label=np.arange(size) % 10)
    (root / "pool").mkdir()
    np.save(root / "pool" / "image.npy", rng.integers(0, 256, (options.synthetic, *SHAPE), np.uint8))
    np.save(root / "pool" / "label.npy", np.arange(options.synthetic) % 10)
    epoch = (WARMUP + options.repeats) * options.batch_size
    data = RobustDataModule(
        "npz", root, 10, root / "pool", batch_size=options.batch_size, epoch=epoch, num_workers=0, augment=CropFlip()
    )
    data.prepare_data()
    data.setup("fit")
    return data


def batch_times(data: RobustDataModule, device: torch.device) -> Iterator[tuple[float, float, float]]:
    """Seconds of loading, augmentation and conversion to float, per batch."""
    batches = iter(data.train_dataloader())
    while True:
        marks = [time.perf_counter()]
        batch = next(batches, None)
        if batch is None:
            return
        marks.append(time.perf_counter())
        images = data.augmented(RawBatch(*(part.to(device) for part in batch)))
        synchronize(device)
        marks.append(time.perf_counter())
        images.float().div_(255)
        synchronize(device)
        marks.append(time.perf_counter())
        yield marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]


def memory() -> dict[int, float]:
    """Peak MiB of pools of black images of one class."""
    peaks = {}
    for size in MEMORY_SIZES:
        with TemporaryDirectory() as folder, suppress(OSError):
            write_sparse(Path(folder), size)
            tracemalloc.start()
            use_pool(Path(folder))
            peaks[size] = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
    return peaks


def write_sparse(folder: Path, size: int) -> None:
    """Write a pool that takes no space on disk.

    Raises:
        OSError: The file system does not support sparse files of this size.
    """
    probe = folder / "probe"
    with probe.open("wb") as file:
        file.truncate(64 * 2**20)
    if probe.stat().st_blocks * 512 > 2**20:
        raise OSError(f"{folder}: no sparse files")
    for name, dtype, shape in (("image", np.uint8, (size, *SHAPE)), ("label", np.int64, (size,))):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)


def use_pool(folder: Path) -> None:
    """Open and check a pool, and fetch the first batches of an epoch."""
    real = ImageSet(np.zeros((500, *SHAPE), np.uint8), np.zeros(500, np.int64))
    pool = SyntheticPool([folder])
    pool.check(real.images.shape, 1)
    dataset = MixedDataset(real, pool)
    sampler = MixedSampler(dataset, batch_size=32, real_per_batch=[10], batches=1000, num_replicas=1, rank=0, seed=0)
    numbers = iter(sampler)
    for _ in range(2):  # few, because reading ahead in a sparse file is slow
        dataset.__getitems__(list(islice(numbers, 32)))


def parse() -> argparse.Namespace:
    options = parser(__doc__, repeats=300)
    options.set_defaults(threads=1)
    options.add_argument("--batch_size", type=int, default=512)
    options.add_argument("--real", type=int, default=50_000, help="real images")
    options.add_argument("--synthetic", type=int, default=300_000, help="synthetic images on disk")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.repeats, chosen.real, chosen.synthetic = 10, 2000, 5000
    return chosen


if __name__ == "__main__":
    main()

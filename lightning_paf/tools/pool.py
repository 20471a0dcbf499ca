"""Write, verify or describe a pool folder of synthetic images: many shards and a manifest with their hashes."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_paf.data.manifest import Manifest

SHARD_SIZE = 100_000
"""307 MB of CIFAR-sized images: few files, none of them large."""

MOST_CLASSES = 20
"""Classes that are printed one by one."""


def main(argv: list[str]) -> int:
    """Do one of the three.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status: 0, or 1 where `verify` has found damage.

    Raises:
        ValueError: An option makes no sense, a source or the pool cannot be read, or the output exists.
    """
    options = _parse(argv)
    status: int = options.run(options)
    return status


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lightning-paf pool", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    write = commands.add_parser("write", help="copy images into a new pool")
    write.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="npz, TI-500K's pickle, parquet, a folder of such files, a converted folder, or another pool",
    )
    write.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="pool to write; must not exist")
    write.add_argument(
        "--shard_size", type=int, default=SHARD_SIZE, metavar="N", help=f"images in a shard (default: {SHARD_SIZE})"
    )
    write.set_defaults(run=_write)
    for name, run, text in (("verify", _verify, "read every byte and compare the hashes"), ("info", _info, "describe")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a pool")
        command.set_defaults(run=run)
    return parser.parse_args(argv)


def _write(options: argparse.Namespace) -> int:
    if options.shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, but is {options.shard_size}. Pass --shard_size N, N >= 1.")
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.data.manifest import is_pool
    from lightning_paf.data.shard_check import check_shards
    from lightning_paf.data.shard_writer import write_pool
    from lightning_paf.data.synthetic.convert import find_sources

    sources = find_sources(options.sources)
    for source in filter(is_pool, sources):
        check_shards(source)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Writing {options.out.name}", total=None)
        manifest = write_pool(
            sources,
            options.out,
            options.shard_size,
            lambda images, total: progress.update(task, advance=images, total=total),
        )
    _print(options.out, manifest)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from lightning_paf.data.shard_check import find_damage

    manifest = _read(options.folder)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Verifying {options.folder.name}", total=_bytes(manifest))
        damage = find_damage(options.folder, manifest, lambda read: progress.advance(task, read))
    for found in damage:
        print(found)
    if damage:
        print(f"{options.folder}: {len(damage)} damaged file(s). Copy them again from where the pool came from.")
        return 1
    _print(options.folder, manifest)
    print("Every byte is as it was written.")
    return 0


def _info(options: argparse.Namespace) -> int:
    _print(options.folder, _read(options.folder))
    return 0


def _read(folder: Path) -> "Manifest":
    from lightning_paf.data.manifest import MANIFEST_FILE, is_pool, read_manifest

    if not is_pool(folder):
        raise ValueError(
            f"{folder}: not a pool, for there is no {MANIFEST_FILE} in it. Make one with `lightning-paf pool write`."
        )
    return read_manifest(folder)


def _bytes(manifest: "Manifest") -> int:
    return sum(shard.image.size + shard.label.size for shard in manifest.shards)


def _print(folder: Path, manifest: "Manifest") -> None:
    import numpy as np
    from rich.filesize import decimal

    from lightning_paf.data.manifest import MANIFEST_FILE
    from lightning_paf.data.readers.folder import PoolFolder

    counts = PoolFolder(folder).counts
    print(
        f"{folder}: {len(manifest):,} images (H, W, C) = {manifest.image_shape} in {len(manifest.shards):,} shard(s), "
        f"{decimal(_bytes(manifest))}"
    )
    if len(counts) <= MOST_CLASSES:
        print(f"Images of class 0, 1, …: {', '.join(f'{count:,}' for count in counts)}")
    else:
        print(f"{np.count_nonzero(counts)} classes of {counts[counts > 0].min():,} to {counts.max():,} images")
    identity = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    print(f"sha256 of the manifest, which stands for every byte: {identity}")

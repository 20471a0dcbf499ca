"""Compare the shards of a pool with its manifest: by size, header and a few blocks, or byte for byte."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from rich.progress import Progress

from lightning_paf.data.manifest import MANIFEST_FILE, ListedFile, Manifest, Shard, read_manifest
from lightning_paf.data.readers.npy import NpyFile, read_header

SAMPLED_BLOCKS, BLOCK_BYTES = 16, 4096
READ_BYTES = 2**20
NAMED = 5  # damaged files in a message
QUIET_SHARDS = 500  # checked within a second from a local disk: no bar up to here
LATENCY_THREADS = 16  # a network file system answers some at once
HASHING_THREADS = os.cpu_count() or 1

Advance = Callable[[int], None]


def check_shards(folder: Path) -> None:
    """Check that every shard is there and is, as far as sampled blocks tell, what the manifest says.

    Reads 16 blocks of 4 KiB from each file: other content, a missing end, or a zeroed piece of a fifteenth of the file
    is found for sure, a flipped bit hardly ever; `lightning-paf pool verify` reads everything.

    Raises:
        ValueError: A shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    with Progress(transient=True, disable=len(manifest.shards) <= QUIET_SHARDS) as progress:
        task = progress.add_task(f"Checking {folder.name}", total=len(manifest.shards))
        damage = find_sampled_damage(folder, manifest, lambda shards: progress.advance(task, shards))
    if damage:
        more = f"; and {len(damage) - NAMED} more" if len(damage) > NAMED else ""
        raise ValueError(
            f"{folder}: all files that {MANIFEST_FILE} lists must be here as they were written, but {len(damage)} "
            f"{'is' if len(damage) == 1 else 'are'} not: {'; '.join(damage[:NAMED])}{more}. Copy them again from where "
            f"the pool came from; `lightning-paf pool verify {folder}` then compares every byte."
        )


def find_sampled_damage(folder: Path, manifest: Manifest, advance: Advance) -> list[str]:
    """Look at size, header and sampled blocks of all files.

    Args:
        folder: The pool.
        manifest: Its manifest.
        advance: Told the number of shards that have been looked at since the last call, by several threads.

    Returns:
        A description of each file that is missing or differs, in the manifest's order.
    """

    def look(shard: Shard) -> list[str]:
        files = zip((shard.image, shard.label), manifest.files(folder, shard), strict=True)
        found = [_sampled_damage(listed, expected) for listed, expected in files]
        advance(1)
        return [damage for damage in found if damage]

    return _in_threads(look, manifest.shards, LATENCY_THREADS)


def find_damage(folder: Path, manifest: Manifest, advance: Advance) -> list[str]:
    """Read all files, and compare their hashes and the numbers of images of each class.

    Args:
        folder: The pool.
        manifest: Its manifest.
        advance: Told the number of bytes that have been read since the last call, by several threads.

    Returns:
        A description of each file that is missing or differs, in the manifest's order.
    """

    def look(shard: Shard) -> list[str]:
        files = list(zip((shard.image, shard.label), manifest.files(folder, shard), strict=True))
        found = [_sampled_damage(*file) or _damage(*file, advance) for file in files]
        if not any(found):
            counts = class_counts(files[1][1])
            if counts != tuple(np.trim_zeros(shard.classes, "b")):
                found.append(f"{shard.label.name} holds {counts} images of the classes instead of {shard.classes}")
        return [damage for damage in found if damage]

    return _in_threads(look, manifest.shards, HASHING_THREADS)


def list_file(path: Path) -> ListedFile:
    """Describe a file for the manifest; all of it is read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        return ListedFile(path.name, size, sha256, sampled_hash(file, size))


def sampled_hash(file: IO[bytes], size: int) -> str:
    """Hash blocks at even distances from the first to the last byte; all of a file that is no longer than they are."""
    digest = hashlib.sha256()
    last = max(0, size - BLOCK_BYTES)
    for start in sorted({last * place // (SAMPLED_BLOCKS - 1) for place in range(SAMPLED_BLOCKS)}):
        file.seek(start)
        digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def class_counts(file: NpyFile) -> tuple[int, ...]:
    """Number of images of class 0, 1, … up to the last one that occurs.

    Raises:
        ValueError: A label is negative.
    """
    counts = np.zeros(0, np.int64)
    for labels in file.chunks():
        if labels.min() < 0:
            raise ValueError(f"{file.path}: labels must not be negative, but one is {labels.min()}. Renumber them.")
        here = np.bincount(labels, minlength=len(counts))
        here[: len(counts)] += counts
        counts = here
    return tuple(counts.tolist())


def _sampled_damage(listed: ListedFile, expected: NpyFile) -> str | None:
    try:
        with Path(expected.path).open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size != listed.size:
                return f"{listed.name} has {size:,} bytes instead of {listed.size:,}"
            if sampled_hash(file, size) != listed.sample:
                return f"{listed.name} has other content"
            file.seek(0)
            header = read_header(file)
    except FileNotFoundError:
        return f"{listed.name} is missing"
    except OSError as error:
        return f"{listed.name} cannot be read ({error.strerror})"
    except EOFError:
        return f"{listed.name} is not a npy file"
    if header != (expected.shape, False, expected.dtype):
        return f"{listed.name} holds {header[2]} of shape {header[0]} instead of {expected.dtype} of {expected.shape}"
    return None


def _damage(listed: ListedFile, expected: NpyFile, advance: Advance) -> str | None:
    digest = hashlib.sha256()
    try:
        with Path(expected.path).open("rb", buffering=0) as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
                advance(len(block))
    except OSError as error:
        return f"{listed.name} cannot be read ({error.strerror})"
    return None if digest.hexdigest() == listed.sha256 else f"{listed.name} has other content (its sha256 differs)"


def _in_threads(look: Callable[[Shard], list[str]], shards: list[Shard], threads: int) -> list[str]:
    """Look at shards in turns; a task for each thread, because one for each shard would take more memory than they."""

    def turn(first: int) -> list[tuple[int, str]]:
        places = range(first, len(shards), threads)
        return [(place, damage) for place in places for damage in look(shards[place])]

    with ThreadPoolExecutor(threads) as pool:
        found = [damage for part in pool.map(turn, range(threads)) for damage in part]
    return [damage for _, damage in sorted(found, key=lambda item: item[0])]

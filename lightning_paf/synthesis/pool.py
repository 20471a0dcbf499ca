"""Pools of synthetic images, drawn in blocks by any number of processes."""

import json
import shutil
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.functional.predictions import undefined
from lightning_paf.nn.classifier import Classifier
from lightning_paf.synthesis.generator import ImageGenerator
from lightning_paf.synthesis.pool_plan import PoolPlan
from lightning_paf.utils.claim import Heartbeats, take
from lightning_paf.utils.files import create_whole, explained, npz_bytes, parse_json, write_whole
from lightning_paf.utils.hashing import weights_fingerprint

TIMEOUT = 120.0
"""Seconds without a heartbeat after which a block is taken over."""
_PAUSE = 0.2
_SCAN = 5.0
"""Seconds between two looks at the blocks of other processes."""
_IDENTITY = "identity.json"


@dataclass(frozen=True)
class PoolSource:
    """A generator with the classifiers of its images, on one device.

    Attributes:
        generator: Draws the images.
        labeller: Classifier that labels the images of an unconditional generator, in eval mode.
        scorer: Classifier whose confidence selects the images, in eval mode; None to keep all.
    """

    generator: ImageGenerator
    labeller: Classifier | None = None
    scorer: Classifier | None = None

    @torch.no_grad()
    def draw(self, count: int, labels: Tensor | None, rng: torch.Generator) -> dict[str, NDArray[Any]]:
        """Draw images uint8 (N, H, W, C), labels (N,) and, with a scorer, scores (N,).

        The classifiers see the images after rounding.
        """
        pixels = self.generator.sample(count, labels, rng).mul(255).round().to(torch.uint8)
        images = pixels.float() / 255
        if self.labeller is not None:
            labels = _logits(self.labeller, images).argmax(1)
        assert labels is not None  # one of the two
        columns = {"image": pixels.permute(0, 2, 3, 1), "label": labels}
        if self.scorer is not None:
            columns["score"] = log_odds(_logits(self.scorer, images), labels.to(images.device))
        return {name: column.cpu().contiguous().numpy() for name, column in columns.items()}

    def content(self) -> dict[str, Any]:
        """Return everything that the images depend on, as plain values."""
        classifiers = {"labeller": self.labeller, "scorer": self.scorer}
        found = {name: None if model is None else weights_fingerprint(model) for name, model in classifiers.items()}
        return {**self.generator.describe(), **found}


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the probability p of each label, (N,) double.

    The order is that of p, without the ties of probabilities that round to 1.
    """
    logits, rows = logits.double(), y[:, None]
    return logits.gather(1, rows).squeeze(1) - logits.scatter(1, rows, -torch.inf).logsumexp(1)


def parts_folder(out: Path) -> Path:
    """Return the folder of the blocks of a pool, next to it."""
    return out.with_name(f"{out.name}.parts")


def write_pool(
    out: Path,
    plan: PoolPlan,
    sources: Sequence[PoolSource],
    progress: Callable[[int], None] = lambda drawn: None,
    replace: bool = False,
) -> bool:
    """Draw a pool in blocks, with other processes of the same call, into one file.

    A block is a file in `parts_folder(out)`. It depends on the plan and the sources, but not on the process; the images
    are equal bit for bit on devices of one kind. A killed call resumes after the blocks that exist. One process writes
    the pool: `image` uint8 (N, H, W, C) and `label` int64 (N,). It removes the folder.

    Args:
        out: The file, in an existing folder.
        plan: Images to draw.
        sources: The same generator on each device of this process; each works in a thread.
        progress: Called with the number of drawn images, of all processes.
        replace: Replace an existing file; otherwise, one that appears means that another process was faster.

    Returns:
        Whether this process wrote the file.

    Raises:
        ValueError: The folder belongs to another pool (every difference is named), or cannot be used.
    """
    folder = parts_folder(out)
    with explained(folder, "a folder of blocks"):
        created = _open(folder, {**plan.content(), **sources[0].content()})
        if out.exists() and not replace:
            if created:
                shutil.rmtree(folder, ignore_errors=True)
            return False
        try:
            _draw_all(folder, plan, sources, progress)
            return _assemble(out, plan, folder)
        except FileNotFoundError:
            if folder.exists():
                raise
            return False  # another process has written the pool and removed the folder


def _open(folder: Path, identity: dict[str, Any]) -> bool:
    """Create the folder, or check that it belongs to the same pool.

    Returns whether it is new.
    """
    folder.mkdir(exist_ok=True)
    path, content = folder / _IDENTITY, json.dumps(identity, indent=2).encode() + b"\n"
    if create_whole(path, content):
        return True
    identity = parse_json(content)  # without tuples
    try:
        there = parse_json(path.read_bytes())
        differences = [
            f"{name} is {identity.get(name, 'missing')} here, {there.get(name, 'missing')} in the folder"
            for name in sorted({*identity, *there})
            if identity.get(name, "missing") != there.get(name, "missing")
        ]
    except (ValueError, AttributeError):
        differences = [f"{_IDENTITY} is damaged"]
    if differences:
        raise ValueError(
            f"{folder} must belong to the same pool, got: {'; '.join(differences)}. Repeat the command that started "
            "it, remove it, or pass another --out."
        )
    return False


def _draw_all(folder: Path, plan: PoolPlan, sources: Sequence[PoolSource], progress: Callable[[int], None]) -> None:
    """Draw all missing blocks, on all devices."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(sources)) as threads:
        try:
            others = [threads.submit(_draw, folder, plan, source, progress, stop) for source in sources[1:]]
            _draw(folder, plan, sources[0], progress, stop)
            for other in others:
                other.result()
        finally:
            stop.set()


def _draw(
    folder: Path, plan: PoolPlan, source: PoolSource, progress: Callable[[int], None], stop: threading.Event
) -> None:
    """Draw missing blocks that no other process draws, until there are all."""
    heartbeats = Heartbeats()
    try:
        while not stop.is_set() and (missing := _missing(folder, plan)):
            progress(plan.drawn - sum(map(plan.size, missing)))
            end, waits = time.monotonic() + _SCAN, True
            for number in missing:
                path = _block(folder, number)
                claim = None if path.exists() else take(path.with_suffix(".claim"), TIMEOUT, heartbeats)
                if claim is not None:
                    waits = False
                    with claim:
                        _draw_block(path, source, *plan.block(number))
                if stop.is_set() or time.monotonic() > end:
                    break
            if waits:
                time.sleep(_PAUSE)
        progress(plan.drawn)
    except BaseException:
        stop.set()
        raise


def _draw_block(path: Path, source: PoolSource, count: int, labels: Tensor | None, rng: torch.Generator) -> None:
    """Write a block, unless its previous owner has written it just before."""
    if not path.exists():
        write_whole(path, npz_bytes(**source.draw(count, labels, rng)))


def _missing(folder: Path, plan: PoolPlan) -> list[int]:
    names = {path.name for path in folder.iterdir()}
    return [number for number in range(plan.blocks) if _block(folder, number).name not in names]


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05}.npz"


def _assemble(out: Path, plan: PoolPlan, folder: Path) -> bool:
    """Write the pool and remove the folder, unless another process does."""
    heartbeats = Heartbeats()
    while (claim := take(folder / "pool.claim", TIMEOUT, heartbeats)) is None:
        time.sleep(_PAUSE)
    with claim:
        write_whole(out, _pool_bytes(plan, [_block(folder, number) for number in range(plan.blocks)]))
        # Renamed at once: other processes must not see a part of the folder.
        removed = folder.rename(folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.removed"))
    shutil.rmtree(removed, ignore_errors=True)
    return True


def _pool_bytes(plan: PoolPlan, blocks: Sequence[Path]) -> Iterator[bytes]:
    """Encode the pool as an npz file, with one block in memory at a time."""
    labels = np.concatenate([_read(path, "label") for path in blocks])
    scores = None if plan.keep is None else np.concatenate([_read(path, "score") for path in blocks])
    kept = plan.kept(labels, scores)
    parts = np.split(kept, np.arange(1, plan.blocks) * plan.block_size)
    images = (_read(path, "image")[part] for path, part in zip(blocks, parts, strict=True))
    stream = _Buffer()
    with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[call-overload]  # it writes to anything with `write`
        for name, arrays in (("image", images), ("label", iter([labels[kept]]))):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                for index, array in enumerate(arrays):
                    if index == 0:
                        header = {"descr": array.dtype.str, "fortran_order": False}
                        np.lib.format.write_array_header_1_0(
                            member, {**header, "shape": (plan.count, *array.shape[1:])}
                        )
                    member.write(array.tobytes())
                    yield stream.taken()
    yield stream.taken()


class _Buffer:
    """Bytes written and not yet taken."""

    def __init__(self) -> None:
        self._content = bytearray()

    def write(self, content: Any) -> int:
        """Add bytes."""
        self._content += content
        return len(content)

    def flush(self) -> None:
        """Do nothing."""

    def taken(self) -> bytes:
        """Remove and return all bytes."""
        content = bytes(self._content)
        self._content.clear()
        return content


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    if undefined(logits).any():
        raise ValueError("The logits of the classifier must be finite for all synthetic images. Pass another run.")
    return logits


def _read(path: Path, name: str) -> NDArray[Any]:
    try:
        with np.load(path) as block:
            found: NDArray[Any] = block[name]
            return found
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it and run the same command again.") from error

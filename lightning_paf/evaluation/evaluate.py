"""Evaluation of a model under an attack, by blocks, in a resumable state."""

import hashlib
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.attacks.probe import PROBES, Probe, probe, warn_of
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.evaluation.certificates.certify import MethodName
from lightning_paf.evaluation.certificates.records import certified_ids
from lightning_paf.evaluation.identity import Identity, data_fingerprint, network_fingerprint
from lightning_paf.evaluation.outcomes import CERTIFICATE, BlockResult
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Key, MemoryState, Record, State
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import check_labels, predicted
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.progress import duration
from lightning_paf.speed.search_model import Precision, SearchModel
from lightning_paf.utils.hashing import code_fingerprint, weights_fingerprint

Stop = Callable[[int, int, int], bool]
"""Maps `(robust, evaluated, total)` to whether to stop; see `StopRule`."""

CLEAN = "clean"
_MAX_SUB_ATTACKS = 2**7 - 1
_BATCH_SIZE = 256
_ROUNDING = 1e-4  # tolerated relative excess over the radius, for rounding of a sum over pixels
_MIN_WAIT, _MAX_WAIT = 0.05, 2.0
_LISTING_PAUSE = 10  # between two listings of a folder, as a multiple of the duration of one
_SECONDS_BETWEEN_WAITING_LINES = 60.0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation of a model under an attack, with an outcome for every sample.

    A block is a fixed range of `block_size` samples. Its clean images are classified first. Each sub-attack then runs
    on the samples that all previous ones left correctly classified. Every result is one record of the state. The seed
    of a record depends only on `seed`, block and sub-attack, so that interruptions and the number of processes have no
    influence. An attack's batches shrink within a block as samples are fooled; a large `block_size` keeps them full.

    Results are bitwise equal on equal machines. Where processors round differently, the first record of a block and
    sub-attack counts, and the next sub-attack continues from it.

    Args:
        model: Maps images (N, C, H, W) in [0, 1] to logits (N, classes); on the device of the samples.
        attack: The attack with its sub-attacks.
        samples: The samples to evaluate.
        seed: Seed of all random numbers.
        block_size: Samples per block; a killed process loses at most one sub-attack on one block.
        precision: Precision of the search; every success is confirmed in float32.
        certify: Method of `certificates.certify` that runs first; samples with a certificate are not attacked.

    Raises:
        ValueError: No samples, or duplicate ones; `block_size` or the number of sub-attacks out of range.
    """

    model: nn.Module
    attack: Attack
    samples: Samples
    seed: int = 0
    block_size: int = 500
    precision: Precision = "fp32"
    certify: MethodName | None = None

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}. The default is 500.")
        if len(self.samples) == 0:
            raise ValueError("An evaluation must have at least one sample, got none. Pass at least one.")
        if len(np.unique(self.samples.ids)) < len(self.samples):
            raise ValueError("The ids of samples must be distinct, got duplicates. Pass each id once.")
        if (count := len(self.attack.sub_attacks())) > _MAX_SUB_ATTACKS:
            raise ValueError(f"An attack must have at most {_MAX_SUB_ATTACKS} sub-attacks, got {count}. Use fewer.")

    @cached_property
    def fitted(self) -> Attack:
        """The attack for the number of classes of the model."""
        return self.attack.for_classes(self.probe.classes)

    @cached_property
    def sub_attacks(self) -> tuple[Attack, ...]:
        """The attacks that run one after the other."""
        return self.fitted.sub_attacks()

    @cached_property
    def probe(self) -> Probe:
        """The model with signs of an unreliable result, from the first samples.

        Every process uses the same samples, so that records do not depend on the block that it starts with.

        Raises:
            ValueError: The model or the labels cannot be evaluated.
        """
        x, y = self.samples.fetch(self.samples.ids[:PROBES])
        check_labels(y, len(x), soft=False)
        return probe(self.model, x, y)

    @cached_property
    def identity(self) -> Identity:
        """Everything that the records depend on; the first access reads every sample.

        Raises:
            ValueError: As `probe`, for any sample.
        """
        with torch.inference_mode(False):
            classes = self.probe.classes
            blocks = (self.samples.checked(ids, classes) for ids in self.blocks())
            return Identity(
                model=weights_fingerprint(self.model),
                network=network_fingerprint(self.model),
                data=data_fingerprint(self.samples.ids, blocks),
                samples=len(self.samples),
                attack=self.fitted.describe() | ({"certify": self.certify} if self.certify else {}),
                sub_attacks=[{"label": CERTIFICATE}] * bool(self.certify)
                + [{"label": attack.label, **attack.describe()} for attack in self.sub_attacks],
                block_size=self.block_size,
                seed=self.seed,
                precision=self.precision,
                code=code_fingerprint(),
            )

    def blocks(self) -> list[NDArray[np.int64]]:
        """Return the ids of each block."""
        size = self.block_size
        return [self.samples.ids[first : first + size] for first in range(0, len(self.samples), size)]

    def run(
        self, state: State | None = None, stop: Stop | None = None, progress: Callable[[str], None] | None = None
    ) -> EvaluationResult:
        """Make the missing records, together with other processes of the same state.

        Every process takes free blocks, waits for the others at the end, and returns the complete result.

        Args:
            state: Storage of the records; by default in memory.
            stop: Called with the counts of the first block, of the first two, and so on; the result ends with the first
                block for which it returns true. All processes stop at the same block if it uses its arguments only.
            progress: Called with log lines.

        Raises:
            ValueError: The model or the labels cannot be evaluated; the state belongs to another evaluation, or cannot
                be written.
        """
        state = MemoryState() if state is None else state
        state.open(self.identity)
        with torch.inference_mode(False):
            blocks = _Worker(self, state, stop, progress or (lambda line: None)).run()
        result = EvaluationResult.of(self, state, blocks, getattr(stop, "reason", None))
        warn_of(result.flags)
        return result


def sub_attack_seed(seed: int, block: int, sub_attack: int, label: str) -> int:
    """Return the seed of one record: 63 bits of a SHA-256."""
    digest = hashlib.sha256(json.dumps([seed, block, sub_attack, label]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class _Worker:
    """One process of an evaluation."""

    def __init__(
        self, evaluation: Evaluation, state: State, stop: Stop | None, progress: Callable[[str], None]
    ) -> None:
        self.evaluation = evaluation
        self.state = state
        self.stop = stop
        self.progress = progress
        first = (CLEAN, CERTIFICATE) if evaluation.certify else (CLEAN,)
        self.labels = [*first, *(attack.label for attack in evaluation.sub_attacks)]
        self.ids = evaluation.blocks()
        self.done: dict[int, list[Record]] = {}  # without adversarial images
        self.counts: dict[int, tuple[int, int]] = {}  # robust and evaluated samples of these blocks
        self.totals = (0, 0)  # their sums
        self.open: set[Key] = set()  # records of other blocks
        self.next_listing = 0.0
        self.budgets = [*([1] * len(first)), *map(_budget, evaluation.sub_attacks)]
        self.prefix = 0  # number of first blocks that are complete and were passed to `stop`
        self.stopped = False
        self.found = 0  # budgets of the records found at the start
        self.started = time.perf_counter()

    def run(self) -> list[list[Record]]:
        """Work until all blocks are complete; return the records before the stop."""
        finished = self._update()
        self._report_start()
        wait, next_line = _MIN_WAIT, 0.0
        while not finished:
            if self._run_free_block():
                wait = _MIN_WAIT
            else:
                if time.perf_counter() > next_line:
                    self._report_waiting()
                    next_line = time.perf_counter() + _SECONDS_BETWEEN_WAITING_LINES
                time.sleep(wait)
                wait = min(2 * wait, _MAX_WAIT)
            finished = self._update()
        return [self.done[block] for block in range(self.prefix)]

    def _update(self) -> bool:
        """Read the blocks completed by any process; return whether all is done."""
        if time.perf_counter() >= self.next_listing:
            self._list()
        counts = Counter(block for block, _ in self.open)
        for block in (block for block, count in counts.items() if count == len(self.labels)):
            records = self._records(block)
            if len(records) == len(self.labels):
                self.done[block] = [replace(record, x_adv=record.x_adv[:0]) for record in records]
                self.counts[block] = _counts(records)
                self.totals = _sum(self.totals, self.counts[block])
                self.open -= {(block, number) for number in range(len(records))}
        while self.prefix in self.done and not self.stopped:
            self.prefix += 1
            if self.stop is not None:
                robust, evaluated = (sum(self.counts[block][i] for block in range(self.prefix)) for i in (0, 1))
                self.stopped = self.stop(robust, evaluated, len(self.evaluation.samples))
        return self.stopped or self.prefix == len(self.ids)

    def _list(self) -> None:
        """List the records of all processes, in a tenth of the time at most."""
        started = time.perf_counter()
        self.open = {key for key in self.state.recorded() if key[0] not in self.done}
        now = time.perf_counter()
        self.next_listing = now + _LISTING_PAUSE * (now - started)

    def _run_free_block(self) -> bool:
        for block in self._missing():
            claim = self.state.claim(block)
            if claim is not None:
                with claim:
                    self._run_block(block)
                return True
        return False

    def _missing(self) -> list[int]:
        return [block for block in range(len(self.ids)) if block not in self.done]

    def _run_block(self, block: int) -> None:
        records, images = self._records(block), None
        while len(records) < len(self.labels):
            if self._update():  # the stop rule holds after a block of another process
                return
            images = images or self.evaluation.samples.fetch(self.ids[block])
            with torch.autocast(images[0].device.type, enabled=False):
                records.append(self.state.write(self._run_sub_attack(block, records, *images)))
            self.open.add((block, len(records) - 1))
            self._report(records)

    def _records(self, block: int) -> list[Record]:
        records: list[Record] = []
        while len(records) < len(self.labels):
            record = self.state.read(block, len(records))
            if record is None or not self._is_next(record, block, records):
                break
            records.append(record)
        return records

    def _is_next(self, record: Record, block: int, records: list[Record]) -> bool:
        expected = self._expected(block, records)
        same = all(getattr(record, name) == getattr(expected, name) for name in ("label", "seed", "after"))
        return same and np.array_equal(record.ids, expected.ids)

    def _expected(self, block: int, records: list[Record]) -> Record:
        """Return the next record of a block, without the results of the sub-attack."""
        number, label = len(records), self.labels[len(records)]
        after = records[-1].fingerprint if records else self.evaluation.identity.fingerprint
        ids, seed = self.ids[block][self._indices(block, records)], self.evaluation.seed
        none, images = np.empty(0, np.int64), np.empty(0, np.float32)
        return Record(block, number, label, sub_attack_seed(seed, block, number, label), after, ids, none, none, images)

    def _indices(self, block: int, records: list[Record]) -> NDArray[np.int64]:
        """Return the indices of the samples in a block that the next sub-attack runs on."""
        return np.flatnonzero(BlockResult.of(records).open) if records else np.arange(len(self.ids[block]))

    def _run_sub_attack(self, block: int, records: list[Record], x: Tensor, y: Tensor) -> Record:
        """Make the next record of a block with images `x` and labels `y`."""
        expected, before, started = self._expected(block, records), replace(self.search.passes), time.perf_counter()
        not_finite = self.search.not_finite
        indices = torch.from_numpy(self._indices(block, records)).to(x.device)
        x, y, found = x[indices], y[indices], {}
        if not records or len(x) == 0:
            predictions, x_adv = self._predict(x), x[:0]
        elif expected.label == CERTIFICATE:
            predictions, x_adv, found = y, x[:0], certified_ids(self.evaluation, expected.ids, x, y)
        else:
            attack = self.evaluation.sub_attacks[len(records) - len(self.labels)]
            x_adv, fooled = run_sub_attack(attack, self.search, x, y, expected.seed)
            _check_distance(attack, x[fooled], x_adv[fooled])
            predictions = y.clone()
            predictions[fooled] = self._predict(x_adv[fooled])
            x_adv = x_adv[predictions != y]
        passes = self.search.passes - before
        return replace(
            expected,
            labels=y.cpu().numpy(),
            predictions=predictions.cpu().numpy(),
            x_adv=x_adv.cpu().numpy(),
            forward=passes.forward,
            backward=passes.backward,
            exact=passes.exact,
            note=found
            | {
                "worker": f"process {os.getpid()} on {platform.node()}",
                "device": x.device.type,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "gradients_not_finite": self.search.not_finite - not_finite,
                "seconds": time.perf_counter() - started,
            },
        )

    @cached_property
    def search(self) -> SearchModel:
        """The model for the attacks, after its first call.

        The first call determines how all later ones are computed.
        """
        evaluation = self.evaluation
        search = evaluation.attack.search_model(evaluation.probe.model, evaluation.precision)
        probes, _ = evaluation.samples.fetch(evaluation.samples.ids[:PROBES])
        with torch.no_grad(), frozen(search):
            search(probes)
        return search

    def _predict(self, x: Tensor) -> Tensor:
        """Return the class of each image, (N,) int64; `NO_PREDICTION` if undefined."""
        parts = [torch.empty(0, dtype=torch.int64, device=x.device)]
        with torch.no_grad(), frozen(self.evaluation.model):
            parts += [predicted(self.search.exact(part)) for part in torch.split(x, _BATCH_SIZE) if len(part)]
        return torch.cat(parts)

    def _report_start(self) -> None:
        total = len(self.ids) * len(self.labels)
        partial = [(block, len(self._records(block))) for block in {block for block, _ in self.open}]
        found = len(self.done) * len(self.labels) + sum(count for _, count in partial)
        self.found = len(self.done) * sum(self.budgets) + sum(sum(self.budgets[:count]) for _, count in partial)
        self.progress(f"{self.state}: {found} of {total} records found")

    def _report(self, records: list[Record]) -> None:
        record = records[-1]
        robust, evaluated = self.totals if record.block in self.done else _sum(self.totals, _counts(records))
        made = len(self.done) * sum(self.budgets) + sum(self.budgets[number] for _, number in self.open)
        left = len(self.ids) * sum(self.budgets) - made
        seconds = (time.perf_counter() - self.started) / max(1, made - self.found) * left  # made by all processes
        self.progress(
            f"block {record.block + 1} of {len(self.ids)}, {record.label}: {np.count_nonzero(record.fooled)} of "
            f"{len(record.ids)} misclassified; robust so far {robust} of {evaluated} "
            f"({100 * robust / evaluated:.1f} %); "
            + (f"at most about {duration(seconds)} left" if left > 0 else "nothing left")
        )

    def _report_waiting(self) -> None:
        owners = {block: self.state.owner(block) for block in self._missing()}
        text = "; ".join(f"block {block + 1}: {owner}" for block, owner in owners.items() if owner)
        if text:
            self.progress(f"waiting for {text}")


def _counts(records: list[Record]) -> tuple[int, int]:
    """Return the numbers of robust and of evaluated samples of a block."""
    robust = BlockResult.of(records).robust
    return int(np.count_nonzero(robust)), len(robust)


def _sum(counts: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    return counts[0] + more[0], counts[1] + more[1]


def _budget(attack: Attack) -> int:
    """Return the passes of an attack on a robust image, from its settings."""
    described = attack.describe()
    counts = (int(described.get(name, 1)) for name in ("steps", "targets", "restarts", "queries"))
    return len(described.get("widths", [1])) * math.prod(counts)


def _check_distance(attack: Attack, x: Tensor, x_adv: Tensor) -> None:
    """Refuse images outside the threat model."""
    largest = max(geometry_of(attack.norm).size(x_adv - x).tolist(), default=0.0)
    low, high = attack.bounds or (-math.inf, math.inf)
    if not largest <= attack.radius * (1 + _ROUNDING) or not bool(((x_adv >= low) & (x_adv <= high)).all()):
        raise ValueError(
            f"Images of {attack.label} must be within {attack.radius:g} ({attack.norm}) and within its bounds, got a "
            f"distance of {largest:g} or pixels out of bounds. This is a bug in the attack; report it and use another."
        )

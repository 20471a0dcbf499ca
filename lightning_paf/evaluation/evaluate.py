"""The verdict of an attack on a model: block by block, stage by stage, through a ledger."""

import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.attacks import Attack
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.evaluation.identity import Header
from lightning_paf.evaluation.judgement import Findings, Judgement
from lightning_paf.evaluation.record import Record
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.state import Ledger, MemoryLedger
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.predictions import NO_PREDICTION, predicted
from lightning_paf.nn.modes import frozen
from lightning_paf.runs.progress import duration
from lightning_paf.speed.search_model import Precision, SearchModel

__all__ = ["Judgement", "Stop", "judge", "stage_seed"]

Stop = Callable[[int, int, int], bool]
"""`(robust, judged, total)` to whether enough samples are judged."""

CLEAN = "clean"
_MOST_STAGES = 2**7 - 1
_FORWARD_AT_ONCE = 256
_PROBES = 8
_ROUNDING = 1e-4
"""What a perturbation may exceed the radius by, as a share of it: the rounding of a sum over the pixels."""

_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0
_SECONDS_BETWEEN_WAITING_LINES = 60.0


def judge(
    model: nn.Module,
    attack: Attack,
    samples: Samples,
    ledger: Ledger | MemoryLedger,
    *,
    seed: int = 0,
    block_size: int = 500,
    precision: Precision = "fp32",
    stop: Stop | None = None,
    progress: Callable[[str], None] | None = None,
    header: Header | None = None,
) -> Judgement:
    """Judge every sample: clean error, broken by which stage of the attack, or robust.

    A block is a fixed run of `block_size` samples. Its clean images come first, then the stages of the attack in their
    order, each on the samples that all before left correctly classified; each result is one record of the ledger. The
    seed of a record depends on `seed`, block and stage alone, and no sample meets one of another block. So the verdicts
    do not depend on interruptions, nor on how many processes call this with the same ledger: each takes blocks that are
    free, waits for the others at the end, and returns the whole verdict. The price is that an attack's batches shrink
    within a block as samples fall; a large `block_size` keeps them full.

    Equal means bit for bit on equal machines with equal settings. Where processors differ in rounding, the first record
    of a place counts, and what follows is attacked after that one.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, classes); on the device of the samples.
        attack: With its stages.
        samples: What is judged.
        ledger: Where the records are kept.
        seed: Of all random numbers.
        block_size: Samples a block; what is lost at most when a process is killed, in samples of one stage.
        precision: Of the search; every success is confirmed in float32.
        stop: Asked with the counts of the first block, of the first two, and so on; the verdict ends with the first for
            which it holds. It must depend on its arguments alone for all workers to end at the same.
        progress: Is called with lines for people; by default, none are made.
        header: `Header.of` these arguments, where the caller has it: making it reads every sample.

    Raises:
        ValueError: The ledger belongs to another evaluation or cannot be written; no samples, or some twice;
            `block_size` or the number of stages out of range.
    """
    _check(attack, samples, block_size)
    with torch.inference_mode(False):
        if header is None:
            header = Header.of(model, attack, samples, seed=seed, block_size=block_size, precision=precision)
        ledger.open(header)
        worker = _Worker(model, attack, samples, ledger, header, stop, progress or (lambda line: None))
        judgement = worker.work()
    undefined = int(np.count_nonzero(judgement.adversarial == NO_PREDICTION))
    if undefined:
        warnings.warn(
            f"The logits of {undefined} samples are not finite; these count as misclassified. Look for an overflow in "
            "the model.",
            stacklevel=2,
        )
    return judgement


def stage_seed(seed: int, block: int, stage: int, label: str) -> int:
    """Seed of one record: 63 bits of a SHA-256, so that neighbours have nothing in common."""
    digest = hashlib.sha256(json.dumps([seed, block, stage, label]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, eq=False)
class _Task:
    """The next record of a block, and which samples of the block it is about."""

    block: int
    stage: int
    label: str
    seed: int
    after: str
    ids: NDArray[np.int64]
    places: NDArray[np.int64]

    def is_done_by(self, record: Record) -> bool:
        same = all(getattr(record, name) == getattr(self, name) for name in ("label", "seed", "after"))
        return same and np.array_equal(record.ids, self.ids)


class _Worker:
    """One process at work on an evaluation, perhaps beside others."""

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        samples: Samples,
        ledger: Ledger | MemoryLedger,
        header: Header,
        stop: Stop | None,
        say: Callable[[str], None],
    ) -> None:
        self.model = model
        self.attack = attack
        self.samples = samples
        self.ledger = ledger
        self.header = header
        self.stop = stop
        self.say = say
        self.attacks = attack.sub_attacks()
        self.labels = [CLEAN, *(stage.label for stage in self.attacks)]
        self.blocks = math.ceil(len(samples) / header.block_size)
        self.done: dict[int, Findings] = {}
        self.prefix = 0  # the first so many blocks are done, and `stop` has been asked about them
        self.stopped = False
        self.found = 0
        self.started = time.perf_counter()

    def work(self) -> Judgement:
        """Take free blocks until all are judged, by whomever."""
        finished = self._look()
        self._greet()
        wait, next_line = _SHORTEST_WAIT, 0.0
        while not finished:
            if self._judge_a_free_block():
                wait = _SHORTEST_WAIT
            else:
                if time.perf_counter() > next_line:
                    self._tell_whom_we_wait_for()
                    next_line = time.perf_counter() + _SECONDS_BETWEEN_WAITING_LINES
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            finished = self._look()
        if "search" in vars(self):  # made where a block was left to do
            self.search.warn_of_gradients()
        parts = [self.done[block] for block in range(self.prefix)]
        return Judgement.joined(parts, len(self.samples), self.header, self.ledger)

    def _look(self) -> bool:
        """Take in the blocks that have been completed, by whomever; whether there is nothing left to do."""
        records = Counter(block for block, _ in self.ledger.recorded() if block not in self.done)
        for block in (block for block, number in records.items() if number == len(self.labels)):
            chain = self._chain(block)
            if len(chain) == len(self.labels):
                self.done[block] = Findings.of(chain)
        while self.prefix in self.done and not self.stopped:
            self.prefix += 1
            if self.stop is not None:
                robust, judged = self._counts(range(self.prefix))
                self.stopped = self.stop(robust, judged, len(self.samples))
        return self.stopped or self.prefix == self.blocks

    def _judge_a_free_block(self) -> bool:
        for block in range(self.blocks):
            if block in self.done:
                continue
            lease = self.ledger.lease(block)
            if lease is not None:
                with lease:
                    self._judge_block(block)
                return True
        return False

    def _judge_block(self, block: int) -> None:
        records: list[Record] = []
        images: tuple[Tensor, Tensor] | None = None
        while len(records) < len(self.labels):
            task = self._task(block, records)
            record = self._recorded(task)
            if record is None:
                if self._look():  # by another worker's block, the stop rule holds
                    return
                images = images or self.samples.fetch(self._ids(block))
                with torch.autocast(images[0].device.type, enabled=False):
                    record = self.ledger.write(self._run(task, *images))
                self._tell(record, Findings.of([*records, record]))
            records.append(record)

    def _chain(self, block: int) -> list[Record]:
        """The valid records of a block, up to the first that is missing."""
        records: list[Record] = []
        while len(records) < len(self.labels):
            record = self._recorded(self._task(block, records))
            if record is None:
                break
            records.append(record)
        return records

    def _task(self, block: int, records: Sequence[Record]) -> _Task:
        """What follows after these records of a block."""
        stage, ids = len(records), self._ids(block)
        places = np.flatnonzero(Findings.of(records).standing) if records else np.arange(len(ids))
        after = records[-1].fingerprint if records else self.header.fingerprint
        label = self.labels[stage]
        return _Task(block, stage, label, stage_seed(self.header.seed, block, stage, label), after, ids[places], places)

    def _recorded(self, task: _Task) -> Record | None:
        record = self.ledger.read(task.block, task.stage)
        return record if record is not None and task.is_done_by(record) else None

    def _run(self, task: _Task, x: Tensor, y: Tensor) -> Record:
        """Do a task; `x` and `y` are those of the whole block."""
        before, started = replace(self.search.passes), time.perf_counter()
        places = torch.from_numpy(task.places).to(x.device)
        x, y = x[places], y[places]
        if task.stage == 0 or len(x) == 0:
            predictions, x_adv = self._predict(x), x[:0]
        else:
            x_adv, fooled = run_sub_attack(self.attacks[task.stage - 1], self.search, x, y, task.seed)
            _check_reach(self.attacks[task.stage - 1], x[fooled], x_adv[fooled])
            predictions = y.clone()
            predictions[fooled] = self._predict(x_adv[fooled])
            x_adv = x_adv[predictions != y]
        after = self.search.passes
        return Record(
            task.block,
            task.stage,
            task.label,
            task.seed,
            task.after,
            task.ids,
            y.cpu().numpy(),
            predictions.cpu().numpy(),
            x_adv.cpu().numpy(),
            after.forward - before.forward,
            after.backward - before.backward,
            after.exact - before.exact,
            self._note(time.perf_counter() - started, x.device),
        )

    @cached_property
    def search(self) -> SearchModel:
        """The model for the attacks, after its first call.

        The first call decides how all others are computed. All workers make it with the first samples of the
        evaluation, so that their records are equal whichever block they begin with.
        """
        search = self.attack.search_model(self.model, self.header.precision)
        probes, _ = self.samples.fetch(self.samples.ids[:_PROBES])
        with torch.no_grad(), frozen(self.model):
            search(probes)
        return search

    def _predict(self, x: Tensor) -> Tensor:
        """Class of each image by the untouched model, (N,) int64; `NO_PREDICTION` where the logits are not finite."""
        parts = [torch.empty(0, dtype=torch.int64, device=x.device)]
        with torch.no_grad(), frozen(self.model):
            for first in range(0, len(x), _FORWARD_AT_ONCE):
                logits = self.search.exact(x[first : first + _FORWARD_AT_ONCE])
                parts.append(predicted(logits))
        return torch.cat(parts)

    def _ids(self, block: int) -> NDArray[np.int64]:
        return self.samples.ids[block * self.header.block_size : (block + 1) * self.header.block_size]

    def _counts(self, blocks: Sequence[int]) -> tuple[int, int]:
        """Robust and judged samples."""
        parts = [self.done[block] for block in blocks]
        return sum(int(np.count_nonzero(part.standing)) for part in parts), sum(len(part.ids) for part in parts)

    def _note(self, seconds: float, device: torch.device) -> dict[str, object]:
        return {
            "worker": f"process {os.getpid()} on {platform.node()}",
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": seconds,
        }

    def _greet(self) -> None:
        total = self.blocks * len(self.labels)
        partial = {block for block, _ in self.ledger.recorded()} - self.done.keys()
        self.found = len(self.done) * len(self.labels) + sum(len(self._chain(block)) for block in partial)
        if self.found == total:
            self.say(f"{self.ledger}: all {total} records found")
        elif self.found:
            self.say(f"{self.ledger}: {self.found} of {total} records found, continuing")
        else:
            self.say(f"{self.ledger}: new, {total} records to make")

    def _tell(self, record: Record, findings: Findings) -> None:
        robust, judged = self._counts([block for block in self.done if block != record.block])
        robust, judged = robust + int(np.count_nonzero(findings.standing)), judged + len(findings.ids)
        made = max(1, len(self.ledger.recorded()) - self.found)  # by all workers
        left = self.blocks * len(self.labels) - self.found - made
        seconds = (time.perf_counter() - self.started) / made * left
        self.say(
            f"block {record.block + 1} of {self.blocks}, {record.label}: {np.count_nonzero(record.fooled)} of "
            f"{len(record.ids)} misclassified; robust so far {robust} of {judged} ({100 * robust / judged:.1f} %); "
            + (f"at most about {duration(seconds)} left" if left > 0 else "nothing left")
        )

    def _tell_whom_we_wait_for(self) -> None:
        holders = {block: self.ledger.holder(block) for block in range(self.blocks) if block not in self.done}
        text = "; ".join(f"block {block + 1}: {holder}" for block, holder in holders.items() if holder)
        if text:
            self.say(f"waiting for {text}")


def _check_reach(attack: Attack, x: Tensor, x_adv: Tensor) -> None:
    """Let no image outside the threat model into a record."""
    if len(x) == 0:
        return
    largest = float(geometry_of(attack.norm).size(x_adv - x).max())
    low, high = attack.bounds or (-math.inf, math.inf)
    if not largest <= attack.radius * (1 + _ROUNDING) or not bool(((x_adv >= low) & (x_adv <= high)).all()):
        raise ValueError(
            f"{attack.label} must stay within {attack.radius:g} ({attack.norm}) and within its bounds, but went "
            f"{largest:g} far or left the bounds. This is a mistake in the attack; use another one."
        )


def _check(attack: Attack, samples: Samples, block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"A block needs at least one sample, but block_size={block_size}. Usual is 500.")
    if len(samples) == 0:
        raise ValueError("A verdict needs at least one sample, but there is none. Give some.")
    if len(np.unique(samples.ids)) < len(samples):
        raise ValueError("A sample counts once, but some ids occur twice. Give each id once.")
    if len(attack.sub_attacks()) > _MOST_STAGES:
        raise ValueError(f"An attack may have {_MOST_STAGES} stages, but has {len(attack.sub_attacks())}. Give fewer.")

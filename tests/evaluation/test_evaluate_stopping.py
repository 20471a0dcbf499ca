import time

import numpy as np
from helpers.evaluation_worker import BLOCK_SIZE, BLOCKS
from helpers.state_fakes import judged, same, undisturbed

from lightning_paf.evaluation.result import Verdict
from lightning_paf.evaluation.state import Ledger, MemoryLedger


def test_the_verdict_ends_with_the_first_prefix_that_satisfies_the_rule():
    asked = []

    def stop(robust, count, total):
        asked.append((robust, count, total))
        return count >= 2 * BLOCK_SIZE

    whole, part = undisturbed(), judged(stop=stop)
    n = 2 * BLOCK_SIZE
    assert (part.judged, part.total) == (n, 23)
    assert np.array_equal(part.verdicts, whole.verdicts[:n])
    robust = [int((whole.verdicts[:k] == Verdict.ROBUST).sum()) for k in (BLOCK_SIZE, n)]
    assert asked == [(robust[0], BLOCK_SIZE, 23), (robust[1], n, 23)]
    assert np.concatenate([ids for ids, _ in part.examples()]).max() < n
    assert part.ledger.recorded()[-1][0] == 1, "no block was judged for nothing"


def test_a_rule_ends_at_the_same_place_in_a_whole_ledger():
    ledger = MemoryLedger()
    judged(ledger)
    again = judged(ledger, stop=lambda robust, count, total: count >= 12)
    assert again.judged == 12


def test_a_rule_that_never_holds_judges_all():
    assert judged(stop=lambda *counts: False).judged == 23


def test_a_worker_stops_within_a_block_when_the_others_have_decided(tmp_path):
    """The first block is somebody else's, who finishes it while this one works on the second."""
    other = Ledger(tmp_path)
    other.open(undisturbed().header)
    lease = other.lease(0)
    records = [undisturbed().ledger.read(0, stage) for stage in range(3)]
    lines = []

    def tell(line):
        lines.append(line)
        if len(lines) == 2:  # one record of the second block is made
            for record in records:
                other.write(record)

    with lease:
        part = judged(Ledger(tmp_path), stop=lambda *counts: True, progress=tell)
    assert part.judged == BLOCK_SIZE
    assert [key for key in other.recorded() if key[0] > 0] == [(1, 0)]


def test_a_worker_waits_for_the_others_and_says_for_whom(tmp_path, monkeypatch):
    other = Ledger(tmp_path)
    other.open(undisturbed().header)
    lease, records, lines = (
        other.lease(BLOCKS - 1),
        [undisturbed().ledger.read(BLOCKS - 1, stage) for stage in range(3)],
        [],
    )

    def finish(seconds):
        if records:
            other.write(records.pop(0))

    monkeypatch.setattr(time, "sleep", finish)
    with lease:
        assert same(judged(Ledger(tmp_path), progress=lines.append), undisturbed())
    assert [line for line in lines if line.startswith(f"waiting for block {BLOCKS}: process ")] == [lines[-1]]

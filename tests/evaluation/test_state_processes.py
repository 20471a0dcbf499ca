"""Several processes, and processes that are killed, come to the ledger of one that nobody disturbs."""

import os
import random
import signal
import time

import numpy as np
import pytest
from helpers import evaluation_worker
from helpers.evaluation_worker import BLOCK_SIZE, RECORDS, start, work

from lightning_paf.evaluation.evaluate import judge
from lightning_paf.evaluation.state import Ledger, MemoryLedger

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a server of processes")]

KILLS = 10


@pytest.fixture(scope="module")
def expected():
    """What one process finds without a ledger on disk."""
    return judge(
        evaluation_worker.model(),
        evaluation_worker.attack(),
        evaluation_worker.samples(),
        MemoryLedger(),
        seed=3,
        block_size=BLOCK_SIZE,
    )


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory):
    """Start the server of processes before anybody measures time."""
    process = start(tmp_path_factory.mktemp("warm"))
    process.join(60)
    assert process.exitcode == 0


def finish(*processes):
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def assert_equal(folder, expected):
    again = work(folder)
    assert again.ledger.digest() == expected.ledger.digest()
    for name in ("ids", "labels", "predictions", "adversarial", "broken_by", "verdicts"):
        assert np.array_equal(getattr(again, name), getattr(expected, name)), name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_number_of_processes_makes_the_same_ledger(tmp_path, expected, number):
    folder = tmp_path / "ledger"
    finish(*(start(folder, 0.01) for _ in range(number)))
    assert_equal(folder, expected)
    assert {path.suffix for path in folder.iterdir()} == {".record", ".json"}, "something was left behind"
    workers = {Ledger(folder).read(block, stage).note["worker"] for block, stage in Ledger(folder).recorded()}
    assert 1 <= len(workers) <= number


def test_two_processes_share_the_work(tmp_path):
    finish(start(tmp_path, 0.05), start(tmp_path, 0.05))
    workers = {Ledger(tmp_path).read(block, stage).note["worker"] for block, stage in Ledger(tmp_path).recorded()}
    assert len(workers) == 2


def test_killed_at_ten_random_moments_the_ledger_is_that_of_an_undisturbed_run(tmp_path, expected):
    seed = random.randrange(2**32)
    moments, told, folder = random.Random(seed), tmp_path / "told", tmp_path / "ledger"
    told.touch()
    for kill in range(KILLS):
        length = told.stat().st_size
        process = start(folder, 0.3, 120.0, None, told)
        while kill % 2 and told.stat().st_size == length:  # half of them are killed at work, half perhaps before
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.45))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} with seed {seed} came too late"
    before = time.monotonic()
    work(folder, told=told)
    assert time.monotonic() - before < 60, "waited for the dead"
    assert_equal(folder, expected)
    assert Ledger(folder).digest() == expected.ledger.digest(), f"seed {seed}"
    starts = [line for line in told.read_text().splitlines() if line.startswith("ledger")]
    found = [int(line.split(": ")[1].split()[0]) if "continuing" in line else 0 for line in starts]
    assert found == sorted(found), "a record was lost"
    assert 0 < found[-1] < RECORDS, f"seed {seed}: the kills came too early or too late to show anything"
    assert starts[-1] == f"ledger {folder}: {found[-1]} of {RECORDS} records found, continuing"


def test_a_killed_process_is_relieved_by_another_that_is_waiting(tmp_path, expected):
    first = start(tmp_path, 0.5)
    while not list(tmp_path.glob("*.lease")):
        time.sleep(0.01)
    second = start(tmp_path)
    time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    finish(second)
    first.join()
    assert_equal(tmp_path, expected)


def test_a_process_that_hangs_is_relieved_after_the_time_out_and_does_no_harm_when_it_wakes(tmp_path, expected):
    first = start(tmp_path, 0.2, 1.0)
    while not list(tmp_path.glob("*.stage-0.record")):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    second = start(tmp_path, 0.0, 1.0)
    try:
        finish(second)
        assert Ledger(tmp_path).digest() == expected.ledger.digest()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    finish(first)
    assert_equal(tmp_path, expected)


@pytest.mark.parametrize("hours", [5.0, -5.0])
def test_machines_whose_clocks_disagree_share_the_work_and_relieve_each_other(tmp_path, expected, hours):
    first = start(tmp_path, 1.0, 2.0, None, None, hours)
    second = start(tmp_path, 0.1, 2.0, None, None, -hours)
    while len(list(tmp_path.glob("*.lease"))) < 2:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    finish(second)
    first.join()
    assert_equal(tmp_path, expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".record", ".json"}


def fewer_than_half_of_two_blocks(robust, judged, total):
    return judged >= 2 * BLOCK_SIZE and robust < judged / 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_rule_ends_at_the_same_block_for_any_number_of_processes(tmp_path, expected, number):
    finish(*(start(tmp_path, 0.01, 120.0, fewer_than_half_of_two_blocks) for _ in range(number)))
    part = work(tmp_path, stop=fewer_than_half_of_two_blocks)
    assert part.judged == 2 * BLOCK_SIZE
    assert part.total == expected.total
    assert np.array_equal(part.verdicts, expected.verdicts[: part.judged])
    assert part.ledger.digest(part.blocks) == expected.ledger.digest(part.blocks)

"""Several processes, and killed ones, make the records of one process without interruptions."""

import os
import random
import signal
import time

import pytest
from helpers.evaluation_worker import BLOCK_SIZE, RECORDS, start, work
from helpers.state_fakes import fingerprints, same, undisturbed

from lightning_paf.evaluation import EvaluationState

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a server of processes")]

KILLS = 8


@pytest.fixture(scope="module", autouse=True)
def _server(tmp_path_factory):
    """Start the server of processes before time is measured."""
    finish(start(tmp_path_factory.mktemp("warm")))


def finish(*processes):
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def wait_for(folder, pattern, count=1):
    while len(list(folder.glob(pattern))) < count:
        time.sleep(0.01)


def assert_complete(folder, message=""):
    assert fingerprints(EvaluationState(folder)) == fingerprints(undisturbed().state), message
    assert same(work(folder), undisturbed())
    assert {path.suffix for path in folder.iterdir()} == {".record", ".json"}, "other files are left"


def workers(folder):
    state = EvaluationState(folder)
    return {state.read(*key).note["worker"] for key in state.recorded()}


@pytest.mark.parametrize("number", [2, 3])
def test_any_number_of_processes_makes_the_same_records(tmp_path, number):
    finish(*(start(tmp_path, 0.03) for _ in range(number)))
    assert_complete(tmp_path)
    assert 2 <= len(workers(tmp_path)) <= number


def test_an_evaluation_killed_at_random_moments_resumes(tmp_path):
    seed = random.randrange(2**32)
    moments, log, folder = random.Random(seed), tmp_path / "log", tmp_path / "state"
    log.touch()
    for kill in range(KILLS):
        length = log.stat().st_size
        process = start(folder, 0.2, 120.0, None, log)
        while kill % 2 and log.stat().st_size == length:  # every second one is killed after it has started to work
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} with seed {seed} came too late"
    before = time.monotonic()
    work(folder, log=log)
    assert time.monotonic() - before < 60, "waited for a dead process"
    assert_complete(folder, f"seed {seed}")
    starts = [line for line in log.read_text().splitlines() if line.startswith("state")]
    found = [int(line.split(": ")[1].split()[0]) for line in starts]
    assert found == sorted(found), "a record was lost"
    assert 0 < found[-1] < RECORDS, f"seed {seed}: all kills came too early or too late"


def test_the_block_of_a_killed_process_is_taken_over_by_a_waiting_one(tmp_path):
    first = start(tmp_path, 0.5)
    wait_for(tmp_path, "*.claim")
    second = start(tmp_path)
    time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    finish(second)
    first.join()
    assert_complete(tmp_path)


def test_the_block_of_a_suspended_process_is_taken_over_and_the_process_continues_later(tmp_path):
    first = start(tmp_path, 0.2, 1.0)
    wait_for(tmp_path, "*.sub-attack-0.record")
    os.kill(first.pid, signal.SIGSTOP)
    second = start(tmp_path, 0.0, 1.0)
    try:
        finish(second)
        assert fingerprints(EvaluationState(tmp_path)) == fingerprints(undisturbed().state)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    finish(first)
    assert_complete(tmp_path)


@pytest.mark.parametrize("hours", [5.0, -5.0])
def test_machines_whose_clocks_differ_take_over_from_each_other(tmp_path, hours):
    first = start(tmp_path, 0.5, 2.0, None, None, hours)
    second = start(tmp_path, 0.05, 2.0, None, None, -hours)
    wait_for(tmp_path, "*.claim", 2)
    os.kill(first.pid, signal.SIGKILL)
    finish(second)
    first.join()
    assert_complete(tmp_path)


def two_blocks(robust, evaluated, total):
    return evaluated >= 2 * BLOCK_SIZE and robust < evaluated / 2


def test_a_stop_rule_stops_several_processes_at_the_same_block_as_one(tmp_path):
    finish(*(start(tmp_path, 0.01, 120.0, two_blocks) for _ in range(2)))
    part = work(tmp_path, stop=two_blocks)
    assert (part.evaluated, part.total) == (2 * BLOCK_SIZE, undisturbed().total)
    assert part.outcomes.tolist() == undisturbed().outcomes[: part.evaluated].tolist()
    mine, all_of_them = fingerprints(part.state), fingerprints(undisturbed().state)
    assert {key: mine[key] for key in mine if key[0] < 2} == {key: all_of_them[key] for key in mine if key[0] < 2}

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.ddp_worker import run_all, run_far_apart
from helpers.forked_ranks import SECONDS, Ranks
from test_ddp_cpu import write_inputs

from lightning_paf.callbacks import RankWatch, rank_watch
from lightning_paf.utils.process import Process

KILLED = ["--trainer.callbacks+=helpers.ddp_worker.KilledOnTheLastRank"]


def fit(folder: Path, ranks: int, *words: str) -> list[str]:
    devices = ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp", "--data.batch_size", "12"]
    return ["fit", "-c", write_inputs(folder), "--run", str(folder / "run"), *devices, *words]


def messages(ranks: Ranks) -> list[str]:
    return [line for text in ranks.output for line in text.splitlines() if line.startswith("lightning-paf: error")]


def test_a_time_out_is_a_time():
    with pytest.raises(ValueError, match="timeout=0 would declare every rank dead"):
        RankWatch(timeout=0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] Timed out waiting 1000ms"), TimeoutError),
        (RuntimeError("out of memory"), None),
        (ValueError("The loss must be finite"), None),
        (SystemExit(75), None),
    ],
)
def test_an_error_of_the_network_is_explained(monkeypatch, error, expected):
    class Watch:
        def __init__(self):
            self.done = []

        def search(self):
            self.done.append("search")

        def end(self, well):
            self.done.append(well)

    callback, watch = RankWatch(), Watch()
    monkeypatch.setattr(callback, "_watch", watch)
    trainer = type("Trainer", (), {"global_rank": 3})
    if expected is None:
        callback.on_exception(trainer, None, error)
        assert watch.done == [isinstance(error, SystemExit)]
    else:
        with pytest.raises(expected, match=r"Rank 3 has lost the others .*Timed out waiting.*--ckpt_path auto"):
            callback.on_exception(trainer, None, error)
        assert watch.done == ["search", False]


def test_a_process_whose_last_threads_are_still_ending_has_a_cause(tmp_path):
    """Its number tells nothing any more, while its exit status is not there yet."""

    class Ending:
        pid, returncode = 7, None

        def poll(self):
            return None

        def wait(self, timeout):
            return -signal.SIGKILL

    watch = rank_watch._Watch(tmp_path, "job", 0, 60.0, [Ending()])
    watch._processes = [Process.this(), replace(Process.this(), pid=7, started="long ago")]
    watch._file(1).touch()
    assert watch._fate_nearby(1) == "has died (SIGKILL)"


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_with_one_message(tmp_path):
    ranks = Ranks(3, tmp_path, run_all, [(fit(tmp_path, 3, *KILLED), 0)], tmp_path / "saved").wait()
    assert ranks.status == [1, 1, -signal.SIGKILL], str(ranks)
    (message,) = messages(ranks)
    assert f"Rank 2 of 3 (process {ranks.processes[2].pid} on " in message
    assert "has died. The other ranks stop. Continue with --ckpt_path auto." in message
    assert "Traceback" not in str(ranks)


@pytest.mark.slow
def test_a_rank_on_another_machine_is_dead_when_it_is_silent(tmp_path):
    watch = ["--trainer.callbacks+=RankWatch", "--trainer.callbacks.timeout", "2"]
    ranks = Ranks(2, tmp_path, run_far_apart, fit(tmp_path, 2, *KILLED, *watch)).wait()
    assert ranks.status == [1, -signal.SIGKILL], str(ranks)
    (message,) = messages(ranks)
    assert "Rank 1 of 2" in message
    assert "has shown no sign of life for 2 s" in message


@pytest.mark.slow
def test_a_rank_that_fails_is_named_by_the_others(tmp_path):
    words = fit(tmp_path, 2, "--model.objective", "helpers.ddp_worker.NaNOnTheSecondRank")
    ranks = Ranks(2, tmp_path, run_all, [(words, 1)], tmp_path / "saved").wait()
    assert ranks.status == [1, 0], str(ranks)  # the second is done with its list
    theirs, own = messages(ranks)
    assert "The loss must be finite, but it is nan at step 1" in own
    assert "Rank 1 of 2" in theirs
    assert "has stopped with an error of its own" in theirs
    assert "tensor.detach()" not in str(ranks), "the message converts numbers in a way that torch warns of"


@pytest.mark.slow
def test_a_process_that_lightning_has_started(tmp_path):
    """Lightning's own observer kills the first process, too."""
    tests = Path(__file__).parent.parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "PYTEST_"))}
    environment |= {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, "-m", "lightning_paf", *fit(tmp_path, 2, *KILLED)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1, done.stderr
    (message,) = (line for line in done.stderr.splitlines() if "error" in line)
    assert message.startswith("lightning-paf: error: Rank 1 of 2 (process ")
    assert "has died (SIGKILL). The other ranks stop." in message

"""Launchers end a job after a failure of one rank, and torchrun resumes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ddp_inputs import AVERAGING, BATCH_NORM, DDP, write_inputs
from helpers.ddp_worker import run_all
from helpers.forked_ranks import SECONDS, Ranks
from helpers.resume_helpers import differences, last

pytestmark = pytest.mark.slow

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that can start ranks, with the environment of a shell."""
    tests = Path(__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "PYTEST_"))}
    environment |= {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment |= {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,  # open until all ranks have ended
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("launcher", "failure", "status"),
    [([], "0 raises", 1), ([], "1 killed", -9), (TORCHRUN, "1 raises", 1)],
    ids=["lightning, first rank", "lightning, other rank", "torchrun"],
)
def test_a_failed_rank_ends_the_others(launcher, failure, status):
    """The other ranks sleep for longer than the limit, as in a collective of NCCL."""
    done = python(*launcher, Path(__file__).parents[1] / "helpers" / "failing_rank.py", *failure.split())
    assert done.returncode == status, done.stdout
    assert done.stdout.count("sleeps") == 1, done.stdout


def test_torchrun_replaces_a_killed_worker_and_the_training_resumes_exactly(tmp_path):
    base = write_inputs(tmp_path)
    words = ["fit", "-c", base, *BATCH_NORM, *AVERAGING, "--periodic.every_n_train_steps", "2"]
    uninterrupted = [*words, *DDP, "--run", str(tmp_path / "uninterrupted")]
    Ranks(2, tmp_path / "logs", run_all, [(uninterrupted, 0)], tmp_path / "saved").succeed()
    killed = ["--trainer.callbacks+=helpers.ddp_worker.KilledOnce", "--trainer.callbacks.step", "5"]
    # Without the two dashes, torchrun takes --run for an abbreviation of its --run-path.
    run = ["-m", "--", "lightning_paf", *words, "--run", tmp_path / "run", "--ckpt_path", "auto", *killed]
    done = python(*TORCHRUN, "--max-restarts", "2", *run)
    assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" not in done.stdout
    assert (tmp_path / "run" / "killed").exists(), done.stdout
    assert "Resuming from" in done.stdout, done.stdout
    assert "step 4." in done.stdout, done.stdout
    assert differences(last(tmp_path / "run"), last(tmp_path / "uninterrupted")) == [], done.stdout

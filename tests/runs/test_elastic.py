"""torchrun replaces a worker that was killed, and the training ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ddp_worker import run_all
from helpers.forked_ranks import SECONDS, Ranks
from helpers.resume_helpers import differences, last
from test_ddp_cpu import AVERAGING, BATCH_NORM, DDP, write_inputs

pytestmark = pytest.mark.slow


def test_a_worker_that_was_killed_is_replaced(tmp_path):
    base = write_inputs(tmp_path)
    words = ["fit", "-c", base, *BATCH_NORM, *AVERAGING, "--periodic.every_n_train_steps", "2"]
    whole = [*words, *DDP, "--run", str(tmp_path / "whole")]
    Ranks(2, tmp_path / "logs", run_all, [(whole, 0)], tmp_path / "saved").succeed()

    tests = Path(__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "PYTEST_"))}
    environment |= {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    killed = ["--trainer.callbacks+=helpers.ddp_worker.KilledOnce", "--trainer.callbacks.step", "5"]
    # Without the two dashes, torchrun takes --run for the beginning of its --run-path.
    run = ["-m", "--", "lightning_paf", *words, "--run", str(tmp_path / "run"), "--ckpt_path", "auto", *killed]
    done = subprocess.run(
        [sys.executable, *torchrun, *run],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" not in done.stdout
    assert (tmp_path / "run" / "killed").exists(), done.stdout
    assert done.stdout.count("Rank 1 of 2 (process ") == 1, done.stdout
    assert "Continuing from" in done.stdout, done.stdout
    assert "step 4." in done.stdout, done.stdout
    assert differences(last(tmp_path / "run"), last(tmp_path / "whole")) == [], done.stdout

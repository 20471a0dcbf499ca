"""Independent processes that evaluate one run, as a SLURM job array or an indexed Kubernetes job starts them."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.cli_runs import status, trained_run
from helpers.processes import started

pytestmark = pytest.mark.slow

SECONDS = 300  # far more than any of these takes
SLURM = {
    "SLURM_JOB_ID": "18",
    "SLURM_JOB_NAME": "evaluate",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_NODELIST": "node1",
    "SLURM_ARRAY_JOB_ID": "17",
    "SLURM_ARRAY_TASK_COUNT": "2",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
KUBERNETES = {
    "JOB_COMPLETION_INDEX": "1",
    "KUBERNETES_PORT": "tcp://10.0.0.1:443",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "HOSTNAME": "evaluate-1",
}
PGD = ["--val_attack.batch_size", "4"]
ALONE = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]


def run_test(environment: dict[str, str], *words: str) -> int:
    os.environ.update(environment)
    return status("test", *words)


@pytest.fixture(scope="module")
def last(tmp_path_factory) -> Path:
    """A run configured for several devices and nodes, like a large training."""
    folder = tmp_path_factory.mktemp("run")
    trained_run(folder)
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("devices: auto", "devices: 8").replace("num_nodes: 1", "num_nodes: 2"))
    assert "devices: 8" in config.read_text()
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_workers_share_a_run_and_late_ones_end_at_once(last, tmp_path):
    words = ["--ckpt_path", str(last), *ALONE, *PGD, "--run", str(tmp_path / "run")]
    logs = [tmp_path / f"log{i}" for i in range(3)]
    workers = [started(run_test, SLURM, *words, log=logs[0]), started(run_test, KUBERNETES, *words, log=logs[1])]
    for worker in workers:
        worker.join(SECONDS)
    assert [worker.exitcode for worker in workers] == [0, 0], "\n".join(log.read_text() for log in logs[:2])
    (result,) = (tmp_path / "run" / "test").glob("pgd_*.json")
    written = json.loads(result.read_text())
    late = started(run_test, SLURM, *words, log=logs[2])
    late.join(SECONDS)
    assert late.exitcode == 0, logs[2].read_text()
    assert "records found" in logs[2].read_text()
    assert "misclassified; robust so far" not in logs[2].read_text(), "something was evaluated again"
    again = json.loads(result.read_text())
    assert {**again, "seconds": 0} == {**written, "seconds": 0}
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_worker_that_is_stopped_releases_its_block(last, tmp_path):
    words = ["--ckpt_path", str(last), *ALONE, *PGD, "--val_attack.attack.steps", "1000000"]
    log = tmp_path / "log"
    worker = started(run_test, SLURM, *words, "--run", str(tmp_path / "run"), log=log)
    end = time.monotonic() + SECONDS
    while not list((tmp_path / "run").rglob("*.sub-attack-0.record")):
        assert worker.is_alive(), log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(SECONDS)
    assert worker.exitcode == 75, log.read_text()
    assert "Repeat the command to resume" in log.read_text()
    assert not list((tmp_path / "run").rglob("*.claim"))

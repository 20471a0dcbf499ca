"""Processes of a pool end when their parent is killed."""

import subprocess
import sys
import time

from lightning_paf.utils.process import start_of

SCRIPT = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from lightning_paf.utils.process import end_with_parent
if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool, open("pid", "w") as file:
        file.write(str(pool.submit(os.getpid).result()))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_does_not_outlive_its_parent(tmp_path):
    (tmp_path / "parent.py").write_text(SCRIPT)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "parent.py"], cwd=tmp_path, timeout=60, check=False, **quiet)
    worker, end = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while start_of(worker):
        assert time.monotonic() < end, "the worker waits for work forever"
        time.sleep(0.05)

"""`status` on runs of every kind: alive, dead, finished, stopped, not begun, foreign."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runs import status, write_experiment

from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.runs.progress import FILE, SILENCE, Progress
from lightning_paf.runs.status import read_run
from lightning_paf.utils.process import Process, start_of

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}
WORKING = Progress(Process.this(), "training", 120, 600, 2, 10, 0.5, 1234.5, 1.0)


def make(run: Path, progress: Progress | None = None, rows: str = "") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("data: x\n")
    if progress is not None:
        progress.write(run / FILE)
    if rows:
        (run / "metrics.csv").write_text(rows)
    return run


def checkpoint(path: Path, step: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    state = {"weight": torch.ones(3, requires_grad=True), "alpha": torch.nn.Parameter(torch.ones(1))}
    torch.save({"global_step": step, "state_dict": state, "loops": {"numpy": np.float64(1.0)}}, path)
    return path


def printed(capsys, *words) -> str:
    assert status("status", *words) == 0
    return capsys.readouterr().out


def test_a_run_that_works(tmp_path, capsys):
    run = make(tmp_path / "run", WORKING)
    checkpoint(run / "checkpoints" / "step=100.ckpt", 100)
    checkpoint(run / "checkpoints" / "last.ckpt", 120)
    out = printed(capsys, run)
    assert f"run: alive (training, process {os.getpid()} on" in out
    assert "epoch 2 of 10, step 120 of 600 (20.0 %)" in out
    assert "1,234 img/s, 30 s an epoch" in out
    assert " left: until " in out
    assert "last.ckpt: step 120" in out
    assert "continue" not in out
    assert 0 < read_run(run).seconds_left <= 239
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_works_but_does_not_get_on(tmp_path, capsys):
    run = make(tmp_path, replace(WORKING, state="validating", idle=1500.0))
    assert "validating" in printed(capsys, run)
    assert "no step for 25 min" in printed(capsys, run)


def test_a_run_that_was_killed(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = replace(Process.this(), pid=child.pid, started=start_of(child.pid))
        run = make(tmp_path / "run", replace(WORKING, process=process))
        assert "run: alive" in printed(capsys, run)
        child.kill()
    out = printed(capsys, run)
    assert f"run: dead (process {process.pid} on {process.host} is gone, last sign of life" in out
    assert f"continue    lightning-paf fit -c {run}/config.yaml --run {run} --ckpt_path auto" in out
    assert " left" not in out


@pytest.mark.parametrize(("silent", "expected"), [(5, "alive"), (2 * SILENCE, "dead")])
def test_a_run_elsewhere_is_known_by_its_signs_of_life(silent, expected, tmp_path):
    run = make(tmp_path, replace(WORKING, process=Process("far", 1, "2", "another machine")))
    before = (run / FILE).stat().st_mtime - silent
    os.utime(run / FILE, (before, before))
    assert read_run(run).life == expected


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_has_ended_early(state, tmp_path, capsys):
    out = printed(capsys, make(tmp_path / "run", replace(WORKING, state=state, error="ValueError: no")))
    assert f"run: {state} (ValueError: no)" in out
    assert "--ckpt_path auto" in out


def test_a_run_that_was_never_begun(tmp_path, capsys):
    out = printed(capsys, make(tmp_path / "run"))
    assert "run: not started" in out
    assert "start       lightning-paf fit" in out


def test_a_run_of_before_there_was_a_file_of_progress(tmp_path, capsys):
    run = make(tmp_path / "run", rows="epoch,step,train/loss\n0,9,1.5\n1,19,1.2\n2,2")
    out = printed(capsys, run)
    assert f"run: unknown (it has left no {FILE})" in out
    assert "epoch 2, step 20" in out


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for place in (tmp_path, tmp_path / "photos", tmp_path / "missing"):
        assert status("status", place) == 1
        assert "what was given to `fit --run`" in capsys.readouterr().err


ROWS = """epoch,step,val/acc,val/acc_pgd,train/loss,activation/a/alpha,activation/b/alpha
0,9,0.50,0.30,,1.0,1.5
0,9,,,2.0,,
1,19,0.70,0.20,,1.1,1.6
1,19,,,1.0,,
"""


def test_the_best_numbers_and_the_last_activation(tmp_path, capsys):
    out = printed(capsys, make(tmp_path, WORKING, ROWS))
    assert "robust(pgd) 30.0 % in epoch 1; clean 70.0 % in epoch 2" in out
    assert "alpha 1.1..1.6" in out


def test_a_torn_checkpoint_is_named_and_nothing_in_one_is_run(tmp_path, capsys):
    run = make(tmp_path, WORKING)
    checkpoint(run / "checkpoints" / "step=50.ckpt", 50)
    torn = checkpoint(run / "checkpoints" / "last.ckpt", 120)
    torn.write_bytes(torn.read_bytes()[:-30])

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with zipfile.ZipFile(run / "checkpoints" / "trap.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"global_step": 60, "trap": Trap()}))
    out = printed(capsys, run)
    assert "last.ckpt is not whole" in out
    assert "trap.ckpt: step 60" in out
    assert not (tmp_path / "sprung").exists()


def test_results_and_states_of_the_test(tmp_path, capsys):
    run = make(tmp_path, replace(WORKING, state="finished"))
    verdicts = np.array([1] * 20 + [2] * 2 + [3] * 2, np.uint8)
    EvaluationResult("autoattack", ATTACK, verdicts, 1.0).save(run / "test" / "autoattack_linf_8-255.json")
    (run / "test" / "other.json").write_text("[]")
    ledger = run / "test" / "state" / "pgd_linf_8-255-0123456789ab"
    ledger.mkdir(parents=True)
    content = {"samples": 100, "block_size": 30, "sub_attacks": [{"label": "pgd"}]}
    (ledger / "identity.json").write_text(json.dumps(content))
    for name in (
        "block-00000.sub-attack-0.record",
        "block-00000.sub-attack-1.record",
        "block-00001.sub-attack-0.record.partial",
    ):
        (ledger / name).touch()
    (ledger / "block-00001.claim").write_text(json.dumps({**asdict(Process.this()), "token": "x"}))
    (ledger / "block-00002.claim").write_text(json.dumps({**asdict(replace(Process.this(), started="0")), "token": ""}))
    out = printed(capsys, run)
    assert "autoattack (PGD linf 8/255): robust 83.3 % [62.6, 95.3], clean 91.7 % [73.0, 99.0] on 24 samples" in out
    assert "pgd_linf_8-255: 2 of 8 records (25 %)" in out
    assert out.count(f"process {os.getpid()}") == 1


def test_several_runs_are_a_table_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    make(tmp_path / "a", WORKING, ROWS)
    make(tmp_path / "b")
    (tmp_path / "pool.npz").touch()
    out = printed(capsys, tmp_path)
    assert "alive" in out
    assert "not started" in out
    assert "2/10" in out
    first, second = json.loads(printed(capsys, tmp_path / "a", tmp_path / "b", "--json"))
    assert (first["life"], first["step"], first["progress"]["steps"]) == ("alive", 120, 600)
    assert (second["life"], second["progress"]) == ("not started", None)


def test_a_real_run_is_finished(tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run") == 0
    capsys.readouterr()
    out = printed(capsys, tmp_path / "run")
    assert "run: finished" in out
    assert "epoch 1 of 1, step 4 of 4 (100.0 %)" in out
    assert "last.ckpt: step 4" in out
    assert "robust(pgd) " in out


def test_it_is_quick_because_nothing_heavy_is_imported(tmp_path):
    run = make(tmp_path, WORKING, ROWS)
    checkpoint(run / "checkpoints" / "last.ckpt", 120)
    code = (
        "import sys; from lightning_paf.commands import status\n"
        f"status.main([{str(run)!r}]); print(sorted({{'torch', 'numpy', 'scipy', 'lightning'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "last.ckpt: step 120" in result.stdout
    assert result.stdout.endswith("[]\n")

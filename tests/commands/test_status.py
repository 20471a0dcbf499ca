"""`status` of runs in every state."""

import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli_runs import status, write_experiment

from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.runs.identity import read_identity
from lightning_paf.runs.progress import FILE, SILENCE, Progress
from lightning_paf.runs.status import read_run
from lightning_paf.utils.process import Process, start_of

ATTACK = {"attack": "PGD", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}
WORKING = Progress(
    Process.this(),
    "training",
    step=120,
    steps=600,
    epoch=2,
    epochs=10,
    seconds_per_step=0.5,
    images_per_second=1234.5,
    idle=1.0,
    checkpoint="last.ckpt",
    checkpoint_step=118,
)


def make(run: Path, progress: Progress | None = None, rows: str = "") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("data: x\n")
    if progress is not None:
        progress.write(run / FILE)
    if rows:
        (run / "metrics.csv").write_text(rows)
    return run


def checkpoint(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {}}, path)
    return path


def printed(capsys, *words) -> str:
    assert status("status", *words) == 0
    return capsys.readouterr().out


def test_a_live_run(tmp_path, capsys):
    run = make(tmp_path / "run", WORKING)
    checkpoint(run / "checkpoints" / "step=100.ckpt")
    checkpoint(run / "checkpoints" / "last.ckpt")
    out = printed(capsys, run)
    assert f"run: alive (training, process {os.getpid()} on" in out
    assert "epoch 2 of 10, step 120 of 600 (20.0 %)" in out
    assert "1,234 img/s, 30 s an epoch" in out
    assert " left: until " in out
    assert "last.ckpt: step 118" in out
    assert "resume" not in out
    assert 0 < read_run(run).seconds_left <= 239
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_run_without_a_step_for_long(tmp_path, capsys):
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
    assert f"run: dead (process {process.pid} on {process.host} no longer exists, last heartbeat" in out
    assert f"resume      lightning-paf fit -c {run}/config.yaml --run {run} --ckpt_path auto" in out
    assert " left" not in out


@pytest.mark.parametrize(("silent", "expected"), [(5, "alive"), (2 * SILENCE, "dead")])
def test_a_run_on_another_machine_has_the_state_of_its_heartbeat(silent, expected, tmp_path):
    run = make(tmp_path, replace(WORKING, process=Process("far", 1, "2", "another machine")))
    before = (run / FILE).stat().st_mtime - silent
    os.utime(run / FILE, (before, before))
    assert read_run(run).life == expected


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_has_ended_early(state, tmp_path, capsys):
    out = printed(capsys, make(tmp_path / "run", replace(WORKING, state=state, error="ValueError: no")))
    assert f"run: {state} (ValueError: no)" in out
    assert "--ckpt_path auto" in out


def test_a_run_that_was_not_started(tmp_path, capsys):
    out = printed(capsys, make(tmp_path / "run"))
    assert "run: not started" in out
    assert "start       lightning-paf fit" in out


def test_a_run_without_a_progress_file(tmp_path, capsys):
    run = make(tmp_path / "run", rows="epoch,step,train/loss,lr\n0,9,1.5,\n1,19,1.2,\n,20,,0.1\n2,2")
    out = printed(capsys, run)
    assert f"run: unknown (there is no valid {FILE})" in out
    assert "epoch 2, step 20" in out
    (run / "metrics.csv").unlink()
    checkpoint(run / "checkpoints" / "last.ckpt")
    out = printed(capsys, run)
    assert "epoch 0, step unknown" in out
    assert "last.ckpt: step unknown" in out


def test_another_folder_is_refused(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for folder in (tmp_path, tmp_path / "photos", tmp_path / "missing"):
        assert status("status", folder) == 1
        assert "that was given to `fit --run`" in capsys.readouterr().err


ROWS = """epoch,step,val/acc,val/acc_pgd,train/loss,activation/a/alpha,activation/b/alpha
0,9,0.50,0.30,,1.0,1.5
0,9,,,2.0,,
1,19,0.70,0.20,,1.1,1.6
1,19,,,1.0,,
"""


def test_best_accuracies_and_last_activation(tmp_path, capsys):
    out = printed(capsys, make(tmp_path, WORKING, ROWS))
    assert "robust(pgd) 30.0 % in epoch 1; clean 70.0 % in epoch 2" in out
    assert "alpha 1.1..1.6" in out


def test_the_checkpoint_is_the_most_recent_one(tmp_path, capsys):
    """A killed training saves after its last heartbeat."""
    run = make(tmp_path, replace(WORKING, checkpoint="step=40.ckpt", checkpoint_step=40))
    for age, step in ((20, 40), (10, 45)):
        path = checkpoint(run / "checkpoints" / f"step={step}.ckpt")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert "checkpoint  step=45.ckpt: step unknown, " in printed(capsys, run)


def test_a_truncated_checkpoint_is_reported(tmp_path, capsys):
    run = make(tmp_path, WORKING)
    checkpoint(run / "checkpoints" / "step=50.ckpt")
    torn = checkpoint(run / "checkpoints" / "last.ckpt")
    torn.write_bytes(torn.read_bytes()[:-30])
    out = printed(capsys, run)
    assert "last.ckpt is incomplete" in out
    assert "step=50.ckpt: step unknown" in out


@pytest.mark.parametrize(
    "text", ["epoch,loss\n1,2\n", "step,val/acc\nx,0.5\n", "\udcff\n\udc80,\n", "step\n\n1,2,3\nx\n"]
)
def test_a_damaged_table_is_reported(text, tmp_path, capsys):
    run = make(tmp_path, WORKING)
    (run / "metrics.csv").write_text(text, errors="surrogateescape")
    assert f"unreadable  {run / 'metrics.csv'} must be a table with a step in every row" in printed(capsys, run)


@pytest.mark.parametrize(
    "entry", [{"step": "x"}, {"steps": "9"}, {"state": "asleep"}, {"error": 5}, {"process": [1]}, {"steps": math.inf}]
)
def test_a_damaged_progress_file_is_reported(entry, tmp_path, capsys):
    run = make(tmp_path)
    (run / FILE).write_text(json.dumps(asdict(WORKING) | entry))
    assert f"there is no valid {FILE}" in printed(capsys, checkpoint(run / "checkpoints" / "last.ckpt").parent.parent)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "[" + "9" * 400 + "]", "", "null"])
def test_files_that_are_not_of_this_package_are_skipped(text, tmp_path, capsys):
    run = make(tmp_path)
    for name in (FILE, "run.json", "test/pgd.json", "test/state/pgd-0/identity.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    assert ": not started" in printed(capsys, run)
    assert read_identity(run) == {}
    assert status("compare", run / "test" / "pgd.json", run) == 1
    assert "There is no result in" in capsys.readouterr().err


def test_an_unreadable_checkpoint_is_not_called_incomplete(tmp_path, capsys):
    run = make(tmp_path, WORKING)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").symlink_to("/nowhere")
    out = printed(capsys, run)
    assert "unreadable  last.ckpt cannot be read (No such file or directory)" in out
    assert "incomplete" not in out


def test_names_are_quoted_and_cannot_control_the_terminal(tmp_path, capsys):
    run = make(tmp_path / "it's [bold]a\x1b[31m run", replace(WORKING, state="failed", error="bad\x1b[0m"))
    out = printed(capsys, run)
    assert "\x1b" not in out
    assert f"--run {shlex.quote(str(run))} --ckpt_path".replace("\x1b", "?") in out
    make(tmp_path / "other")
    table = printed(capsys, tmp_path)
    assert "it's [bold]a?[31m run" in table
    assert "\x1b" not in table


def test_a_run_that_early_stopping_ended_shows_the_reason(tmp_path, capsys):
    out = printed(capsys, make(tmp_path, replace(WORKING, state="finished", error="val/acc did not improve")))
    assert "finished (val/acc did not improve)" in out
    assert "epoch 2, step 120\n" in out


def test_results_and_unfinished_evaluations(tmp_path, capsys):
    run = make(tmp_path, replace(WORKING, state="finished"))
    outcomes = np.array([1] * 20 + [2] * 2 + [3] * 2, np.uint8)
    EvaluationResult("autoattack", ATTACK, outcomes, 1.0).save(run / "test" / "autoattack_linf_8-255.json")
    other = EvaluationResult("autoattack", ATTACK, outcomes, 1.0, dataset="digits")
    other.save(run / "test" / "autoattack_linf_8-255-01234567.json")
    (run / "test" / "other.json").write_text("[]")
    state = run / "test" / "state" / "pgd_linf_8-255-0123456789ab"
    state.mkdir(parents=True)
    content = {"samples": 100, "block_size": 30, "sub_attacks": [{"label": "pgd"}]}
    (state / "identity.json").write_text(json.dumps(content))
    for name in ("00000.sub-attack-0.record", "00000.sub-attack-1.record", "00001.sub-attack-0.record.partial"):
        (state / f"block-{name}").touch()
    (state / "block-00001.claim").write_text(json.dumps({**asdict(Process.this()), "token": "x"}))
    (state / "block-00002.claim").write_text(json.dumps({**asdict(replace(Process.this(), started="0")), "token": ""}))
    out = printed(capsys, run)
    assert "autoattack_linf_8-255-01234567 (PGD linf 8/255, digits): robust 83.3 %" in out
    assert (
        "autoattack_linf_8-255 (PGD linf 8/255): robust 83.3 % [62.6, 95.3], clean 91.7 % [73.0, 99.0] on 24 samples"
        in out
    )
    assert "pgd_linf_8-255: 2 of 8 records (25 %)" in out
    assert out.count(f"process {os.getpid()}") == 1


def test_runs_in_subfolders_are_a_table_of_80_columns(tmp_path, capsys):
    """The folders of real experiments are deep, and their names are long."""
    deep = tmp_path / "runs" / "demo-2"
    make(deep / "relu", WORKING, ROWS)
    make(deep / "pssilu" / "resnet18-adversarial-training" / "seed-1", replace(WORKING, state="finished"), ROWS)
    make(tmp_path / "runs" / "x")
    (tmp_path / "runs" / "pool.npz").touch()
    out = printed(capsys, tmp_path / "runs")
    first, *lines = out.splitlines()
    assert first == f"Runs in {tmp_path / 'runs'}"
    assert max(map(len, lines)) <= 80
    table = {line.split()[0]: line.split() for line in lines[2:]}
    assert table["demo-2/relu"][1:3] == ["alive", "2/10"]
    assert table["…rsarial-training/seed-1"][1:] == ["finished", "2/10", "-", "30.0", "%", "50.0", "%", "-"]
    assert table["x"][1:3] == ["not", "started"]


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        (["autoattack_linf_8-255", "pgd20_linf_8-255"], "50.0 % autoattack 50.0 % pgd20"),
        (["pgd_l2_1", "pgd_linf_8-255-01234567"], "50.0 % pgd_l2_1 50.0 % pgd_linf_8-255-01234567"),
    ],
)
def test_results_in_the_table_are_named(attacks, expected, tmp_path, capsys):
    run = make(tmp_path / "wide-resnet-34-10-trades" / "a", replace(WORKING, epoch=100, epochs=200), ROWS)
    make(tmp_path / "x")
    for name in attacks:
        EvaluationResult(name, ATTACK, np.array([1, 1, 2, 3], np.uint8), 1.0).save(run / "test" / f"{name}.json")
    _, _, header, *lines = printed(capsys, tmp_path).splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line[header.index("result") :] for line in lines).replace(" ", "") == f"{expected}-".replace(" ", "")


def test_json(tmp_path, capsys):
    make(tmp_path / "a", WORKING, ROWS)
    make(tmp_path / "b")
    first, second = json.loads(printed(capsys, tmp_path / "a", tmp_path / "b", "--json"))
    assert (first["life"], first["step"], first["progress"]["steps"]) == ("alive", 120, 600)
    assert (second["life"], second["progress"]) == ("not started", None)


def test_a_real_run(tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run") == 0
    capsys.readouterr()
    out = printed(capsys, tmp_path / "run")
    assert "run: finished" in out
    assert "epoch 1 of 1, step 4 of 4 (100.0 %)" in out
    assert "last.ckpt: step 4" in out
    assert "robust(pgd) " in out


def test_nothing_heavy_is_imported(tmp_path):
    run = make(tmp_path, WORKING, ROWS)
    checkpoint(run / "checkpoints" / "last.ckpt")
    code = (
        "import sys; from lightning_paf.commands import status\n"
        f"status.main([{str(run)!r}]); print(sorted({{'torch', 'numpy', 'scipy', 'lightning'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "last.ckpt: step 118" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_csv(tmp_path, capsys):
    run = make(tmp_path / "a", WORKING, ROWS)
    EvaluationResult("pgd", ATTACK, np.array([1, 1, 2, 3], np.uint8), 1.0).save(run / "test" / "pgd.json")
    make(tmp_path / "b")
    first, second = csv.DictReader(io.StringIO(printed(capsys, tmp_path, "--csv")))
    assert (first["run"], first["state"], first["epoch"], first["step"]) == (str(run), "alive", "2", "120")
    assert (float(first["pgd clean"]), float(first["pgd robust"])) == (0.75, 0.5)
    assert float(first["best val/acc"]) == 0.7
    assert (second["state"], second["pgd robust"]) == ("not started", "")

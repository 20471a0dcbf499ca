"""Read-only folders: refused early, or accepted if nothing is written to them."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runs import status, write_experiment


@pytest.fixture
def read_only(monkeypatch):
    """Adds read-only folders, which apply to root too."""
    folders: list[Path] = []
    access, open_file, mkdir = os.access, Path.open, os.mkdir

    def inside(path) -> bool:
        return any(Path(path).is_relative_to(folder) for folder in folders)

    def refuse(path) -> None:
        if inside(path):
            raise OSError(errno.EROFS, "Read-only file system")

    def open_unless_inside(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax+"):
            refuse(path)
        return open_file(path, mode, *args, **kwargs)

    def mkdir_unless_inside(path, *args, **kwargs):
        refuse(path)
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and inside(path)) and access(path, mode))
    monkeypatch.setattr(Path, "open", open_unless_inside)
    monkeypatch.setattr(os, "mkdir", mkdir_unless_inside)
    return folders.append


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inside", ["run", "deep/in/it"])
def test_a_read_only_run_folder_is_refused(inside, tmp_path, capsys, read_only):
    words = ["-c", write_experiment(tmp_path)]
    (tmp_path / "parent" / "run").mkdir(parents=True)
    read_only(tmp_path / "parent")
    for command in ("fit", "validate", "test"):
        untrained = [] if command == "fit" else ["--untrained"]
        assert status(command, *words, "--run", tmp_path / "parent" / inside, *untrained) == 1
        error = capsys.readouterr().err
        assert "error: A run folder must be writable, but" in error
        assert "is read-only or not a folder. Pass --run with a folder that can be written" in error


def test_a_file_is_not_a_run_folder(tmp_path, capsys):
    words = ["-c", write_experiment(tmp_path)]
    assert status("fit", *words, "--run", tmp_path / "tiny.yaml" / "run") == 1
    assert "tiny.yaml is read-only or not a folder" in capsys.readouterr().err


def test_a_read_only_run_is_evaluated_with_another_run_folder(tmp_path, read_only):
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "done" / "run") == 0
    before = files(tmp_path / "done")
    read_only(tmp_path / "done")
    last = tmp_path / "done" / "run" / "checkpoints" / "last.ckpt"
    assert status("test", "--ckpt_path", last) == 1
    assert status("test", "--ckpt_path", last, "--run", tmp_path / "mine") == 0
    assert list((tmp_path / "mine" / "test").glob("pgd_*.json"))
    assert files(tmp_path / "done") == before


def test_a_read_only_pool_needs_a_cache_until_it_is_converted(tmp_path, capsys, read_only):
    words = ["fit", "-c", write_experiment(tmp_path), "--data.real_fraction", "0.5"]
    pool = tmp_path / "images" / "pool.npz"
    rng = np.random.default_rng(0)
    np.savez(pool, image=rng.integers(0, 256, (30, 8, 8, 3), np.uint8), label=np.arange(30) % 3)
    read_only(tmp_path / "images")
    assert status(*words, "--data.synthetic", pool, "--run", tmp_path / "a") == 1
    error = capsys.readouterr().err
    assert "Read-only file system" in error
    assert "Pass --data.cache_dir FOLDER" in error
    assert not (tmp_path / "a" / "checkpoints").exists()
    cached = ["--data.synthetic", pool, "--data.cache_dir", tmp_path / "cache"]
    before = files(tmp_path / "images")
    assert status(*words, *cached, "--run", tmp_path / "b") == 0
    assert files(tmp_path / "images") == before
    read_only(tmp_path / "cache")
    prepared = files(tmp_path / "cache")
    assert status(*words, *cached, "--run", tmp_path / "c") == 0
    assert files(tmp_path / "images") | files(tmp_path / "cache") == before | prepared

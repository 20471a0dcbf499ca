"""`test` of the tasks with scores: resumed, and compared."""

import json

import pytest
from helpers.cli_runs import status
from helpers.every_task import TASKS
from PIL import Image

from lightning_paf.tasks import Denoising, FewShotSegmentation

EVALUATED = {Denoising: "_scored", FewShotSegmentation: "_counts"}


def counted(cls, monkeypatch, stop_after=None):
    """Count the evaluated samples; raise after some of them."""
    done, evaluate = [], getattr(cls, EVALUATED[cls])

    def counting(self, *arguments):
        if len(done) == stop_after:
            raise ValueError("stopped")
        done.append(1)
        return evaluate(self, *arguments)

    monkeypatch.setattr(cls, EVALUATED[cls], counting)
    return done


@pytest.mark.parametrize("cls", EVALUATED, ids=lambda cls: cls.__name__)
def test_a_stopped_test_continues_and_is_compared(cls, tmp_path, monkeypatch, capsys):
    base = "test", "-c", TASKS[cls](tmp_path), "--untrained", "--run"
    with monkeypatch.context() as patch:
        total = counted(cls, patch)
        assert status(*base, tmp_path / "complete") == 0
    with monkeypatch.context() as patch:
        counted(cls, patch, stop_after=2)
        with pytest.raises(ValueError, match="stopped"):
            status(*base, tmp_path / "resumed")
    with monkeypatch.context() as patch:
        rest = counted(cls, patch)
        assert status(*base, tmp_path / "resumed") == 0
    assert len(rest) == len(total) - 2
    ours, theirs = ((tmp_path / name / "test" / f"{cls.stem}.json").read_bytes() for name in ("resumed", "complete"))
    assert ours == theirs
    capsys.readouterr()
    words = "--json", tmp_path / "found.json", "--csv", tmp_path / "found.csv", "--figure", tmp_path / "found.png"
    assert status("compare", tmp_path / "complete", tmp_path / "resumed", *words) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "+0.000 [+0.000, +0.000]" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["samples"] == len(json.loads(ours)["samples"])
    assert {row["difference_value"] for row in found["rows"]} == {None, 0.0}
    with Image.open(tmp_path / "found.png") as image:
        assert image.size[0] > 300
    (tmp_path / "empty").mkdir()
    assert status("compare", tmp_path / "complete", tmp_path / "empty") == 1
    assert "All results must be of the same task" in capsys.readouterr().err


def test_fresh_removes_the_records(tmp_path, monkeypatch):
    base = "test", "-c", TASKS[Denoising](tmp_path), "--untrained", "--run", tmp_path / "run"
    assert status(*base) == 0
    done = counted(Denoising, monkeypatch)
    assert status(*base) == 0
    assert not done
    assert status(*base, "--fresh") == 0
    assert len(done) == 3


def test_a_record_of_another_photograph_is_not_used(tmp_path, monkeypatch):
    base = "test", "-c", TASKS[Denoising](tmp_path), "--untrained", "--run", tmp_path / "run"
    assert status(*base) == 0
    with Image.open(tmp_path / "images" / "1.png") as image:
        changed = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    changed.save(tmp_path / "images" / "1.png")
    done = counted(Denoising, monkeypatch)
    assert status(*base) == 0
    assert len(done) == 1

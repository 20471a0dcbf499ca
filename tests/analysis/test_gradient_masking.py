"""Signs of masked gradients: flags, and the analysis of runs."""

import json
from functools import partial

import pytest
import torch
from helpers.cli_runs import status
from helpers.fakes import images, spec
from torch import nn

from lightning_paf.analysis import gradient_masking as analysis
from lightning_paf.analysis.gradient_masking import Masking, draw, gradient_masking, masking_flags
from lightning_paf.attacks import AutoAttack
from lightning_paf.evaluation.checks import Context
from lightning_paf.nn.classifier import Classifier

COLUMNS = ("clean", "PGD-20", "PGD-100", "margin", "Square", "AutoAttack")


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """AutoAttack with one of its attacks."""
    short = partial(AutoAttack, version="custom", attacks=["apgd-ce"])
    monkeypatch.setattr(analysis, "AutoAttack", short)


def masks(**robust: int) -> dict[str, torch.Tensor]:
    """Of 100 images the first n are robust, by default 50."""
    counts = dict.fromkeys(COLUMNS, 50) | {column.replace("_", "-"): n for column, n in robust.items()}
    return {column: torch.arange(100) < n for column, n in counts.items()}


@pytest.mark.parametrize(
    ("robust", "flat", "widest", "expected"),
    [
        ({"transfer": 50, "AutoAttack": 40}, 0.2, 0.0, []),
        ({"AutoAttack": 39}, 0.0, 0.0, ["AutoAttack is 11.0 points below PGD"]),
        ({"PGD_20": 60, "AutoAttack": 45}, 0.0, 0.0, []),
        ({"Square": 49}, 0.0, 0.0, ["Square fools 1 images more than PGD"]),
        ({"transfer": 30}, 0.0, 0.0, ["transfer fools 20 images more than PGD"]),
        ({}, 0.21, 0.01, ["21.0 % of the images have a gradient", "1.0 % of the images are robust at the widest"]),
    ],
)
def test_flags_are_those_of_the_protocol(robust, flat, widest, expected):
    found = masking_flags(masks(**robust), flat, widest)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


class Linear(nn.Module):
    """The same linear layer on images and, if masked, on images without a gradient."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked, self.fc = masked, nn.Linear(64, 3)

    def forward(self, x):
        return self.fc((x.detach() if self.masked else x).flatten(1)) + 0 * x.sum()


def context(masked: bool) -> tuple[Context, nn.Module]:
    plain, model = (Classifier(Linear(flag), spec(3, 1), normalize=False).eval() for flag in (False, masked))
    x, _ = images(24, 3, channels=1)
    with torch.no_grad():
        y = plain(x).argmax(1)
    return Context(model, x, y, 0.05), plain


def test_a_model_without_gradients_is_flagged_and_a_linear_one_is_not():
    shown, plain = context(masked=False)
    found = gradient_masking(shown, queries=30, surrogate=plain)
    assert (found.images, found.flat, found.widest, found.flags) == (24, 0, 0, [])
    assert found.robust.keys() == {*COLUMNS, "transfer"}
    assert found.robust["AutoAttack"] <= min(found.robust.values()) < found.robust["clean"] == 24
    hidden, plain = context(masked=True)
    found = gradient_masking(hidden, queries=30, surrogate=plain)
    assert found.flat == 1
    assert found.robust["PGD-100"] >= 20  # a random start fools some
    assert "transfer fools" in " ".join(found.flags)
    assert "100.0 % of the images have a gradient below" in " ".join(found.flags)


def test_the_figure_has_a_bar_for_each_run_and_attack():
    counts = dict.fromkeys(COLUMNS, 10)
    (axes,) = draw([Masking(name, 20, counts, 0, 0, ()) for name in "ab"]).axes
    assert [round(bar.get_height()) for bar in axes.patches] == [50] * 2 * len(COLUMNS)


def test_a_run_is_analysed(checkpoint, tmp_path, capsys):
    files = ("--figure", tmp_path / "a.png", "--json", tmp_path / "a.json")
    words = ("--ckpt", checkpoint, "--examples", 20, "--queries", 5, "--surrogate", checkpoint, *files)
    code = status("analyze", "gradient-masking", *words)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("Written")) <= 80
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert (found["images"], code) == (20, int(bool(found["flags"])))


@pytest.mark.parametrize("words", [("--examples", "5"), ("--eps", "0"), ("--queries", "0")])
def test_bad_numbers_are_refused_in_one_line(words, checkpoint, capsys):
    assert status("analyze", "gradient-masking", "--ckpt", checkpoint, *words) == 1
    assert f"error: argument {words[0]}: must be" in capsys.readouterr().err

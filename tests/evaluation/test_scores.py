"""Scores of samples: their state, their means, and their comparison."""

import math

import pytest

from lightning_paf.evaluation.scores import ScoreState, compare_scores, draw_scores, summary
from lightning_paf.evaluation.statistics import mean_interval

ROW = {"clean": {"dice": 0.75}, "pgd": {"dice": 0.1 + 0.2}}


def result(values, **parts):
    scores = summary([{"clean": {"dice": value}} for value in values], {})
    return {"kind": "segmenter", "data": "a", "samples": ["x", "y", "z"], "settings": {}, "results": scores} | parts


def test_a_record_is_read_as_written(tmp_path):
    state = ScoreState(tmp_path, {"weights": "a"})
    assert state.read(3, "sample") is None
    assert state.write(3, "sample", ROW) == ROW
    assert ScoreState(tmp_path, {"weights": "a"}).read(3, "sample") == ROW
    assert state.write(3, "sample", {"clean": {"dice": 0.0}}) == ROW, "the first record counts"


def test_records_of_other_weights_or_samples_and_damaged_ones_are_ignored(tmp_path):
    state = ScoreState(tmp_path, {"weights": "a"})
    state.write(0, "sample", ROW)
    assert ScoreState(tmp_path, {"weights": "b"}).read(0, "sample") is None
    assert state.read(0, "another") is None
    (path,) = state.folder.iterdir()
    for damaged in (path.read_bytes()[:-2], b"", b"[]", b"{}"):
        path.write_bytes(damaged)
        assert state.read(0, "sample") is None
        assert state.write(0, "sample", ROW) == ROW
        assert state.read(0, "sample") == ROW
    state.clear()
    assert state.read(0, "sample") is None


def test_a_state_in_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be used as a state folder"):
        ScoreState(tmp_path / "file", {}).write(0, "sample", ROW)


def test_the_interval_is_clipped_and_that_of_one_sample_is_unknown():
    found = summary([{"clean": {"dice": value}} for value in (0.0, 1.0)], {"dice": (0.0, 1.0)})["clean"]["dice"]
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0, "values": [0.0, 1.0]}
    assert summary([ROW], {})["clean"]["dice"] == {"value": 0.75, "low": None, "high": None, "values": [0.75]}


def test_models_are_compared_sample_by_sample():
    first, second = compare_scores("AB", [result([0.1, 0.5, 0.9]), result([0.2, 0.7, 1.0])])
    assert (first.difference, first.texts()[-1]) == (None, "-")
    expected = mean_interval([0.1, 0.2, 0.1])
    assert second.difference.value == pytest.approx(4 / 30)
    assert (second.difference.low, second.difference.high) == pytest.approx((expected.low, expected.high))
    assert second.texts() == ("clean dice", "B", "0.633 [-0.371, 1.637]", "+0.133 [-0.010, +0.277]")
    assert math.isclose(second.content()["difference_value"], 4 / 30)
    assert first.content()["difference_low"] is None
    assert len(draw_scores([first, second]).axes) == 1


def test_a_result_can_be_compared_with_itself():
    once = result([0.1, 0.5, 0.9])
    rows = compare_scores("AA", [once, once])
    assert rows[1].difference.value == 0
    assert len(draw_scores(rows).axes) == 1


def test_equal_differences_are_significant():
    assert compare_scores("AB", [result([0.0, 0.25, 0.5]), result([0.5, 0.75, 1.0])])[1].texts()[-1].endswith(" *")


@pytest.mark.parametrize(
    "parts", [{"kind": "denoiser"}, {"data": "b"}, {"samples": ["x"]}, {"settings": {"attacks": {"pgd": {"steps": 1}}}}]
)
def test_results_of_other_samples_or_attacks_are_refused(parts):
    with pytest.raises(ValueError, match=rf"same samples, attacks and settings, got for B and A: {next(iter(parts))}"):
        compare_scores("AB", [result([0.0, 0.5, 1.0]), result([0.0, 0.5, 1.0], **parts)])

"""Figures of experiments: every seed is visible, and the named metrics are shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lightning_paf.experiments import Experiment, Variant, experiment_names, find_experiment
from lightning_paf.experiments.figure import draw

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results" / "methods"
FRACTIONS = {"clean": [0.97, 0.97, 0.98], "autoattack": [0.0, 0.0, 0.01]}
RESULT = {
    "method": "fake",
    "eps": 0.2,
    "seeds": 3,
    "examples": 100,
    "plain": ["distance"],
    "shown": [],
    "variants": {
        "one": {**FRACTIONS, "distance": [1.5, 1.5, 1.5], "eot": [0.2, 0.2, 0.2]},
        "other": {**FRACTIONS, "distance": [4.0, 5.0, 6.0], "eot": [0.3, 0.3, 0.4]},
    },
}


def dots(figure):
    """Marker, colour and position in pixels of the dots of all seeds, which have white edges."""
    figure.canvas.draw()
    lines = [line for line in figure.axes[0].lines if to_rgb(line.get_markeredgecolor()) == (1, 1, 1)]
    return [
        (line.get_marker(), to_rgb(line.get_color()), position)
        for line in lines
        for position in line.get_transform().transform(line.get_xydata())
    ]


@pytest.mark.parametrize("shown", [[], ["distance"], ["clean", "eot", "autoattack"]])
def test_every_seed_is_visible(shown):
    drawn = dots(draw({**RESULT, "shown": shown}))
    assert len(drawn) == 2 * 3 * (len(shown) or 1)
    assert len({(marker, colour) for marker, colour, _ in drawn}) == 2, "one marker and colour per variant"
    assert len({marker for marker, _, _ in drawn}) == 2, "markers alone distinguish variants"
    positions = np.array([position for _, _, position in drawn])
    distances = np.linalg.norm(positions[:, None] - positions, axis=2) + 99 * np.eye(len(positions))
    assert distances.min() > 6, "dots are at least 6 pixels apart"


def test_dots_without_neighbours_are_not_moved():
    figure = draw({**RESULT, "variants": {"one": {"clean": [0.9, 0.5], "autoattack": [0.1, 0.4]}}})
    positions = [position for _, _, position in dots(figure)]
    expected = figure.axes[0].transData.transform([(90, 10), (50, 40)])
    np.testing.assert_allclose(positions, expected, atol=0.01)


def test_only_plain_metrics_are_not_shown_in_percent():
    for shown, label, most in (("distance", "as measured", 6), ("eot", "fraction of images (%)", 40)):
        axes = draw({**RESULT, "shown": [shown]}).axes[0]
        assert axes.get_ylabel() == label
        assert max(max(line.get_ydata(), default=0) for line in axes.lines) == most
        assert [text.get_text() for text in axes.get_xticklabels()] == [shown]


@pytest.mark.parametrize("shown", [("nothing",), ("clean", "distance")])
def test_a_figure_shows_metrics_of_the_experiment_on_one_axis(shown):
    metrics = {"distance": lambda run, x, y: 0.5}
    with pytest.raises(ValueError, match=r"shown must be metrics .*use one axis, got"):
        Experiment("fake", (Variant("one"),), (), metrics=metrics, plain=("distance",), shown=shown)


def test_an_experiment_without_claims_about_accuracies_shows_its_metrics():
    for name in experiment_names():
        experiment = find_experiment(name)
        claimed = {claim.metric for claim in experiment.claims if claim.source == "paper"}
        assert experiment.shown or not claimed or claimed & {"clean", "autoattack"}, name


def test_results_show_the_metrics_of_their_experiments():
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["shown"] == list(find_experiment(path.stem).shown), (
            f"run `lightning-paf reproduce {path.stem}`"
        )
        assert path.with_suffix(".png").is_file()

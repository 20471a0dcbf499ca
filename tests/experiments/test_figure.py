"""Figures of experiments: every seed is visible, and the named metrics are shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lightning_paf.experiments import Experiment, Variant, experiment_names, find_experiment
from lightning_paf.experiments.figure import draw

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results" / "methods"
SHARES = {"clean": [0.97, 0.97, 0.98], "autoattack": [0.0, 0.0, 0.01]}
FOUND = {
    "method": "fake",
    "eps": 0.2,
    "seeds": 3,
    "examples": 100,
    "plain": ["distance"],
    "shown": [],
    "variants": {
        "one": {**SHARES, "distance": [1.5, 1.5, 1.5], "eot": [0.2, 0.2, 0.2]},
        "other": {**SHARES, "distance": [4.0, 5.0, 6.0], "eot": [0.3, 0.3, 0.4]},
    },
}


def dots(figure):
    """Marker, colour and place in pixels of all dots of seeds, which have white edges."""
    figure.canvas.draw()
    lines = [line for line in figure.axes[0].lines if to_rgb(line.get_markeredgecolor()) == (1, 1, 1)]
    return [
        (line.get_marker(), to_rgb(line.get_color()), place)
        for line in lines
        for place in line.get_transform().transform(line.get_xydata())
    ]


@pytest.mark.parametrize("shown", [[], ["distance"], ["clean", "eot", "autoattack"]])
def test_every_seed_is_visible(shown):
    """Dots of one place have hidden each other, or have taken each other's colour."""
    found = dots(draw({**FOUND, "shown": shown}))
    assert len(found) == 2 * 3 * (len(shown) or 1)
    assert len({(marker, colour) for marker, colour, _ in found}) == 2, "one look for each variant"
    assert len({marker for marker, _, _ in found}) == 2, "also without colours"
    places = np.array([place for _, _, place in found])
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 99 * np.eye(len(places))
    assert distances.min() > 6, "pixels"


def test_a_dot_alone_is_where_it_belongs():
    figure = draw({**FOUND, "variants": {"one": {"clean": [0.9, 0.5], "autoattack": [0.1, 0.4]}}})
    places = [place for _, _, place in dots(figure)]
    expected = figure.axes[0].transData.transform([(90, 10), (50, 40)])
    np.testing.assert_allclose(places, expected, atol=0.01)


def test_only_what_is_plain_is_not_in_percent():
    for shown, label, most in (("distance", "as measured", 6), ("eot", "fraction of images (%)", 40)):
        axes = draw({**FOUND, "shown": [shown]}).axes[0]
        assert axes.get_ylabel() == label
        assert max(max(line.get_ydata(), default=0) for line in axes.lines) == most
        assert [text.get_text() for text in axes.get_xticklabels()] == [shown]


@pytest.mark.parametrize("shown", [("nothing",), ("clean", "distance")])
def test_a_study_shows_what_it_has_on_one_axis(shown):
    metrics = {"distance": lambda run, x, y: 0.5}
    with pytest.raises(ValueError, match=r"shown=.*share an axis"):
        Experiment("fake", (Variant("one"),), (), metrics=metrics, plain=("distance",), shown=shown)


@pytest.mark.parametrize("name", experiment_names())
def test_a_study_without_claims_about_accuracies_shows_its_measures(name):
    experiment = find_experiment(name)
    claimed = {claim.metric for claim in experiment.claims if claim.source == "paper"}
    assert experiment.shown or not claimed or claimed & {"clean", "autoattack"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_outcomes_show_what_their_studies_name(path):
    assert json.loads(path.read_text())["shown"] == list(find_experiment(path.stem).shown), "run it again"
    assert path.with_suffix(".png").is_file()

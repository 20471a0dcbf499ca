"""Figures of the activations: every seed, learned parameters, and constant shapes."""

import numpy as np

from lightning_paf.experiments import find_experiment
from lightning_paf.experiments.activation_figures import accuracies, over_shape, parameters
from lightning_paf.utils.figures import figure_png

PAF = find_experiment("paf")
RESULT = {
    "method": "paf",
    "seeds": 3,
    "eps": 0.2,
    "shown": ["clean", "autoattack"],
    "variants": {
        "ReLU": {"clean": [0.9] * 3, "autoattack": [0.4] * 3, "curvature": [None] * 3, "negative_mean": [0.0] * 3},
        "bent": {"clean": [0.8] * 3, "autoattack": [0.5] * 3, "curvature": [4.0] * 3, "negative_mean": [0.1] * 3},
    },
    "histories": {"ReLU": [{}] * 3, "bent": [{"activation/alpha": [1.1, 1.4], "activation/beta": [-1e-4, 1e-5]}] * 3},
}


def drawn(axes):
    return [line for line in axes.lines if len(line.get_xdata())]


def test_equal_seeds_are_drawn_apart():
    for axes, percent in zip(accuracies(RESULT).axes, ([90, 80], [40, 50]), strict=True):
        dots = [line.get_xydata() for line in drawn(axes) if len(line.get_xdata()) == 3]
        np.testing.assert_allclose([points[:, 0] for points in dots], np.repeat(percent, 3).reshape(2, 3))
        assert all(len(set(points[:, 1])) == 3 for points in dots)


def test_parameters_have_a_line_for_each_seed_and_no_sign_of_beta():
    alpha, beta = parameters(RESULT, variants=("bent", "not trained")).axes
    lines = [line for line in drawn(alpha) if list(line.get_ydata()) == [1.1, 1.4]]
    assert len(lines) == 3
    assert list(lines[0].get_xdata()) == [1, 2]
    assert [list(line.get_ydata()) for line in drawn(beta)] == [[1e-4, 1e-5]] * 3


def test_only_parameters_that_a_variant_has_get_a_panel():
    histories = {"bent": [{"activation/alpha": [1.1, 1.4]}] * 3}
    (alpha,) = parameters({**RESULT, "histories": histories}, variants=("bent",)).axes
    assert alpha.get_ylabel() == "alpha"
    assert parameters(RESULT, variants=("ReLU",)) is None


def test_a_shape_without_finite_curvature_is_only_in_the_second_panel():
    panels = over_shape(RESULT, families={"family": ("ReLU", "bent", "not trained")}).axes
    dots = [[line for line in drawn(axes) if line.get_marker() == "o"] for axes in panels]
    assert [len(lines) for lines in dots] == [1, 2]
    np.testing.assert_allclose(dots[0][0].get_xydata(), [[4, 50]] * 3)


def test_partial_results_have_the_figures_that_show_something():
    result = {**RESULT, "shown": list(PAF.shown), "variants": {"ReLU": {**RESULT["variants"]["ReLU"], "pgd": [0.5]}}}
    for name, draw in PAF.figures.items():
        assert figure_png(draw(result)) if name == "" else draw(result) is None

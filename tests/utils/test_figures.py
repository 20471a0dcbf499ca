"""Figures have one style in any process, and colours for colour-blind readers."""

import io
import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.utils.figures import COLOURS, draw_accuracy, figure_png, open_figure, save_figure, show_image


def a_figure():
    with open_figure(4, 3, "headline") as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        axes.plot([0, 1], [1, 0], label="second")
        axes.grid()
        axes.legend()
    return figure


def test_settings_of_the_process_have_no_effect_and_are_restored():
    from matplotlib import pyplot

    expected, figures = figure_png(a_figure()), pyplot.get_fignums()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20, "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert figure_png(a_figure()) == expected
        assert dict(mpl.rcParams) == before
        with pytest.raises(ZeroDivisionError), open_figure(1, 1):
            1 / 0  # noqa: B018
        assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == figures


def test_the_style_is_that_of_the_package():
    figure = a_figure()
    axes = figure.axes[0]
    assert figure.get_suptitle() == "headline"
    assert not axes.spines["top"].get_visible()
    assert [line.get_color() for line in axes.lines] == [*COLOURS[:2]]
    assert imread(io.BytesIO(figure_png(figure))).shape == (3 * 120, 4 * 120, 4)


# Machado, Oliveira and Fernandes (2009), severity 1: colours as seen without one kind of cones, in linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_first_colours_differ_for_colour_blind_readers(kind):
    linear = np.array([to_rgb(colour) for colour in COLOURS[:6]]) ** 2.2
    seen = (linear @ np.array(BLINDNESS[kind]).T).clip(0, 1) ** (1 / 2.2)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.2


def test_files_are_written_atomically(tmp_path):
    path = tmp_path / "deep" / "figure.png"
    save_figure(a_figure(), path)
    written = path.read_bytes()
    assert written == figure_png(a_figure())
    with open_figure(2, 2) as invalid:
        invalid.subplots().set_title("$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(invalid, path)
    assert path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_accuracy_is_drawn_in_percent_with_its_interval():
    with open_figure(4, 3) as figure:
        axes = figure.subplots()
        points = [exact_accuracy(correct, 10) for correct in (9, 5, 0)]
        draw_accuracy(axes, [0.0, 0.1, 0.2], points, "robust accuracy", "eps")
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 90), (0.1, 50), (0.2, 0)])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(100 * points[0].high)
    assert band[:, 1].min() == 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("eps", "accuracy (%)")


def test_an_image_has_no_ticks():
    with open_figure(2, 2) as figure:
        axes = figure.subplots()
        show_image(axes, np.eye(4), "title", cmap="gray")
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    assert axes.get_title() == "title"

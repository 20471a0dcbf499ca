"""Activations of channels, clean against adversarial."""

import json

import pytest
import torch
from helpers.cli_runs import status
from helpers.fakes import images, tiny_classifier

from lightning_paf.analysis.channel_activations import channel_activations, draw_activations


def test_channels_are_sorted_by_their_weight():
    model, (x, _) = tiny_classifier().eval(), images()
    model.head.weight.data[3] = torch.tensor([0.5, -2.0, 3.0, -0.1])
    found = channel_activations(model, x, 1 - x, 3)
    assert found.weight.tolist() == pytest.approx([3.0, 0.5, -0.1, -2.0])
    for mean, batch in ((found.clean, x), (found.adversarial, 1 - x)):
        torch.testing.assert_close(mean, model.outputs(batch).features.mean(0)[[2, 0, 3, 1]].detach())
    count, clean, adversarial = found.means(False)
    assert (count, clean, adversarial) == (2, float(found.clean[2:].mean()), float(found.adversarial[2:].mean()))
    (axes,) = draw_activations(found, "title").axes
    assert axes.get_lines()[0].get_ydata().tolist() == found.adversarial.tolist()
    assert axes.get_lines()[1].get_xdata()[0] == 1.5


def test_the_command_writes_a_figure_and_numbers(checkpoint, capsys):
    words = ("channel-activations", "--ckpt", checkpoint, "--label", 2, "--examples", 5)
    assert status("analyze", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Mean activations of 5 images of class 2, PGD linf eps")
    assert max(map(len, lines[:4])) <= 80
    rows = {line.split()[0]: line.split() for line in lines[2:4]}
    folder = checkpoint.parents[1] / "channel_activations"
    content = json.loads((folder / "channel_activations.json").read_text())
    assert int(rows["positive"][1]) == sum(weight > 0 for weight in content["weight"])
    assert len(content["clean"]) == len(content["adversarial"]) == len(content["weight"])
    assert (folder / "channel_activations.png").read_bytes().startswith(b"\x89PNG")


def test_a_class_without_images_is_refused(checkpoint, capsys):
    assert status("analyze", "channel-activations", "--ckpt", checkpoint, "--label", 10) == 1
    assert "must include class 10, got none of" in capsys.readouterr().err

"""Sensitivity matrices, noise through them, and `analyze input-sensitivity`."""

import json

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from torch import nn

from lightning_paf.analysis.input_sensitivity import output_of, propagate, sensitivity_matrix
from lightning_paf.nets import SNODE
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import DatasetSpec


def test_the_matrix_of_a_standalone_network_is_that_of_the_sensitivity_problem():
    """xi(0) = I, and xi_{i+1} = xi_i + h sigma'_i W_i xi_i; the state starts at the negated image."""
    torch.manual_seed(0)
    net = SNODE(3, image_size=2, t_end=1.0, step=0.25)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    model = Classifier(net, DatasetSpec("tiny", 3, 2, (0.0,), (1.0,)), normalize=False).double()
    x = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    xi, z = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1), -x.flatten(1)
    for w, b in zip(net.weight, net.bias, strict=True):
        value = torch.tanh(z @ w.T + b)
        xi, z = xi + 0.25 * (1 - value**2)[:, :, None] * (w @ xi), z + 0.25 * value
    torch.testing.assert_close(sensitivity_matrix(output_of(model), x), -xi.detach())


def test_noise_through_a_linear_network_is_that_of_its_matrix():
    torch.manual_seed(0)
    linear, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(6, 1, 4, 4)
    matrix = sensitivity_matrix(linear, x)
    torch.testing.assert_close(matrix, linear[1].weight.expand(6, 3, 16))
    found = propagate(linear, x, matrix, classes=3, std=0.1, draws=2000)
    assert (found.error < 1e-5).all()
    torch.testing.assert_close(found.measured, found.predicted, rtol=0.08, atol=0)
    binary = nn.Sequential(linear, nn.Linear(3, 2))
    found = propagate(binary, x, sensitivity_matrix(binary, x), classes=2, std=0.5, draws=2000)
    torch.testing.assert_close(found.changed, found.expected, rtol=0, atol=0.05)
    assert found.expected.max() > 0.1


def test_the_linearisation_is_exact_for_small_noise_only():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3)), torch.rand(4, 1, 4, 4)
    matrix = sensitivity_matrix(net, x)
    errors = [propagate(net, x, matrix, 3, std, draws=50).error.mean() for std in (0.3, 0.03)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


NET = ("--model.net", "SNODE", "--model.net.image_size", "4", "--model.net.t_end", "1", "--model.net.step", "0.5")


@pytest.mark.parametrize(("net", "size"), [(NET, "48 x 192"), ((), "3 x 192")], ids=["SNODE", "SmallConvNet"])
def test_the_analysis_writes_a_figure_and_all_values(net, size, tmp_path, capsys):
    assert status("fit", "-c", write_experiment(tmp_path), *net, "--run", tmp_path / "run") == 0
    capsys.readouterr()
    words = ("--ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt", "--examples", 4, "--draws", 20)
    assert status("analyze", "input-sensitivity", *words) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written: "))
    assert f"Sensitivity P ({size}) at 4 images" in printed
    folder = tmp_path / "run" / "input_sensitivity"
    assert (folder / "input_sensitivity.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "input_sensitivity.json").read_text())
    values = torch.tensor(content["singular_values"])
    assert (values.diff(dim=1) <= 0).all()
    growth = torch.tensor(content["growth of a random direction"])
    torch.testing.assert_close(growth, (values.square().sum(1) / 192).sqrt())

"""The ONNX file has the logits of the model, for any number of images."""

import gc

import pytest
import torch
from helpers.fakes import images
from helpers.originals import MEAN, STD, randomised

from lightning_paf.interop import NormalizedNet, onnx_model
from lightning_paf.interop.onnx_model import OnnxModel, save_onnx
from lightning_paf.nets import GatedResNet, SmallConvNet, TisODENet
from lightning_paf.nn.activations import ParametricActivation, PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import dataset_spec

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


def test_logits_are_equal_for_any_number_of_images_and_everything_is_left_as_found(tmp_path):
    # Its activations are in a container, which keeps classes of the tracer until they are collected.
    net = randomised(SmallConvNet(in_channels=3, width=4), activation=True)
    model = Classifier(NormalizedNet(net, list(MEAN), list(STD)), dataset_spec("cifar10")).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gc.disable()  # otherwise Python could collect them before the export does
    try:
        save_onnx(model, torch.rand(2, 3, 8, 8), tmp_path / "model.onnx")
        names = [kind.__qualname__ for kind in ParametricActivation.__subclasses__() + PSSiLU.__subclasses__()]
    finally:
        gc.enable()
    assert names.count("PSSiLU") == 1
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    session = OnnxModel(tmp_path / "model.onnx")
    model.eval()
    for n in (1, 2, 7):
        x, _ = images(n)
        torch.testing.assert_close(session(x), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"requires the packages onnxscript.*lightning-paf\[export\]"):
        onnx_model.require_onnx()


def test_an_operation_that_onnx_lacks_is_refused(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * (2.0 if x.sum().item() > 0 else 1.0)

    with pytest.raises(ValueError, match=r"Odd uses an operation that ONNX lacks.*--formats"):
        save_onnx(Odd(), torch.rand(2, 3, 8, 8), tmp_path / "model.onnx")


def test_a_gated_network_has_the_same_logits(tmp_path):
    torch.manual_seed(0)
    net = GatedResNet(SmallConvNet(3, width=4), layers=["features.5", "features.7"], importance="identity")
    model = Classifier(net, dataset_spec("cifar10")).eval()
    save_onnx(model, torch.rand(2, 3, 8, 8), tmp_path / "model.onnx")
    x, _ = images(5)
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(x), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_a_network_with_an_ode_solver_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must have no ODE block and .* for an ONNX file.*--formats state_dict"):
        save_onnx(TisODENet(width=4, groups=2), torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")

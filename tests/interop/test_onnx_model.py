"""The ONNX file has the logits of the model, for any number of images."""

import gc

import pytest
import torch
from helpers.fakes import TinyNet, images
from helpers.originals import MEAN, STD, randomised

from lightning_paf.interop import NormalizedNet, onnx_model
from lightning_paf.interop.onnx_model import OnnxModel, save_onnx
from lightning_paf.nets import SmallConvNet
from lightning_paf.nn.activations import ParametricActivation, PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.mark.parametrize("normalised", [False, True])
def test_logits_are_equal_for_any_number_of_images_and_the_model_is_left_as_found(tmp_path, normalised):
    net = randomised(TinyNet(), activation=True)
    net = NormalizedNet(net, list(MEAN), list(STD)) if normalised else net
    model = Classifier(net, dataset_spec("cifar10"), normalize=not normalised).train(normalised)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_onnx(model, torch.rand(2, 3, 8, 8), tmp_path / "model.onnx")
    session = OnnxModel(tmp_path / "model.onnx")
    assert model.training is normalised
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval()
    for n in (1, 2, 7):
        x, _ = images(n)
        torch.testing.assert_close(session(x), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_the_classes_of_the_tracer_are_collected(tmp_path):
    net = SmallConvNet(width=4).eval()  # its activations are in a container, which keeps classes of the tracer
    swap_activations(net, PSSiLU)
    gc.disable()  # otherwise Python could collect them before the export does
    try:
        save_onnx(net, torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
        names = [kind.__qualname__ for kind in ParametricActivation.__subclasses__() + PSSiLU.__subclasses__()]
    finally:
        gc.enable()
    assert names.count("PSSiLU") == 1


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

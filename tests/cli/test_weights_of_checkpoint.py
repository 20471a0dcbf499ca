"""Evaluations use normalisation and weights of the checkpoint, and load no pretrained weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.cli_runs import status, write_experiment
from helpers.data_files import arrays
from jsonargparse import Namespace

from lightning_paf.cli.evaluated_checkpoint import without_pretrained
from lightning_paf.loading import load_run


def test_mean_and_std_belong_to_the_checkpoint(tmp_path, caplog):
    """Images of another dataset are normalised as in the training, by all commands; `predict` needs no labels."""
    tiny, run, root = write_experiment(tmp_path), tmp_path / "run", tmp_path / "images_of_others"
    digits = ["--data.dataset", "digits", "--data.num_classes", "null", "--data.train_examples", "16"]
    assert status("fit", "-c", tiny, "--run", run, "--val_attack", "null", *digits) == 0
    image, _ = arrays(num_classes=10, size=8, channels=1)
    root.mkdir()
    np.savez(root / "test.npz", image=image[..., 0])
    options = ["--data.dataset", "npz", "--data.num_classes", "10", "--data.channels", "1", "--data.root", str(root)]
    model = load_run(run / "checkpoints" / "last.ckpt", options=options).model
    assert (float(model.mean), float(model.std)) == pytest.approx((0.3053, 0.3760))
    assert status("predict", "--run", run, "--ckpt_path", "last", *options) == 0
    assert "Normalisation: mean and std of digits, as in the training of the checkpoint." in caplog.text
    with np.load(run / "predict" / "predictions.npz") as written:
        expected = model(torch.from_numpy(image).permute(0, 3, 1, 2) / 255).softmax(1)
        assert set(written["label"].tolist()) == {-1}
        np.testing.assert_allclose(written["probabilities"], expected.detach(), atol=1e-5)


def test_pretrained_weights_are_not_loaded_where_a_checkpoint_follows(tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "pretrained.pth")
    values = yaml.safe_load(Path(write_experiment(tmp_path)).read_text())
    overlay = {"file": str(tmp_path / "pretrained.pth"), "num_classes": 1000}
    kwargs = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    values["model"]["net"] = {"class_path": "TimmNet", "init_args": {"name": "test_resnet"}, "dict_kwargs": kwargs}
    values["model"]["activation"] = None
    (tmp_path / "timm.yaml").write_text(yaml.safe_dump(values))
    assert status("fit", "-c", tmp_path / "timm.yaml", "--run", tmp_path / "run") == 0
    (tmp_path / "pretrained.pth").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    words = ["--ckpt_path", checkpoint, "--trust-config"]
    assert status("validate", *words) == 0
    assert load_run(checkpoint, options=["--trust-config"]).model.num_classes == 3


def test_weights_of_torchvision_are_not_loaded_where_a_checkpoint_follows():
    inner = Namespace(class_path="TorchvisionNet", init_args=Namespace(), dict_kwargs={"weights": "DEFAULT"})
    net = Namespace(class_path="lightning_paf.interop.NormalizedNet", init_args=Namespace(net=inner))
    without_pretrained(net)
    assert inner.dict_kwargs == {"weights": None}

"""The classes of the package in a user's own Trainer, with own data loaders and callbacks."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers.cli_runs import built, write_experiment
from helpers.fakes import TinyNet, images
from helpers.trainers import trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_paf.attacks import PGD
from lightning_paf.callbacks import (
    ActivationMonitor,
    BatchNormStart,
    EpochPrinter,
    ExactResume,
    OverfittingDetector,
    PredictionWriter,
    RadiusSchedule,
    RobustEval,
    RunHeartbeat,
    StopOnSignal,
    Throughput,
    WarmupEMA,
)
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.objectives import AdversarialCE
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule

ATTACK = PGD(steps=1, step_size=0.1)
X, Y = images(8, num_classes=3)


def parts(**changed) -> dict:
    torch.manual_seed(0)
    fixed = {"attack": ATTACK, "objective": AdversarialCE(), "dataset": "npz", "num_classes": 3}
    return {"net": TinyNet(3), "activation": PSSiLU(), **fixed, **changed}


def module(**changed) -> RobustModule:
    return RobustModule(**parts(**changed))


def loader(*tensors: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(*(tensors or images(16, num_classes=3))), batch_size=4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"overfit_batches": 1}, 1),
        ({"fast_dev_run": True}, 1),
        ({"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}, 2),
        ({"limit_val_batches": 0}, 4),
        ({"detect_anomaly": True}, 4),
        ({"num_sanity_val_steps": 0}, 4),
        ({"barebones": True, "logger": None, "enable_checkpointing": None}, 4),
        ({"inference_mode": True}, 4),
        ({"accumulate_grad_batches": 2}, 2),
        ({"max_epochs": 0}, 0),
    ],
)
def test_options_of_the_trainer(options, steps, tmp_path):
    evaluation = RobustEval(ATTACK, evidence=False)
    run, trained = trainer(tmp_path, evaluation, **options), module()
    run.fit(trained, loader(), loader())
    assert run.global_step == steps
    assert "test" not in evaluation.results
    run.test(trained, loader(), verbose=False)
    one_batch = {"fast_dev_run", "limit_test_batches"} & set(options)
    assert evaluation.results["test"].evaluated == (4 if one_batch else 16)


def printer() -> list[Callback]:
    throughput = Throughput()
    return [EpochPrinter(throughput), RunHeartbeat(throughput), throughput]


@pytest.mark.parametrize(
    "make",
    [
        *(ActivationMonitor, BatchNormStart, ExactResume, OverfittingDetector, PredictionWriter, RadiusSchedule),
        *(StopOnSignal, Throughput, WarmupEMA, printer),
    ],
)
@pytest.mark.filterwarnings("ignore:Catastrophic")
def test_each_callback_alone(make, tmp_path):
    callbacks, trained = make(), module()
    run = trainer(tmp_path, *(callbacks if isinstance(callbacks, list) else [callbacks]))
    run.fit(trained, loader(), loader())
    run.validate(trained, loader(), verbose=False)
    assert set(run.test(trained, loader(), verbose=False)[0]) == {"test/acc"}
    assert run.predict(trained, loader())[0]["probabilities"].shape == (4, 3)


@pytest.mark.parametrize("x", [X, TensorDataset(X)], ids=["tensors", "tuples"])
def test_predict_accepts_images_alone(x, tmp_path):
    trainer(tmp_path, PredictionWriter()).predict(module(), DataLoader(x, batch_size=4))
    with np.load(tmp_path / "predictions.npz") as written:
        assert written["label"].tolist() == 8 * [-1]
        assert written["probabilities"].shape == (8, 3)


class Flatten(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        nn.utils.parameters_to_vector(pl_module.parameters())


FLATTENING = {
    "LBFGS": ([], {"optimizer": torch.optim.LBFGS, "decay": "all"}),
    "ModelPruning": ([ModelPruning("l1_unstructured", amount=0.5)], {}),
    "parameters_to_vector": ([Flatten()], {}),
}


@pytest.mark.parametrize(("callbacks", "changed"), FLATTENING.values(), ids=FLATTENING)
def test_code_that_flattens_parameters_needs_another_layout(callbacks, changed):
    refused = module(**changed)
    with pytest.raises(RuntimeError, match=r"got the channels-last layout. Pass --model.speed.channels_last false"):
        trainer(None, *callbacks).fit(refused, loader())
    nn.utils.parameters_to_vector(refused.parameters())
    assert refused.model.fast_forward is None
    trainer(None, *callbacks).fit(module(**changed, speed=Speed(channels_last=False)), loader())


class Viewing(TinyNet):
    def forward(self, x):
        return super().forward(self.conv(x).view(len(x), -1)[:, : x[0].numel()].view_as(x))


class Pair(TinyNet):
    def forward(self, x):
        return super().forward(x), x


class Foreign(LightningModule):
    def validation_step(self, batch, batch_idx):
        pass


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


REFUSED = {
    "a view in the network": (lambda: trainer(None).fit(module(net=Viewing(3)), loader()), "channels_last false"),
    "a network with two outputs": (
        lambda: trainer(None).fit(module(net=Pair(3)), loader()),
        r"must return logits, or an object with `.logits`, got tuple. Return a tensor",
    ),
    "an optimizer without groups": (
        lambda: trainer(None).fit(module(optimizer=torch.optim.LBFGS), loader()),
        r"LBFGS doesn't support per-parameter options .*[^.]\. Pass .*such as LBFGS, also --model.decay all\.$",
    ),
    "an invalid learning rate": (
        lambda: trainer(None).fit(module(optimizer=lambda p: torch.optim.SGD(p, lr=-1)), loader()),
        "Invalid learning rate: -1",
    ),
    "images alone": (
        lambda: trainer(None).fit(module(), DataLoader(X, batch_size=4)),
        r"the two tensors \(images, labels\), got Tensor of length 4. Return \(images, labels\)",
    ),
    "a label outside the classes": (
        lambda: trainer(None).fit(module(), loader(X, Y + 1)),
        "y must be class labels .* from 0 below 3 .* got labels from 1 to 3. Number the classes from 0",
    ),
    "a label outside the classes in validation": (
        lambda: trainer(None).validate(module(), loader(X, Y + 1)),
        "from 0 below 3 .* got labels from 1 to 3",
    ),
    "several validation loaders": (
        lambda: trainer(None).fit(module(), loader(), [loader(), loader()]),
        "^RobustModule must have one validation loader, got 2. Pass one of a ConcatDataset",
    ),
    "several test loaders": (
        lambda: trainer(None).test(module(), [loader(), loader()]),
        "must have one test loader, got 2",
    ),
    "batches of other keys": (
        lambda: trainer(None).validate(module(), DataLoader([{"image": X[0], "label": 0}])),
        "got dict of length 2. Return",
    ),
    "an evaluation of another module": (
        lambda: trainer(None, RobustEval(ATTACK)).validate(Foreign(), loader()),
        "Foreign.forward must map images .* to logits, got no forward. Define it, as in `return self.model",
    ),
    "an evaluation of images without indices": (
        lambda: trainer(None, RobustEval(ATTACK)).validate(module(), DataLoader(Stream(), batch_size=4)),
        "one DataLoader of a dataset with indices, got Stream as the val loader",
    ),
    "no held-out images": (
        lambda: trainer(None, OverfittingDetector()).fit(module(), loader()),
        "at least one held-out image per device, got 0 .* one validation loader to `fit`",
    ),
}


@pytest.mark.parametrize(("use", "message"), REFUSED.values(), ids=REFUSED)
def test_other_uses_are_refused_in_one_sentence(use, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        use()


def test_a_logger_gets_no_objects(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*is an instance of `nn.Module`")
        trained = module()
    trainer(tmp_path, logger=CSVLogger(tmp_path, "", "")).fit(trained, loader())
    assert (tmp_path / "metrics.csv").is_file()
    assert not (tmp_path / "hparams.yaml").exists() or (tmp_path / "hparams.yaml").read_text() == "{}\n"


def from_command_line(folder) -> RobustModule:
    return built("-c", write_experiment(folder), "--model.optimizer", "AdamW", "--model.optimizer.lr", "0.1").model


@pytest.mark.parametrize("make", [lambda folder: module(), from_command_line])
def test_a_module_is_pickled(make, tmp_path):
    """As by `torch.save(module)` and the strategy `ddp_spawn`."""
    original = make(tmp_path)
    copy = pickle.loads(pickle.dumps(original))
    x, _ = images(4, num_classes=3)
    assert torch.equal(copy.eval()(x), original.eval()(x))
    made = [each.optimizer(each.parameters()) for each in (copy, original)]
    assert type(made[0]) is type(made[1])
    assert made[0].defaults == made[1].defaults


def test_own_checkpoints_load_with_the_parts_of_the_module(tmp_path):
    trained = module()
    savers = [ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), ModelCheckpoint(tmp_path, "best", "val/acc")]
    trainer(None, *savers, enable_checkpointing=True, max_epochs=2).fit(trained, loader(), loader())
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0.ckpt", "epoch=1.ckpt", "best.ckpt"}
    loaded = RobustModule.load_from_checkpoint(tmp_path / "epoch=1.ckpt", weights_only=True, **parts())
    x, _ = images(4, num_classes=3)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))

"""Monitored metrics that are not logged."""

from types import SimpleNamespace

import pytest
import torch
from helpers.fakes import TinyNet
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_paf.attacks import FGSM, PGD
from lightning_paf.callbacks import MonitorCheck, RobustEval
from lightning_paf.objectives import AdversarialCE
from lightning_paf.tasks.classification import RobustModule


class Logging(Callback):
    """A callback that could log any metric."""


@pytest.fixture(scope="module")
def module() -> RobustModule:
    return RobustModule(TinyNet(), PGD(), AdversarialCE())


@pytest.mark.parametrize(
    "monitored", ["val/acc", "val/acc_fgsm", "train/acc", "activation/alpha", "val/aa_upper", "lr", "epoch", "step"]
)
def test_metrics_of_this_package(monitored, module):
    callbacks = [RobustEval(FGSM(), "fgsm"), EarlyStopping(monitored)]
    MonitorCheck().check(Trainer(callbacks=callbacks, accelerator="cpu", logger=False), module)


@pytest.mark.parametrize("others", [[], [Logging()]])
@pytest.mark.parametrize("callback", [EarlyStopping("val/acc_pgd"), ModelCheckpoint(monitor="val/acc_pgd")])
def test_a_robust_accuracy_that_is_not_measured(callback, others, module):
    trainer = Trainer(callbacks=[callback, *others], accelerator="cpu", logger=False)
    with pytest.raises(ValueError, match=r"monitor must be a metric that the training logs, got val/acc_pgd\. Pass"):
        MonitorCheck().check(trainer, module)


def test_a_callback_of_another_package_can_log_any_other_metric(module):
    trainer = Trainer(callbacks=[Logging(), EarlyStopping("own")], accelerator="cpu", logger=False)
    MonitorCheck().check(trainer, module)


def test_the_monitor_of_a_learning_rate_scheduler(module):
    scheduler = ReduceLROnPlateau(torch.optim.SGD(module.parameters(), 0.1))
    config = SimpleNamespace(scheduler=scheduler, reduce_on_plateau=True, monitor="val_loss")
    trainer = SimpleNamespace(callbacks=[], lr_scheduler_configs=[config])
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau\.monitor must be .*, got val_loss"):
        MonitorCheck().check(trainer, module)

"""Tune two arguments of PGD adversarial training on 8x8 digits with Optuna."""

import functools
import sys

import optuna
import torch
from lightning import Trainer, seed_everything

from lightning_paf import PGD, PSSiLU, RobustDataModule, RobustModule
from lightning_paf.callbacks import RobustEval
from lightning_paf.nets import SmallConvNet
from lightning_paf.objectives import AdversarialCE

EPS, EPOCHS = 0.2, 5


def robust_accuracy(trial: optuna.Trial) -> float:
    """Train with the suggested arguments; return the accuracy under PGD on validation images."""
    seed_everything(0)
    learning_rate = trial.suggest_float("lr", 0.01, 0.5, log=True)
    step_size = trial.suggest_float("step_size", EPS / 8, EPS, log=True)
    optimizer = functools.partial(torch.optim.SGD, lr=learning_rate, momentum=0.9)
    attack = PGD(eps=EPS, step_size=step_size, steps=7)
    module = RobustModule(SmallConvNet(), attack, AdversarialCE(), "digits", activation=PSSiLU(), optimizer=optimizer)
    data = RobustDataModule("digits", real_fraction=1, batch_size=64, val_size=200, num_workers=0)
    evaluation = RobustEval(PGD(eps=EPS, step_size=EPS / 4, steps=20), "pgd20", every_n_epochs=EPOCHS)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=EPOCHS, callbacks=[evaluation], **quiet)
    trainer.fit(module, data)
    return trainer.callback_metrics["val/acc_pgd20"].item()


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(robust_accuracy, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(f"best of {len(study.trials)} trials: robust accuracy {study.best_value:.1%} with {study.best_params}")

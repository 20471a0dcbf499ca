"""Every evaluation of a network that overflows on bright images, whose robust accuracy is known."""

import warnings

import numpy as np
import pytest
import torch
from helpers.fakes import tiny_classifier
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.analysis.randomized_smoothing import ABSTAINS, Smoothing
from lightning_paf.analysis.security_curve import fixed_eps, minimum_norm
from lightning_paf.analysis.security_curve_check import recheck
from lightning_paf.attacks import APGD, FAB, PGD, AutoAttack, Square
from lightning_paf.callbacks.robust_eval import RobustEval
from lightning_paf.evaluation import Evaluation, Outcome, Samples
from lightning_paf.evaluation.checks import Context, run_checks
from lightning_paf.evaluation.checks.behaviour import finite_outputs
from lightning_paf.evaluation.warm import WarmCheck
from lightning_paf.functional import misclassified
from lightning_paf.objectives import Natural
from lightning_paf.tasks.classification import RobustModule

pytestmark = pytest.mark.filterwarnings("ignore:The logits of")

EPS = 0.057
LIMIT = 0.5
NAN, INF = torch.nan, torch.inf
KINDS = {
    "NaN": [NAN] * 4,
    "winner +inf": [INF, 0, 0, 0],
    "winner -inf": [-INF, 0, 0, 0],
    "loser -inf": [1, 0, -INF, 0],
    "loser +inf": [1, INF, 0, 0],
}
kinds = pytest.mark.parametrize("logits", KINDS.values(), ids=KINDS)


class Overflows(nn.Module):
    """Predicts class 0, but has logits that are not finite where the mean pixel is above a limit."""

    def __init__(self, logits, limit=LIMIT):
        super().__init__()
        self.num_classes = len(logits)
        self.register_buffer("logits", torch.tensor(logits, dtype=torch.float32))
        self.limit = limit

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        logits = torch.stack([2 - mean, mean, -1 + 0 * mean, -2 + 0 * mean], dim=1)
        return torch.where((mean > self.limit)[:, None], self.logits, logits)


LEVELS = torch.linspace(0.1, 0.6, 26)
X = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
Y = torch.zeros(26, dtype=torch.int64)
CLEAN = LEVELS <= LIMIT
ROBUST = LEVELS + EPS <= LIMIT


@kinds
@pytest.mark.parametrize(
    "attack",
    [
        PGD(EPS, step_size=EPS / 4, best=True),
        AutoAttack(EPS, version="custom", attacks=["apgd-ce"]),
        APGD(EPS, steps=20, search_loss="dlr-targeted"),
        FAB(EPS, steps=20),
        Square(EPS, queries=100),
    ],
    ids=["pgd", "autoattack", "apgd-t", "fab", "square"],
)
def test_attacks(attack, logits):
    model = Overflows(logits)
    torch.manual_seed(0)
    assert torch.equal(~misclassified(model(attack(model, X, Y)), Y), ROBUST)
    result = Evaluation(model, attack, Samples.of(X, Y)).run()
    assert np.array_equal(result.outcomes == Outcome.ROBUST, ROBUST.numpy())


@kinds
def test_autoattack_in_python(logits):
    result = AutoAttack(EPS, version="custom", attacks=["apgd-ce"]).run(Overflows(logits), X, Y)
    assert result.robust_after["clean"] == int(CLEAN.sum())
    assert torch.equal(result.robust, ROBUST)


@kinds
def test_curve(logits):
    model, samples, grid = Overflows(logits), Samples.of(X, Y), (0.05 * EPS, EPS, 2 * EPS)
    pgd = lambda eps: PGD(eps, step_size=float(eps) / 4)  # noqa: E731
    curves = minimum_norm(model, samples, FAB(EPS, steps=20), grid), fixed_eps(model, samples, pgd, grid)
    for curve in curves:
        assert curve.at(0).correct == int(CLEAN.sum())
        assert curve.at(EPS).correct == int(ROBUST.sum())
    check = recheck(model, curve, pgd, samples)
    assert check.robust[-1] == int((LEVELS + 2 * EPS <= LIMIT).sum())
    assert not check.alarms


@kinds
def test_warm_check(logits):
    check = WarmCheck(APGD(EPS, steps=20), steps=5, block_size=7)
    for _ in range(2):
        result = check.run(Overflows(logits), Samples.of(X, Y))
        assert result.robust == int(ROBUST.sum())


@kinds
def test_validation_of_a_training(tmp_path, logits):
    class Fixed(RobustModule):
        def training_step(self, batch, batch_idx):
            return 0 * next(self.parameters()).sum()

    net = tiny_classifier().net
    module = Fixed(net, PGD(), Natural(), dataset="cifar10", normalize=False)
    module.model = Overflows(logits)
    module.model.weight = nn.Parameter(torch.zeros(1))
    module.model.penalty = lambda: torch.zeros(())
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        callbacks=[RobustEval(PGD(EPS, step_size=EPS / 4))],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(float(CLEAN.float().mean()))
    assert float(trainer.callback_metrics["val/acc_pgd"]) == pytest.approx(float(ROBUST.float().mean()))


@kinds
def test_sanity_check_looks_inside_the_ball(logits):
    x, y = X[CLEAN], Y[CLEAN]
    (result,) = run_checks(Context(Overflows(logits), x, y, EPS), (finite_outputs,))
    assert not result.passed
    fraction = pytest.approx(float((~ROBUST[CLEAN]).double().mean()))
    assert result.values == {"fraction": 0.0, "fraction_attacked": fraction}


@kinds
def test_certificates_count_votes_without_a_class_as_wrong(logits):
    # The mean of 64 pixels with noise of sigma 0.25 has a standard deviation of 1/32: at a mean of 0.5 - 1/32 one in
    # six noisy copies overflows, at 0.5 + 1/32 five in six.
    sigma, x = 0.25, (torch.tensor([0.1, 0.5 - 1 / 32, 0.5 + 1 / 32, 0.9])).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found = Smoothing(sigma, n0=50, n=2000).certify(Overflows(logits), x)
    assert found.classes.tolist() == [0, 0, ABSTAINS, ABSTAINS]
    assert found.predictions.tolist() == [0, 0, ABSTAINS, ABSTAINS]
    exact = sigma * torch.distributions.Normal(0, 1).icdf(torch.tensor(0.8413)).item()
    assert 0.85 * exact < found.radii[1] < exact


def test_a_network_without_finite_logits():
    result = AutoAttack(EPS).run(Overflows([NAN] * 4, limit=-1.0), X, Y)
    assert not result.robust.any()
    assert torch.equal(result.x_adv, X)


def test_labels_are_checked_before_any_attack():
    with pytest.raises(ValueError, match="y must be class labels"):
        AutoAttack(EPS).run(Overflows(KINDS["NaN"]), X, Y + 7)


class RootOfBlack(Overflows):
    """Adds zero, but its derivative at black pixels is 0 times infinity."""

    def forward(self, x):
        return super().forward(x + 0 * x.sqrt())


def test_gradients_that_are_not_finite_are_reported_once():
    x = X.clone()
    x[::2, :, 0] = 0
    with pytest.warns(UserWarning, match=r"Gradients of \d+ of \d+ images were not finite") as caught:
        Evaluation(RootOfBlack(KINDS["NaN"]), PGD(EPS, start="none"), Samples.of(x, Y), block_size=5).run()
    assert sum("Gradients" in str(one.message) for one in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Evaluation(Overflows(KINDS["NaN"]), PGD(EPS), Samples.of(X[:5], Y[:5])).run()

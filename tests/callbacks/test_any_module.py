"""Callbacks in a LightningModule of another project, which has a `forward` and no `model`."""

import pytest
import torch
import torch.nn.functional as F
from helpers.known_accuracy import EPS, EXPECTED, Brightness, BrightnessModule, data
from helpers.trainers import trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf import evaluate
from lightning_paf.attacks import PGD
from lightning_paf.callbacks import ActivationMonitor, AdversarialTraining, RobustEval, WarmupEMA
from lightning_paf.nn.activations import PSSiLU

ATTACK = PGD(0.1, step_size=0.05, steps=2)
torch.manual_seed(0)
X, Y = torch.rand(16, 1, 8, 8), torch.arange(16) % 3


class Plain(LightningModule):
    """A classifier in two parts, whose images are normalised in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), PSSiLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, 3)
        self.seen = list[torch.Tensor]()

    def forward(self, x):
        return self.head(self.body((x - 0.5) / 0.25).flatten(1))

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Attacked(Plain):
    """A module that attacks its batches itself, as `RobustModule` does."""

    attack = ATTACK


class BrightnessForward(BrightnessModule):
    """The closed form in `forward`; `model` is another network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Identity()
        self.rule = Brightness()

    def forward(self, x):
        return self.rule(x)


def loader(batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size)


class Batches:
    """A loader of given batches."""

    def __init__(self, *batches) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def parts(images: torch.Tensor) -> Batches:
    """Two batches that share the memory of the images."""
    return Batches((images[:8], Y[:8]), [images[8:], Y[8:]])


def test_forward_is_evaluated_and_not_another_network(tmp_path):
    callback = RobustEval(PGD(EPS, step_size=EPS / 2, steps=4))
    trainer(tmp_path, callback).test(BrightnessForward(), data(), verbose=False)
    assert callback.results["test"].outcomes.tolist() == EXPECTED.tolist()


def test_all_callbacks_together(tmp_path):
    module, evaluation = Plain(), RobustEval(ATTACK)
    run = trainer(tmp_path, AdversarialTraining(ATTACK), evaluation, ActivationMonitor(), WarmupEMA(), max_epochs=2)
    run.fit(module, loader(), loader())
    assert {"val/acc", "val/acc_pgd", "activation/alpha"} <= run.callback_metrics.keys()
    assert (tmp_path / "activation.png").is_file()
    run.test(module, loader(), verbose=False)
    result = evaluate(module.eval(), X, Y, attack=ATTACK)
    assert evaluation.results["test"].outcomes.tolist() == result.outcomes.tolist()


def test_steps_see_adversarial_images_and_the_data_stay_clean(tmp_path):
    module, images = Plain(), X.clone()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(1)
    expected = ATTACK(module, X[:8], Y[:8])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.manual_seed(1)
    trainer(tmp_path, AdversarialTraining(ATTACK)).fit(module, parts(images))
    assert torch.equal(module.seen[0], expected)
    assert 0.05 < (module.seen[1] - X[8:]).abs().max() <= 0.1 + 1e-6
    assert torch.equal(images, X)


def test_a_step_can_differentiate_by_the_images(tmp_path):
    class Penalty(Plain):
        def training_step(self, batch, batch_idx):
            x = batch[0].requires_grad_()
            loss = F.cross_entropy(self(x), batch[1])
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            return loss + slope.square().sum()

    images = X.clone()
    trainer(tmp_path, AdversarialTraining(ATTACK)).fit(Penalty(), parts(images))
    assert torch.equal(images, X)


def test_images_of_a_batch_can_share_memory(tmp_path):
    module, image = Plain(), X[:1].clone()
    trainer(tmp_path, AdversarialTraining(ATTACK)).fit(module, Batches((image.expand(8, -1, -1, -1), Y[:8])))
    assert 0.05 < (module.seen[0] - X[:1]).abs().max() <= 0.1 + 1e-6
    assert torch.equal(image, X[:1])


@pytest.mark.parametrize(
    ("batch", "message"), [((X * 255, Y), r"Pixels must lie in \[0, 1\]"), ((X, Y + 5), "y must be class labels")]
)
def test_validation_images_are_checked_before_the_training(batch, message, tmp_path):
    module = Plain()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, RobustEval(ATTACK)).fit(module, loader(), DataLoader(TensorDataset(*batch), 8))
    assert not module.seen
    trainer(tmp_path, RobustEval(ATTACK, every_n_epochs=0)).fit(module, loader(), DataLoader(TensorDataset(*batch), 8))


def test_two_attacks_of_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="One AdversarialTraining must be passed, got 2"):
        trainer(tmp_path, AdversarialTraining(ATTACK), AdversarialTraining(ATTACK)).fit(Plain(), parts(X))


@pytest.mark.parametrize("callback", [RobustEval(ATTACK), ActivationMonitor()])
def test_batches_of_other_form_are_refused_in_validation(callback, tmp_path):
    class Named(Plain):
        def validation_step(self, batch, batch_idx):
            pass

    named = DataLoader([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)], 8)
    with pytest.raises(ValueError, match="must be the two tensors"):
        trainer(tmp_path, callback, num_sanity_val_steps=0).fit(Named(), loader(), named)


def test_the_data_stay_clean_after_an_error(tmp_path, monkeypatch):
    module, images = Plain(), X.clone()

    def fails(batch, batch_idx):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "training_step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, AdversarialTraining(ATTACK)).fit(module, parts(images))
    assert torch.equal(images, X)


def test_the_attack_uses_the_precision_of_the_training(tmp_path):
    dtypes = []

    class Dtypes(Plain):
        def forward(self, x):
            logits = super().forward(x)
            dtypes.append(logits.dtype)
            return logits

    trainer(tmp_path, AdversarialTraining(ATTACK), precision="bf16-mixed").fit(Dtypes(), loader(16))
    assert set(dtypes[-3:]) == {torch.bfloat16}  # a gradient of the attack and the step; a check before is in float32


@pytest.mark.parametrize(
    ("module", "batch", "message"),
    [
        (Plain, [X * 255, Y], r"Pixels must lie in \[0, 1\] for PGD"),
        (Plain, [(X * 255).byte(), Y], "Images must be floating point, got torch.uint8"),
        (Plain, {"image": X, "label": Y}, "must be the two tensors"),
        (Plain, [X, Y + 5], "y must be class labels"),
        (Attacked, [X, Y], "AdversarialTraining must be left out for Attacked, which already has an attack"),
    ],
)
def test_what_cannot_be_trained_is_refused(module, batch, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, AdversarialTraining(ATTACK)).fit(module(), Batches(batch))


def test_a_module_without_forward_is_refused(tmp_path):
    class Nothing(Plain):
        model = nn.Identity()  # may be a part without the head
        forward = LightningModule.forward

    with pytest.raises(TypeError, match=r"Nothing.forward must map images .* to logits, got no forward"):
        trainer(tmp_path, AdversarialTraining(ATTACK)).fit(Nothing(), loader())

"""Training step, optimiser and checkpoint of the module, without command line."""

import math

import pytest
import torch
from helpers.cli_runs import built, status, write_experiment
from helpers.fakes import TinyNet, images
from helpers.trainers import trainer as silent_trainer
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.attacks import PGD
from lightning_paf.callbacks import WarmupEMA
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.objectives import AdversarialCE, Natural, Objective, StepResult
from lightning_paf.schedules import Cosine, Cyclic, OneCycle, Plateau
from lightning_paf.tasks.classification import RobustModule

STEPS = 4  # in an epoch


def make(**options) -> RobustModule:
    torch.manual_seed(0)
    defaults = {"attack": PGD(steps=1, step_size=0.1), "objective": Natural(), "dataset": "npz", "num_classes": 3}
    return RobustModule(TinyNet(3), **{**defaults, "activation": PSSiLU(), **options})


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*images(4 * STEPS, num_classes=3)), batch_size=4)


def trainer(*callbacks: Callback, **options) -> Trainer:
    return silent_trainer(None, *callbacks, **options)


class Watch(Callback):
    """Recorder of learning rates and of gradients at the optimiser, step by step."""

    def __init__(self, quantity: str = "lr") -> None:
        self.quantity = quantity
        self.rates: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0][self.quantity])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.gradients.append({name: value.grad.clone() for name, value in pl_module.named_parameters()})

    def norms(self, name: str) -> list[float]:
        return [float(gradients[name].norm()) for gradients in self.gradients]

    def total_norms(self) -> list[float]:
        return [float(torch.stack([g.norm() for g in gradients.values()]).norm()) for gradients in self.gradients]


def test_one_activation_is_shared_and_trained():
    module = make()
    assert isinstance(module.model.net.activation, PSSiLU)
    assert make(activation=None).model.net.activation.__class__ is nn.ReLU
    assert {"model.net.activation.alpha", "model.net.activation.beta"} <= dict(module.named_parameters()).keys()


def test_the_penalty_on_beta_is_in_the_loss():
    x, y = images(4, num_classes=3)
    losses = {
        weight: make(activation=PSSiLU(beta=0.25, penalty_weight=weight)).training_step((x, y), 0).item()
        for weight in (0.0, 10.0)
    }
    assert losses[10.0] - losses[0.0] == pytest.approx(2.5, rel=1e-5)


def test_beta_is_clipped_after_the_backward_pass():
    """The penalty alone has the gradient 10; the optimiser gets at most 0.01."""
    watch = Watch()
    trainer(watch).fit(make(activation=PSSiLU(beta=0.25)), loader())
    assert watch.norms("model.net.activation.beta") == pytest.approx([0.01] * STEPS, rel=1e-4)
    assert max(watch.norms("model.net.fc.weight")) > 0.02


def test_the_clipping_of_the_trainer_comes_first():
    watch = Watch()
    trainer(watch, gradient_clip_val=0.5).fit(make(activation=PSSiLU(beta=0.25)), loader())
    assert max(watch.norms("model.net.activation.beta")) <= 0.01 * (1 + 1e-4)
    # The gradient of the penalty is nearly the complete norm before beta is clipped.
    assert max(watch.total_norms()) < 0.1
    free = Watch()
    trainer(free, gradient_clip_val=1e-3).fit(make(activation=None), loader())
    assert free.total_norms() == pytest.approx([1e-3] * STEPS, rel=1e-3)


def test_the_learning_rate_follows_the_schedule_at_every_step():
    watch = Watch()
    module = make(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=Cosine(final=0.01))
    trainer(watch, max_epochs=2).fit(module, loader())
    steps = 2 * STEPS
    expected = [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2) for step in range(steps)]
    assert watch.rates == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Cyclic(0.5, low_momentum=0.8), OneCycle(0.25, low_momentum=0.8)])
def test_the_momentum_follows_the_schedule_at_every_step(schedule):
    watch = Watch("momentum")
    trainer(watch).fit(make(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), schedule=schedule), loader())
    assert watch.rates == pytest.approx([schedule.momentum(step / STEPS, 0.9) for step in range(STEPS)])
    assert min(watch.rates) == pytest.approx(0.8)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_cycle_of_the_momentum_requires_a_momentum(optimizer):
    module = make(optimizer=lambda p: optimizer(p, lr=0.1), schedule=OneCycle(low_momentum=0.85))
    with pytest.raises(ValueError, match=rf"must have a momentum for .*0.85, got {optimizer.__name__} without"):
        trainer().fit(module, loader())


def test_the_learning_rate_at_the_end_of_the_epoch_is_logged():
    run = trainer(max_epochs=2)
    run.fit(make(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=Cosine(final=0.5)), loader())
    assert float(run.callback_metrics["lr"]) == pytest.approx(0.05)


def test_the_learning_rate_drops_when_the_monitored_metric_stops_improving():
    """A constant rate is no improvement over itself, its drop is one."""
    watch = Watch()
    module = make(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=Plateau("lr", 0.5, patience=0, mode="min"))
    trainer(watch, max_epochs=5).fit(module, loader())
    assert watch.rates[::STEPS] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_the_learning_rate_counts_optimiser_steps_not_batches():
    watch = Watch()
    module = make(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=Cosine())
    trainer(watch, accumulate_grad_batches=2).fit(module, loader())
    assert watch.rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


class Twice(Natural):
    steps_per_batch = 2


def test_two_optimiser_steps_per_batch_count_once_for_trainer_schedule_and_average():
    """Radius schedules, checkpoints and averages rely on this count of Lightning."""
    updates = []

    class SGD(torch.optim.SGD):
        def step(self, closure=None):
            updates.append(len(updates))
            return super().step(closure)

    watch, average = Watch(), WarmupEMA(0.9)
    run = trainer(watch, average)
    run.fit(make(optimizer=lambda p: SGD(p, lr=0.1), schedule=Cosine(), objective=Twice()), loader())
    assert len(updates) == 2 * STEPS
    assert run.global_step == STEPS == run.estimated_stepping_batches == average._average_model.n_averaged
    assert watch.rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)])


@pytest.mark.parametrize(
    ("decay", "not_decayed"),
    [
        ("all", set()),
        ("activation_free", {"activation.alpha", "activation.beta"}),
        ("weights", {"activation.alpha", "activation.beta", "bn.weight", "bn.bias", "fc.bias"}),
    ],
)
def test_weight_decay_acts_on_its_groups(decay, not_decayed):
    module = make(decay=decay, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5))
    run = trainer(limit_train_batches=1)
    run.fit(module, loader())
    names = {id(value): name.removeprefix("model.net.") for name, value in module.named_parameters()}
    groups = run.optimizers[0].param_groups
    decays = {names[id(value)]: group["weight_decay"] for group in groups for value in group["params"]}
    assert decays.keys() == set(names.values())
    assert {name for name, value in decays.items() if value == 0} == not_decayed
    assert {value for name, value in decays.items() if name not in not_decayed} == {0.5}


def test_a_training_without_end_is_refused():
    with pytest.raises(ValueError, match=r"got max_epochs=-1. Pass --trainer.max_epochs or --trainer.max_steps"):
        trainer(max_epochs=-1).fit(make(), loader())


def test_a_loss_that_is_not_finite_names_the_step_and_the_parameters():
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                pl_module.model.net.fc.bias.data[1] = torch.nan

    watch, module = Watch(), make()
    with pytest.raises(ValueError, match=r"got nan at step 2 \(not finite: model.net.fc.bias;") as caught:
        trainer(Break(), watch).fit(module, loader())
    assert "'model.net.activation.alpha': " in str(caught.value)
    assert "Lower the learning rate" in str(caught.value)
    assert len(watch.gradients) == 2
    assert torch.isfinite(module.model.net.fc.weight).all(), "the NaN reached the weights"


def test_a_module_built_in_code_saves_a_plain_checkpoint(tmp_path):
    module = make(objective=AdversarialCE())
    assert not module.hparams
    run = trainer()
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "by_hand.ckpt")
    saved = torch.load(tmp_path / "by_hand.ckpt", weights_only=True)
    assert "net" not in saved.get("hyper_parameters", {})
    copy = make(objective=AdversarialCE())
    copy.load_state_dict(saved["state_dict"])
    x, _ = images(4, num_classes=3)
    assert torch.equal(copy.eval()(x), module.eval()(x))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"activation": None}, "2 not expected: model.net.activation.alpha, model.net.activation.beta"),
        ({"num_classes": 4}, r"2 of another shape: model.net.fc.bias: \(3,\) instead of \(4,\)"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_difference(other, message):
    checkpoint = {"state_dict": make().state_dict()}
    make().on_load_checkpoint(checkpoint)
    options = {"attack": PGD(steps=1, step_size=0.1), "objective": Natural(), "dataset": "npz", "activation": PSSiLU()}
    classes = other.get("num_classes", 3)
    module = RobustModule(TinyNet(classes), **{**options, "num_classes": classes, **other})
    with pytest.raises(ValueError, match=f"must hold a TinyNet(.|\n)*{message}"):
        module.on_load_checkpoint(checkpoint)


class Scripted(Objective):
    """Fixed results: images 0, 1, 2 of 4 are correct when clean, 0 and 3 under attack."""

    def __init__(self, with_clean: bool) -> None:
        super().__init__()
        self.with_clean = with_clean

    def forward(self, model, x, y, attack):
        right, wrong = one_hot(y, 3).float(), one_hot((y + 1) % 3, 3).float()
        clean = torch.cat([right[:3], wrong[3:]]) if self.with_clean else None
        attacked = torch.cat([right[:1], wrong[1:3], right[3:]])
        return StepResult(model(x).mean(), attacked, clean_logits=clean)


@pytest.mark.parametrize("with_clean", [True, False])
def test_attack_success_counts_images_that_become_wrong(with_clean):
    fit = trainer()
    fit.fit(make(objective=Scripted(with_clean)), loader())
    logged = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("train/")}
    expected = {"train/acc_adv": 0.5, "train/clean_acc": 0.75, "train/attack_success": 0.5}
    assert {name: logged.get(name) for name in expected} == (
        expected if with_clean else {**dict.fromkeys(expected), "train/acc_adv": 0.5}
    )


def test_validation_and_test_are_clean_accuracies(tmp_path):
    module, (x, y) = make(), images(4 * STEPS, num_classes=3)
    expected = float((module.eval()(x).argmax(1) == y).float().mean())
    run = trainer()
    assert run.validate(module, loader(), verbose=False)[0]["val/acc"] == pytest.approx(expected)
    assert run.test(module, loader(), verbose=False)[0]["test/acc"] == pytest.approx(expected)
    predicted = torch.cat([batch["probabilities"] for batch in run.predict(module, loader())])
    assert torch.allclose(predicted, module(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integer_labels_of_any_type_are_labels(dtype):
    x, y = images(4, num_classes=3)
    module, expected = make(), make()
    for trained, labels in ((module, y.to(dtype)), (expected, y)):
        trainer().fit(trained, DataLoader(TensorDataset(x, labels), 4))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"image": torch.zeros(2), "label": torch.zeros(2)}, "dict of length 2"),
        ([torch.zeros(2)], "list of length 1"),
        (torch.zeros(2, 3, 8, 8), "Tensor of length 2"),
    ],
)
def test_other_batches_are_refused_in_one_sentence(batch, found):
    module = make()
    steps = [module.training_step, module.validation_step, module.test_step]
    if isinstance(batch, dict):  # images alone can be predicted
        steps.append(module.predict_step)
    for step in steps:
        with pytest.raises(ValueError, match=rf"must be the two tensors \(images, labels\), got {found}\. Return"):
            step(batch, 0)


def test_the_given_attack_is_used():
    seen = []

    class Spy(PGD):
        def perturb(self, forward, x, y, loss):
            seen.append(len(x))
            return super().perturb(forward, x, y, loss)

    trainer().fit(make(attack=Spy(steps=1, step_size=0.1), objective=AdversarialCE()), loader())
    assert seen == [4] * STEPS


def test_a_training_starts_with_the_weights_of_init(tmp_path, capsys):
    words = ["-c", write_experiment(tmp_path)]
    assert status("fit", *words, "--run", tmp_path / "first") == 0
    first = tmp_path / "first" / "checkpoints" / "last.ckpt"
    module = built(*words, "--model.init", first).model
    weights = torch.load(first, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
    for options, message in (
        (["nowhere.ckpt"], "--model.init must be an existing checkpoint, got nowhere.ckpt. Train it first"),
        ([first, "--model.net.width", "8"], "holds another network"),
        ([first, "--model.normalize", "false"], "model.normalize must be true for the weights of"),
    ):
        assert status("fit", *words, "--run", tmp_path / "second", "--model.init", *options) == 1
        assert message in capsys.readouterr().err


def test_a_fresh_head_allows_other_classes_and_other_statistics_are_reported(tmp_path):
    assert status("fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "first") == 0
    first = tmp_path / "first" / "checkpoints" / "last.ckpt"
    words = ["-c", tmp_path / "tiny.yaml", "--data.num_classes", 7, "--model.init", first]
    with pytest.raises(ValueError, match=r"holds another network(.|\n)*--model.init_head fresh for other classes"):
        built(*words)
    module = built(*words, "--model.init_head", "fresh").model
    weights = torch.load(first, weights_only=True)["state_dict"]
    kept = [key for key, value in module.state_dict().items() if torch.equal(value, weights[key])]
    assert module.model.num_classes == 7
    assert sorted(module.state_dict().keys() - kept) == [
        f"model.net.{module.model.head_name}.{name}" for name in ("bias", "weight")
    ]
    with pytest.warns(UserWarning, match=r"normalised by mean \(0.5, 0.5, 0.5\)"):
        built(
            "-c",
            tmp_path / "tiny.yaml",
            "--data.dataset",
            "cifar10",
            "--data.num_classes",
            "null",
            "--model.init",
            first,
            "--model.init_head",
            "fresh",
        )

"""What the options of `Speed` change, and what they must not."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from helpers.fakes import images
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.attacks import PGD
from lightning_paf.nn.activations import PSSiLU, ReLU
from lightning_paf.objectives import AdversarialCE, Natural
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule

PLAIN = Speed(channels_last=False, fused=False, folded=False, recompute=False)
ATTACK = PGD(eps=0.1, step_size=0.05, steps=3)


def module(speed, activation=PSSiLU, objective=AdversarialCE, layers=2, width=4):
    torch.manual_seed(0)
    options = {"dataset": "npz", "num_classes": 3, "activation": activation(), "speed": speed}
    return RobustModule(network(layers, width), ATTACK, objective(), **options)


def network(layers, width):
    widths = [3, *[width] * layers]
    body = [[nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def fit(trained, epochs=2, **options):
    losses = Losses()
    data = DataLoader(TensorDataset(*images(32, num_classes=3)), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[losses], **quiet, **options)
    torch.manual_seed(0)
    trainer.fit(trained, data, data)
    return losses.values


@pytest.fixture(scope="module")
def plain_losses():
    return fit(module(PLAIN))


@pytest.mark.parametrize("option", [f.name for f in fields(Speed) if f.name != "compile"])
def test_each_option_alone_trains_the_same_network(option, plain_losses):
    assert fit(module(replace(PLAIN, **{option: True}))) == pytest.approx(plain_losses, rel=2e-2)


def test_all_defaults_together_train_the_same_network(plain_losses):
    assert fit(module(Speed())) == pytest.approx(plain_losses, rel=2e-2)


def test_bf16_trains_nearly_the_same_network(plain_losses):
    assert fit(module(Speed()), precision="bf16-mixed") == pytest.approx(plain_losses, rel=0.1)


def test_during_training_everything_is_in_use_and_afterwards_nothing():
    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen = state(pl_module)
            self.folded = pl_module.model.fast_forward.folded

    def state(trained):
        layers = [layer for layer in trained.modules() if isinstance(layer, PSSiLU)]
        weight = trained.model.net[0].weight
        last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        return last, layers[0].fused, trained.model.fast_forward is not None

    trained, look = module(Speed()), Look()
    keys = trained.state_dict().keys()
    data = DataLoader(TensorDataset(*images(8, num_classes=3)), batch_size=8)
    Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[look], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(trained, data)  # fmt: skip
    assert look.seen == (True, True, True)
    assert look.folded
    assert state(trained) == (False, False, False)
    assert trained.state_dict().keys() == keys


def peak(call):
    """Bytes of tensors that are alive at most, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_memory_of_a_step_is_that_of_relu():
    """The paper's activation needs its input in the backward pass; ReLU does not."""
    x, y = images(16, num_classes=3, size=32)

    def step(speed, activation):
        trained = module(speed, activation, layers=10, width=16)
        trained.setup("fit")
        trained.train()

        def call():
            with speed.step(trained.model), torch.autocast("cpu", torch.bfloat16):
                loss = trained.objective(trained.model, x, y, trained.attack).loss
            loss.backward()

        call()  # the fast is made, gradients are allocated
        return peak(call)

    assert step(PLAIN, PSSiLU) > 1.2 * step(PLAIN, ReLU)
    assert step(Speed(), PSSiLU) < 1.05 * step(Speed(), ReLU)
    assert step(Speed(), PSSiLU) < 1.05 * step(PLAIN, ReLU)


@pytest.fixture
def compilations(monkeypatch):
    """Graphs that torch.compile is given, which are then run as they are; a second one for the same code is refused."""
    graphs, compile_as_usual = [], torch.compile

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_as_usual(f, **{**options, "backend": backend}))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_compilation_happens_once(compilations, plain_losses):
    """Not again for validation, after it, for a frozen network, or in a later epoch."""
    after_epoch = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            after_epoch.append(len(compilations))

    trained, losses = module(Speed(compile=True)), Losses()
    data = DataLoader(TensorDataset(*images(32, num_classes=3)), batch_size=8)
    torch.manual_seed(0)
    Trainer(
        accelerator="cpu", max_epochs=3, logger=False, callbacks=[Count(), losses], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(trained, data, data)  # fmt: skip
    assert after_epoch == [3, 3, 3]  # the attack, the clean pass without gradients, the training pass
    assert losses.values[:8] == pytest.approx(plain_losses, rel=2e-2)


def test_a_compiled_network_refuses_second_derivatives():
    class Penalised(Natural):
        needs_double_backward = True

    with pytest.raises(ValueError, match=r"Penalised.*--model\.speed\.compile false"):
        module(Speed(compile=True), objective=Penalised)

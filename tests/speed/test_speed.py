"""Effects of the options of `Speed` on training: speed and memory, but not results."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from helpers.devices import DEVICE, on_gpu
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


def fit(trained, *callbacks, epochs=2, accelerator="cpu", **options):
    losses = Losses()
    data = DataLoader(TensorDataset(*images(32, num_classes=3)), batch_size=8)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [*callbacks, losses]
    options |= {"accelerator": accelerator, "devices": 1, "logger": False}
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **quiet, **options)
    torch.manual_seed(0)
    trainer.fit(trained, data, data)
    return losses.values


@pytest.fixture(scope="module")
def plain_losses():
    return fit(module(PLAIN))


@pytest.mark.parametrize("option", [f.name for f in fields(Speed) if f.name != "compile"])
def test_each_option_alone_trains_the_same_network(option, plain_losses):
    assert fit(module(replace(PLAIN, **{option: True}))) == pytest.approx(plain_losses, rel=2e-2)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-2), ("bf16-mixed", 0.1)])
def test_all_defaults_together_train_the_same_network(precision, tolerance, plain_losses):
    assert fit(module(Speed()), precision=precision) == pytest.approx(plain_losses, rel=tolerance)


def warnings_of_the_package(caplog):
    """An option that would change the function is dropped with a warning."""
    return [record for record in caplog.records if record.name.startswith("lightning_paf")]


@on_gpu
@pytest.mark.parametrize(("compile", "precision"), [(False, "32-true"), (False, "bf16-mixed"), (True, "bf16-mixed")])
def test_all_options_train_the_same_network_on_a_gpu(compile, precision, caplog):
    trained = module(Speed(compile=compile))
    plain = fit(module(PLAIN), accelerator=DEVICE)
    found = fit(trained, accelerator=DEVICE, precision=precision)
    assert found == pytest.approx(plain, rel=2e-2 if precision == "32-true" else 0.1)
    assert not warnings_of_the_package(caplog)


def state(trained):
    layers = [layer for layer in trained.modules() if isinstance(layer, PSSiLU)]
    weight = trained.model.net[0].weight
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return last, layers[0].fused, trained.model.fast_forward is not None


def test_the_options_act_during_training_only():
    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen = (*state(pl_module), pl_module.model.fast_forward.folded)

    trained, look = module(Speed()), Look()
    keys = trained.state_dict().keys()
    fit(trained, look, epochs=1)
    assert look.seen == (True, True, True, True)
    assert state(trained) == (False, False, False)
    assert trained.state_dict().keys() == keys


def peak(call):
    """Peak bytes of tensors above the initial ones."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_memory_of_a_step_is_that_of_relu():
    """The paper's activation needs its input in the backward pass; ReLU does not."""
    x, y = images(8, num_classes=3, size=32)

    def step(speed, activation):
        trained = module(speed, activation, layers=10, width=16)
        trained.setup("fit")
        trained.train()

        def call():
            with speed.step(trained.model), torch.autocast("cpu", torch.bfloat16):
                loss = trained.objective(trained.model, x, y, trained.attack).loss
            loss.backward()

        call()  # makes the folded model and allocates gradients
        return peak(call)

    plain, fast, fast_relu = step(PLAIN, PSSiLU), step(Speed(), PSSiLU), step(Speed(), ReLU)
    relu = step(PLAIN, ReLU)
    assert plain > 1.2 * relu
    assert fast < 1.05 * min(relu, fast_relu)


@pytest.fixture
def compilations(monkeypatch):
    """Graphs that torch.compile receives; they run without compilation."""
    graphs, torch_compile = [], torch.compile

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda f, **options: torch_compile(f, **options | {"backend": backend, "fullgraph": True})
    )
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_compilation_happens_once(compilations, plain_losses, caplog):
    """Nothing is compiled again in validation, after it, for a frozen network, or in a later epoch."""
    after_epoch = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            after_epoch.append(len(compilations))

    assert fit(module(Speed(compile=True)), Count()) == pytest.approx(plain_losses, rel=2e-2)
    assert after_epoch == [3, 3]  # the attack, the clean pass without gradients, the training pass
    assert not warnings_of_the_package(caplog)


def test_a_compiled_network_refuses_second_derivatives():
    class Penalised(Natural):
        needs_double_backward = True

    with pytest.raises(ValueError, match=r"Penalised.*--model\.speed\.compile false"):
        module(Speed(compile=True), objective=Penalised)

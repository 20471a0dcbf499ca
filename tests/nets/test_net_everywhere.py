"""Every network with every activation, in bfloat16, on two ranks, resumed, exported, and under AutoAttack."""

import copy
import os
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.every_net import SMALL, build, classifier
from helpers.every_objective import concrete
from helpers.fakes import images
from helpers.forked_ranks import Ranks
from helpers.resume_helpers import differences, last, rows
from helpers.training import Trained, steps
from torch.nn.parallel import DistributedDataParallel

from lightning_paf.attacks import APGD, FAB, PGD, AutoAttack, SmoothedPGD, Square
from lightning_paf.interop.onnx_model import OnnxModel, save_onnx
from lightning_paf.nets import ODENet, ViT, ZeroSNet
from lightning_paf.nets.ode.block import ODEBlock
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.swap import swap_activations
from lightning_paf.nn.sync_batch_norm import share_statistics
from lightning_paf.objectives import TRADES, AdversarialCE
from lightning_paf.speed.search_model import SearchModel

every_net = pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)

KINDS = {
    ODENet: ["--model.objective=SteadyState", "--model.objective.start_epoch=0", "--model.objective.window=[0.5,1.5]"],
    ViT: ["--model.optimizer", "SAM", "--model.optimizer.base", "torch.optim.SGD", "--model.optimizer.base.lr", "0.1"],
    ZeroSNet: ["--model.net.trainable", "true"],
}
"""One network of each kind, for properties whose tests are slow: options of a training."""
one_of_each_kind = pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)


@every_net
def test_every_activation(cls):
    model, (x, y) = classifier(cls, n=2)
    for activation in concrete(Activation):
        net = copy.deepcopy(model).train()
        swap_activations(net, activation)
        images = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(net(images), y).backward()
        gradients = [images.grad, *(parameter.grad for parameter in net.parameters())]
        assert all(gradient.isfinite().all() for gradient in gradients), activation
        assert (images.grad != 0).any(), activation


@every_net
@pytest.mark.parametrize("objective", [AdversarialCE, TRADES])
def test_adversarial_training_also_in_bfloat16(cls, objective):
    for enabled in (False, True):
        model, batch = classifier(cls)
        before = copy.deepcopy(model.state_dict())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps(Trained(model.train(), objective()), 1, batch=batch)  # checks that gradients are finite
        # Probes learn by their own objective; a small step of a posterior is below the rounding of its weights.
        parameters = [
            named for named in model.named_parameters() if "probe" not in named[0] and "poster" not in named[0]
        ]
        fixed = [name for name, p in parameters if torch.equal(p, before[name])]
        assert fixed == []
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@every_net
def test_logits_in_bfloat16_are_those_of_single_precision(cls):
    model, (x, _) = classifier(cls)
    with torch.no_grad():
        exact = model.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@every_net
def test_resumed_from_its_state_it_makes_the_same_steps(cls):
    (model, batch), (other, _) = classifier(cls), classifier(cls)
    first, second = (Trained(net.train(), AdversarialCE()) for net in (model, other))
    optimizer = steps(first, 1, batch=batch)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, continued in ((first, optimizer), (second, resumed)):
        torch.manual_seed(1)
        steps(trained, 1, continued, batch)
    assert differences(first.state_dict(), second.state_dict()) == []


@every_net
def test_autoattack(cls):
    class Short(AutoAttack):
        def sub_attacks(self):
            targeted = APGD(self.eps, search_loss="dlr-targeted", steps=2, targets=2)
            smoothed = SmoothedPGD(self.eps, steps=3, smoothed_steps=2, targets=1)
            others = FAB(self.eps, steps=2, targets=2), Square(self.eps, queries=5), smoothed
            return APGD(self.eps, steps=3), targeted, *others

    model, (x, _) = classifier(cls, n=2)
    for eps in (1e-4, 0.5):
        result = Short(eps).run(model, x, y := model.eval()(x).argmax(1))
        assert result.flags == {}
        assert torch.equal(result.robust, model(result.x_adv).argmax(1) == y)
        assert (result.x_adv - x).abs().max() <= eps + 1e-6
        if eps < 0.1:
            assert list(result.robust_after) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square", "smoothed-pgd"]


@every_net
def test_softened_activations_have_a_gradient_and_at_width_0_no_effect(cls):
    model, (x, _) = classifier(cls, n=2)
    search = SearchModel(model.eval())
    if not is_deterministic(model, x):
        pytest.skip("random logits")
    exact = search(x)
    torch.testing.assert_close(
        search.softened(x, torch.zeros(2)), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max())
    )
    softened = search.softened(x.requires_grad_(), torch.full((2,), 0.5))
    assert softened.isfinite().all()
    assert (softened - exact).abs().max() > 1e-4 * exact.abs().max()
    (gradient,) = torch.autograd.grad(softened.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any()


# ------------------------------------------------------------------ two ranks


def is_deterministic(model, x):
    """Whether passes in training mode do not depend on the random generator."""
    model = copy.deepcopy(model).train()
    return torch.equal(*(model(x) for _ in range(2)))


def trained_on(cls, rows, wrap=lambda trained: trained):
    """One step on some of the images, in double precision: the module."""
    torch.manual_seed(0)
    model, (x, y) = classifier(cls)
    trained = Trained(model.double().train(), AdversarialCE())
    trained.attack = PGD(0.1, step_size=0.05, steps=2, start="none")
    wrapped = wrap(trained)
    steps(wrapped, 1, batch=(x[rows].double(), y[rows]))
    return trained


def two_ranks(folder: Path) -> None:
    """Train every network on one of two ranks, with half of the images, and save it."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank)

    def wrap(trained):
        share_statistics(trained)
        return DistributedDataParallel(trained)

    found = {}
    for cls in SMALL:
        trained = trained_on(cls, slice(rank, None, 2), wrap)
        unused = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
        found[cls.__name__] = unused, trained.model.state_dict()
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saved."""
    folder = tmp_path_factory.mktemp("ranks")
    Ranks(2, folder / "logs", two_ranks, folder).succeed()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@every_net
def test_two_ranks_train_like_one(cls, ranks):
    (unused, first), (_, second) = (found[cls.__name__] for found in ranks)
    assert unused == []
    assert differences(first, second) == []
    model, (x, _) = classifier(cls)
    if is_deterministic(model, x):
        torch.testing.assert_close(first, trained_on(cls, slice(None)).model.state_dict(), rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------ one network of each kind


@one_of_each_kind
def test_a_training_resumes_exactly(cls, tmp_path):
    sizes = [f"--model.net.{name}={value}" for name, value in SMALL[cls][0].items()]
    base = ["fit", "-c", write_experiment(tmp_path), "--model.net", cls.__name__, *sizes, *KINDS[cls]]
    saver = "--trainer.callbacks+=helpers.resume_helpers.Saver"
    assert status(*base, saver, "--run", tmp_path / "complete") == 0
    checkpoint = tmp_path / "complete" / "saved" / "step2.ckpt"
    assert status(*base, "--ckpt_path", checkpoint, "--run", tmp_path / "resumed") == 0
    complete, resumed = (tmp_path / name for name in ("complete", "resumed"))
    assert differences(last(resumed), last(complete)) == []
    assert rows(resumed) == rows(complete)[-len(rows(resumed)) :]


@one_of_each_kind
def test_an_onnx_file_has_the_same_logits_or_is_refused(cls, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    net, (x, _) = build(cls, in_channels=3).eval(), images()
    if any(isinstance(module, ODEBlock) for module in net.modules()):
        with pytest.raises(ValueError, match=r"must have no ODE block and .* for an ONNX file.*--formats state_dict"):
            save_onnx(net, x, tmp_path / "model.onnx")
        return
    save_onnx(net, x, tmp_path / "model.onnx")
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(x), net(x).detach(), atol=1e-5, rtol=1e-5)

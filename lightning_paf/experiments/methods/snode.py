"""Standalone neural ODE against the residual network of the same form."""

from torch import Tensor

from lightning_paf.attacks import DeepFool, SensitivityL2, Square
from lightning_paf.experiments.experiment import Claim, Experiment, Variant
from lightning_paf.experiments.metrics import distance_of, robust_to
from lightning_paf.experiments.options import objective
from lightning_paf.loading import Run

EPS = 0.1
EPOCHS, ITERATIONS, T_END, STEP = 10, 6, 2, 0.05

_SNODE = ("--model.net", "SNODE", "--model.net.t_end", str(T_END), "--model.net.step", str(STEP))
_RESNET = ("--model.net", "SNODEResNet", "--model.net.depth", str(round(T_END / STEP)), "--model.net.step", str(STEP))
_SIZE = ("--model.net.image_size", "8")
_NCG = (
    *("--model.optimizer", "SobolevNCG", "--model.optimizer.lr", "1", "--model.schedule", "Constant"),
    *("--model.optimizer.iterations", str(ITERATIONS), "--trainer.max_epochs", str(EPOCHS)),
)
_SAME_GRADIENTS = ("--trainer.max_epochs", str(EPOCHS * ITERATIONS))
_ADAM = ("--model.optimizer", "Adam", "--model.optimizer.lr", "0.001", *_SAME_GRADIENTS)
_SGD = ("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "0.9")


def log_roughness(run: Run, x: Tensor, y: Tensor) -> float:
    """Base-10 logarithm of the squared differences of successive weights."""
    weight = run.model.net.get_parameter("weight")
    return float(weight.detach().diff(dim=0).square().sum().log10())


def _more(what: str, metric: str, *, source: str = "paper") -> tuple[Claim, ...]:
    return (
        Claim(f"sNODE is {what} than the ResNet with SGD", "sobolev", "resnet-sgd", metric, source=source),
        Claim(f"sNODE is {what} than the ResNet with Adam", "sobolev", "resnet-adam", metric, source=source),
    )


EXPERIMENT = Experiment(
    title="sNODE (Jaroudi et al., 2022)",
    variants=(
        Variant("ncg", (*_SNODE, *_SIZE, *_NCG)),
        Variant("sobolev", (*_SNODE, *_SIZE, *_NCG, "--model.optimizer.sobolev", str(T_END))),
        Variant("adam", (*_SNODE, *_SIZE, *_ADAM)),
        Variant("resnet-sgd", (*_RESNET, *_SIZE, *_SGD, *_SAME_GRADIENTS)),
        Variant("resnet-adam", (*_RESNET, *_SIZE, *_ADAM)),
    ),
    claims=(
        Claim("Sobolev gradients make weights three times smoother", "ncg", "sobolev", "log_roughness", by=0.5),
        Claim("Sobolev gradients cost at most 2 points of accuracy", "sobolev", "ncg", "clean", by=-0.02),
        Claim("sNODE with Adam is rougher than with Sobolev gradients", "adam", "sobolev", "log_roughness", by=0.5),
        *_more("more accurate", "clean"),
        *_more("further from its adversarial images of the sensitivity attack", "sensitivity"),
        *_more("further from its adversarial images of DeepFool", "deepfool", source="expected"),
        *_more("more robust to PGD", "pgd", source="expected"),
        *_more("more robust to AutoAttack", "autoattack", source="expected"),
        Claim("DeepFool is nearer than the sensitivity attack", "sobolev", "sobolev", "sensitivity", than="deepfool"),
        Claim("Square finds less than PGD", "sobolev", "sobolev", "square", than="pgd"),
    ),
    metrics={
        "sensitivity": distance_of(SensitivityL2(steps=100)),
        "deepfool": distance_of(DeepFool()),
        "square": robust_to(Square(EPS, queries=1000)),
        "log_roughness": log_roughness,
    },
    plain=("sensitivity", "deepfool", "log_roughness"),
    shown=("clean", "pgd", "square", "autoattack"),
    options=(
        *objective("TerminalCost", squared=1),
        *("--model.normalize", "false", "--data.augment", "null", "--data.batch_size", "100"),
    ),
    eps=EPS,
    note=(
        "Trained on clean images, all with the squared error of the terminal state and "
        f"{EPOCHS * ITERATIONS} gradients per image; conjugate gradients also solve as many sensitivity problems. "
        "Learning rates were not tuned. "
        "sensitivity, deepfool: mean l2 distance of the adversarial images; 0 if the clean image is misclassified, "
        "8 if none was found. The sensitivity attack takes 100 steps of 0.03, the authors 30. log_roughness: base-10 "
        "logarithm of the summed squared differences of successive W."
    ),
)

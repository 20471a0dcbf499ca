"""PGD of other libraries and ours: images per second relative to ours, and robust accuracy.

    python benchmarks/libraries.py
    python benchmarks/libraries.py --device cuda

All run the same number of steps of the same length from a random start, linf, on the same frozen network in eval mode
and in fp32: our `PGD()(model, x, y)`, ours on the folded model of training (in fp32, and in bf16 with an option),
`foolbox`, `adv_lib`, `torchattacks`, and a plain loop as in `torchattacks` and many repositories. The robust accuracies
are those of a network trained on digits (benchmarks/networks.py). `adv_lib` returns a misclassified image of any step,
the others the image of the last step.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from statistics import median
from typing import Any

import measure
import ours
import textbook
import torch
from networks import CASES
from torch import Tensor, nn

from lightning_paf.attacks import PGD
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import dataset_spec
from lightning_paf.speed.folded_model import FoldedModel

WARMUP = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class Setting:
    """Settings of all libraries."""

    eps: float
    step_size: float
    steps: int


Run = Callable[[Tensor, Tensor], Tensor]
"""Images and labels to adversarial images."""


def ours_plain(model: nn.Module, setting: Setting) -> Run:
    attack = PGD(setting.eps, step_size=setting.step_size, steps=setting.steps)
    return lambda x, y: attack(model, x, y)


def plain_loop(model: nn.Module, setting: Setting) -> Run:
    return lambda x, y: textbook.pgd(model, x, y, setting.steps, setting.eps, setting.step_size)


def foolbox(model: nn.Module, setting: Setting) -> Run:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=setting.step_size, steps=setting.steps, random_start=True)
    # `run` is the attack alone; a call of the object also checks the result in one more pass.
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=setting.eps)


def adv_lib(model: nn.Module, setting: Setting) -> Run:
    from adv_lib.attacks import pgd_linf

    return lambda x, y: pgd_linf(model, x, y, setting.eps, steps=setting.steps, absolute_step_size=setting.step_size)


def torchattacks(model: nn.Module, setting: Setting) -> Run:
    import torchattacks

    return torchattacks.PGD(model, eps=setting.eps, alpha=setting.step_size, steps=setting.steps)


LIBRARIES = {"foolbox": "foolbox", "adv_lib": "adv-lib", "torchattacks": "torchattacks"}
"""Names of the distributions."""
MAKERS = {f.__name__: f for f in (plain_loop, foolbox, adv_lib, torchattacks)}


def theirs(model: nn.Module, setting: Setting) -> tuple[dict[str, Run], dict[str, str]]:
    """Installed libraries with versions; `not installed` for the others."""
    runs: dict[str, Run] = {}
    versions: dict[str, str] = {}
    for name, make in MAKERS.items():
        try:
            runs[name] = make(model, setting)
        except ImportError as error:
            versions[name] = f"not installed ({error})"
        else:
            versions |= {name: metadata.version(LIBRARIES[name])} if name in LIBRARIES else {}
    return runs, versions


def speed(options: argparse.Namespace, device: torch.device) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Rows of images per second relative to ours."""
    net = ours.NETS[options.net](options.width)
    swap_activations(net, PSSiLU)
    model = Classifier(net, dataset_spec("cifar10")).to(device).eval()
    x, y = ours.images(options, device)
    x = x.contiguous()
    setting = Setting(8 / 255, float(ours.attack(options.steps).step_size), options.steps)
    runs, versions = theirs(model, setting)
    plain = ours_plain(model, setting)
    folded_models = {precision: FoldedModel(model) for precision in ("fp32", "bf16")}

    def on_folded(precision: str) -> None:
        model.fast_forward = folded_models[precision]
        with ours.autocast(precision, device):
            plain(x, y)
        model.fast_forward = None

    calls: dict[str, Callable[[], Any]] = {"ours": lambda: plain(x, y), "ours, folded model": lambda: on_folded("fp32")}
    if options.precision == "bf16":
        calls["ours, folded model, bf16"] = lambda: on_folded("bf16")
    calls |= {name: lambda run=run: run(x, y) for name, run in runs.items()}
    with frozen(model):
        times = measure.interleaved(calls, options.repeats, WARMUP[device.type], device)
    rows: dict[str, dict[str, Any]] = {}
    for name, taken in times.items():
        rows[f"images a second over ours, {name}"] = measure.ratios(times["ours"], taken)
    if device.type == "cuda":
        rates = {name: [len(x) / t for t in taken] for name, taken in times.items()}
        rows |= {f"images a second, {name}": measure.spread(rate) for name, rate in rates.items()}
    return rows, versions


def accuracy(options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, Any]]:
    """Rows of the number of robust images, on a trained network."""
    options.norm, options.seed = "linf", 0
    model, x, y = CASES[options.case](options)
    model, x, y = model.to(device).eval(), x.to(device), y.to(device)
    setting = Setting(float(options.eps), float(options.eps) / 4, 10)
    runs = {"ours": ours_plain(model, setting), **theirs(model, setting)[0]}
    robust: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            x_adv = run(x, y).detach()
            with torch.no_grad():
                robust[name].append(int((model(x_adv).argmax(1) == y).sum()))
    rows = {f"robust of {len(x)} digits, {name}": measure.spread(counts) for name, counts in robust.items()}
    differences = [abs(median(counts) - median(robust["ours"])) for counts in robust.values()]
    return rows | {"largest difference from ours, of the medians": {"median": max(differences), "target": "a few"}}


def main() -> None:
    parser = measure.parser(__doc__, repeats=5)
    ours.add_sizes(parser)
    parser.add_argument("--case", choices=["digits_relu", "digits_pssilu", "digits_standard"], default="digits_pssilu")
    parser.add_argument("--eps", type=Fraction, help="for the digits; 1/5, and 1/20 with --quick, which trains less")
    options = parser.parse_args()
    device = ours.sizes(options)
    options.case = "digits_standard" if options.quick else options.case
    options.eps = options.eps or (Fraction(1, 20) if options.quick else Fraction(1, 5))
    torch.manual_seed(0)
    rows, versions = speed(options, device)
    rows |= {f"images a second over ours, {name}": {"median": text} for name, text in versions.items() if " " in text}
    measure.report(options, rows | accuracy(options, device), versions=versions)
    print(", ".join(f"{name}: {text}" for name, text in versions.items()))


if __name__ == "__main__":
    main()

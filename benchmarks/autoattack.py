"""Time of our AutoAttack relative to the reference package: same network and samples, interleaved runs.

    python benchmarks/autoattack.py                                     # a small network on digits; nothing to download
    python benchmarks/autoattack.py --case cifar_relu --data DIR --images 200 --eps 8/255
    python benchmarks/autoattack.py --case cifar_certified --data DIR --images 200 --eps 2/255 --certify crown
    python benchmarks/autoattack.py --case resnet18 --data DIR --images 8 --eps 1/510 --precisions fp32 bf16
    python benchmarks/autoattack.py --case resnet18 --data DIR --images 64 --eps 1/340 --device cuda

`resnet18` is the CIFAR-10 network that pyautoattack ships; DIR holds CIFAR-10 as `--data.root` does (or train.npz and
test.npz). Every repetition uses other samples. As in `standard`, each attack runs on the samples that are robust to the
earlier attacks of its engine. With `--certify`, a further run of ours attacks only samples without a certificate; its
time includes that of the certificates. Times on one thread are CPU seconds. On CUDA, the convolutions of both engines
use TF32, torch's default.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import get_args

import measure
import torch
from networks import CASES, clean_accuracy
from torch import Tensor, nn

from lightning_paf.attacks import AutoAttack
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.evaluation.certificates.certify import MethodName, certify
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import Precision, SearchModel

Engine = Callable[[nn.Module, Tensor, Tensor, argparse.Namespace], "Timing"]
"""Runs an evaluation."""
NORMS = {"linf": "Linf", "l2": "L2"}


@dataclass
class Timing:
    """One run of one engine: for every attack in order, seconds, images forward and backward, and robust samples."""

    seconds: dict[str, float] = field(default_factory=dict)
    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)
    robust: dict[str, int] = field(default_factory=dict)
    certified: int = 0

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Counted(nn.Module):
    """Counts the images of forward and backward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits.clone()  # the package writes into them

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def reference(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Timing:
    import pyautoattack

    counted, timing = Counted(model), Timing()
    adversary = pyautoattack.AutoAttack(counted, norm=NORMS[options.norm], eps=float(options.eps), seed=options.seed)
    shorten(adversary, options.budget)
    alive = (model(x).argmax(1) == y).nonzero().flatten()
    for label in list(adversary.attacks_to_run):
        adversary.attacks_to_run = [label]
        started, before = measure.clock(x.device), (counted.forwards, counted.backwards)
        if len(alive):
            x_adv, _ = adversary.run_standard_evaluation(x[alive], y[alive], batch_size=options.batch_size)
        timing.seconds[label] = measure.clock(x.device) - started
        timing.forward[label] = counted.forwards - before[0]
        timing.backward[label] = counted.backwards - before[1]
        alive = alive[model(x_adv).argmax(1) == y[alive]] if len(alive) else alive
        timing.robust[label] = len(alive)
    return timing


def shorten(adversary: object, budget: float) -> None:
    """The same fraction of every attack's iterations; 1 is `standard`."""
    if budget == 1:
        return
    for apgd in (adversary.apgd, adversary.apgd_targeted):
        n = apgd.n_iter = apgd.n_iter_orig = round(100 * budget)
        apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = (max(int(s * n), 1) for s in (0.22, 0.06, 0.03))
    adversary.fab.n_iter = round(100 * budget)
    adversary.square.n_queries = round(5000 * budget)


def ours(precision: Precision, method: MethodName | None = None) -> Engine:
    def run(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Timing:
        timing = Timing()
        started = measure.clock(x.device)
        alive, certified = (model(x).argmax(1) == y).nonzero().flatten(), 0
        if method is not None:
            found = certify(model, x[alive], y[alive], float(options.eps), options.norm, method).certified
            alive, certified = alive[~found], int(found.sum())
        search = SearchModel(model, precision)
        prepared = measure.clock(x.device) - started
        attack = AutoAttack(options.eps, norm=options.norm, batch_size=options.batch_size)
        for stage in map(copy.copy, attack.sub_attacks()):
            for name in ("steps", "queries"):
                if hasattr(stage, name):
                    setattr(stage, name, round(getattr(stage, name) * options.budget))
            started, before = measure.clock(x.device), copy.copy(search.passes)
            if len(alive):
                _, fooled = run_sub_attack(stage, search, x[alive], y[alive], options.seed)
                alive = alive[~fooled]
            timing.seconds[stage.label] = measure.clock(x.device) - started + prepared
            prepared = 0.0
            passed = search.passes
            timing.forward[stage.label] = passed.forward - before.forward + passed.exact - before.exact
            timing.backward[stage.label] = passed.backward - before.backward
            timing.robust[stage.label] = len(alive) + certified
        timing.certified = certified
        return timing

    return run


def repetitions(x: Tensor, y: Tensor, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    for repeat in range(options.repeats):
        part = slice(repeat * options.images, (repeat + 1) * options.images)
        yield x[part].to(options.device), y[part].to(options.device)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model, x, y = CASES[options.case](options)
    model = model.to(options.device)
    clean = clean_accuracy(model, x.to(options.device), y.to(options.device))
    print(f"{options.case}: clean accuracy {clean:.1%} of {len(x)}; eps {options.eps} {options.norm}")
    engines: dict[str, Engine] = {"reference": reference, **{f"ours {p}": ours(p) for p in options.precisions}}
    if options.certify:
        engines |= {f"ours {p}, {options.certify}": ours(p, options.certify) for p in options.precisions}
    runs: dict[str, list[Timing]] = {name: [] for name in engines}
    started = time.perf_counter()
    with frozen(model):
        for number, (images, labels) in enumerate(repetitions(x, y, options)):
            order = list(engines) if number % 2 == 0 else list(engines)[::-1]
            for name in order:
                timing = engines[name](model, images, labels, options)
                runs[name].append(timing)
                left = list(timing.robust.values())
                print(
                    f"  run {number + 1}: {name:10} {timing.total:8.1f} s, certified {timing.certified}, robust {left} "
                    f"of {len(labels)}",
                    flush=True,
                )
            if (time.perf_counter() - started) * (number + 2) / (number + 1) > options.seconds:
                break
    report(runs, options, clean)


def report(runs: dict[str, list[Timing]], options: argparse.Namespace, clean: float) -> None:
    base = runs.pop("reference")
    rows = {}
    for name, timings in runs.items():
        print(f"\n{name} over reference{'':12}  min  median   max   forward  backward (images, ours / reference)")
        for label in [*base[0].seconds, "all"]:
            pick = (lambda t: t.total) if label == "all" else (lambda t, label=label: t.seconds[label])
            ratios = [pick(a) / pick(b) for a, b in zip(timings, base, strict=True) if pick(b) > 0]
            forward, backward = (
                passes(timings, kind, label) / max(1, passes(base, kind, label)) for kind in ("forward", "backward")
            )
            spread = f"{min(ratios):6.2f} {median(ratios):6.2f} {max(ratios):6.2f}"
            print(f"{label:30} {spread} {forward:8.2f} {backward:8.2f}")
            rows[f"{name} {label}"] = {"min": min(ratios), "median": median(ratios), "max": max(ratios)}
    machine = measure.machine(torch.device(options.device)) | {"reference": metadata.version("pyautoattack")}
    print(f"\n{machine}; {options.images} samples, {len(base)} runs, {options.budget:g} of the standard budget")
    everything = {k: [asdict(t) for t in v] for k, v in {"reference": base, **runs}.items()}
    settings = {k: str(v) for k, v in vars(options).items() if not isinstance(v, Path)}
    content = {"machine": machine, "settings": settings, "clean": clean, "ratios": rows, "runs": everything}
    measure.write(options.json, content)


def passes(timings: list[Timing], kind: str, label: str) -> int:
    return sum(sum(getattr(t, kind).values()) if label == "all" else getattr(t, kind)[label] for t in timings)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="digits_relu")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", type=Fraction, default=Fraction(1, 5))
    parser.add_argument("--images", type=int, default=40, help="samples in a repetition")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=1.0, help="fraction of the standard iterations, for both")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--certify", choices=get_args(MethodName), help="also run ours with these certificates")
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no further repetition after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

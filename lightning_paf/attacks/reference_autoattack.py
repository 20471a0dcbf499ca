"""The published package of AutoAttack behind the same call as every other attack."""

import importlib.metadata
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.attacks.autoattack import AutoAttackResult, check_fit, check_listing, warn_of_masking
from lightning_paf.attacks.base import Attack
from lightning_paf.functional.geometry import geometry_of, with_finite_gradient
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import check_labels, misclassified, undefined
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

ReferenceVersion = Literal["standard", "rand", "custom"]
ReferenceSubAttack = Literal["apgd-ce", "apgd-t", "apgd-dlr", "fab", "fab-t", "square"]

_ATTACKS: Mapping[ReferenceVersion, tuple[ReferenceSubAttack, ...]] = MappingProxyType(
    {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
)
_PACKAGE_NORMS: Mapping[Norm, str] = MappingProxyType({"linf": "Linf", "l2": "L2", "l1": "L1"})

_ROUNDING = 1e-4  # share of the radius by which the package's images may exceed it

log = logging.getLogger(__name__)


class ReferenceAutoAttack(Attack):
    """The ensemble of Croce & Hein 2020, run by the published package: what `AutoAttack` is measured against.

    It also has what `AutoAttack` has not: the l1 norm, `rand`, and untargeted FAB.

    `standard` runs APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square, each on what the
    ones before left robust; `rand` (for randomised defences) averages gradients over 20 passes. The number of target
    classes is the package's (9; 5 for APGD in l1) or all other classes, if they are fewer. With fewer than 4 classes
    the targeted DLR loss is not defined: use `custom` there.

    It runs in eval mode, on images in [0, 1], in single precision also under autocast. The global random generators
    (torch, numpy, python) and the trace function, which the package overwrites, are left as found. Progress goes to the
    logger of this module at INFO. One of the packages `pyautoattack` or `autoattack` must be installed.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: How a perturbation is measured.
        version: `standard`, `rand`, or `custom` for the attacks in `attacks`.
        attacks: With `custom` only: any of apgd-ce, apgd-t, apgd-dlr, fab, fab-t, square, in the order to run; each has
            the settings that it has in `standard` (one restart).
        seed: Seed of every sub-attack.
        batch_size: Images attacked at once. Sub-attacks draw their noise per batch, so results depend on it slightly.

    Raises:
        ValueError: As for every attack; `attacks` missing, unknown, or given without `custom`. In the call: `loss` or
            `forward` given; images that are not float32; too few classes, or too small images, for an attack.
    """

    fixed_loss = True

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        version: ReferenceVersion = "standard",
        attacks: list[ReferenceSubAttack] | None = None,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(eps, norm=norm)
        if version not in get_args(ReferenceVersion):
            raise ValueError(
                f"version must be one of {', '.join(get_args(ReferenceVersion))}, but is {version!r}. Choose one."
            )
        check_listing(version, attacks)
        unknown = set(attacks or ()) - set(get_args(ReferenceSubAttack))
        if unknown:
            raise ValueError(f"Unknown attacks {sorted(unknown)}. Known: {', '.join(get_args(ReferenceSubAttack))}.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1. The default is 250.")
        self.version = version
        self.attacks: tuple[ReferenceSubAttack, ...] = tuple(attacks or _ATTACKS[version])
        self.seed = seed
        self.batch_size = batch_size

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        package = _package().name
        own = {
            "version": self.version,
            "attacks": list(self.attacks),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "package": f"{package} {importlib.metadata.version(package)}",
        }
        return {key: value for key, value in super().describe().items() if key != "loss"} | own

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """As the call, but returns the whole result.

        Args:
            model: Images in [0, 1] to logits (N, C).
            x: Images (N, C, H, W) float32 in [0, 1].
            y: Labels (N,) int64.
        """
        with self._ready(model):
            return self._evaluate(model, self._own(x, y), y.detach().clone())

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run all attacks in turn."""
        del loss
        return self._evaluate(forward, x, y).x_adv

    def _evaluate(self, forward: Forward, x: Tensor, y: Tensor) -> AutoAttackResult:
        if x.dtype != torch.float32:
            raise ValueError(
                f"ReferenceAutoAttack works on float32 images, but got {x.dtype}. Convert, or use precision 32-true."
            )
        x, y = x.contiguous(), hard_labels(y)  # the package flattens gradients with `view`: rows must be whole
        model = _FiniteModel(forward, self)
        with _isolated(x.device), torch.autocast(x.device.type, enabled=False):
            adversary, run = self._adversary(model, x, y)
            x_adv, robust = x.clone(), self._correct(forward, x, y)
            robust_after = {"clean": int(robust.sum())}
            for name in self.attacks:
                started, alive = time.perf_counter(), robust.nonzero().squeeze(1)
                if len(alive) == 0:
                    break
                adversary.attacks_to_run = [name]
                model.watch(x[alive])
                for found in (run(x[alive], y[alive]), model.found):
                    fooled = robust[alive] & ~self._correct(forward, found, y[alive])
                    x_adv[alive[fooled]], robust[alive[fooled]] = found[fooled], False
                robust_after[name] = int(robust.sum())
                seconds = time.perf_counter() - started
                log.info("%s: robust %d/%d (%.1f s)", name, robust_after[name], len(x), seconds)
        warn_of_masking(robust_after, len(x))
        return AutoAttackResult(x_adv, robust, MappingProxyType(robust_after))

    def _adversary(self, model: "_FiniteModel", x: Tensor, y: Tensor) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
        """The package's object with at most as many target classes as there are, and how to run it."""
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        check_labels(y, len(x), classes)
        check_fit(self, self.attacks, classes, x.shape[-2:])
        package = _package()
        adversary = package.make(
            model,
            norm=_PACKAGE_NORMS[self.norm],
            eps=float(self.eps),
            seed=self.seed,
            version="rand" if self.version == "rand" else "standard",
            device=x.device,
            **package.quiet,
        )
        for targeted in (adversary.apgd_targeted, adversary.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)

        def run(x: Tensor, y: Tensor) -> Tensor:
            found = adversary.run_standard_evaluation(x, y, **{package.batch_argument: self.batch_size})
            images: Tensor = found[0] if isinstance(found, tuple) else found
            return images

        return adversary, run

    def _correct(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is classified correctly, (N,) bool."""
        parts = [slice(start, start + self.batch_size) for start in range(0, len(x), self.batch_size)]
        with torch.no_grad():
            return torch.cat([~misclassified(forward(x[part]), y[part]) for part in parts])


class _FiniteModel:
    """The model as the package sees it: with finite logits and gradients, since it takes NaN for a correct prediction.

    Images with undefined logits are remembered instead, where they lie within the threat model of a watched image. The
    package writes into the logits, which the model may keep: it gets a copy.

    Attributes:
        found: For each watched image one with undefined logits, or the image itself.
    """

    def __init__(self, forward: Forward, attack: Attack) -> None:
        self.forward, self.attack = forward, attack
        self.watched = self.found = torch.empty(0)
        self.open = torch.empty(0, dtype=torch.bool)

    def watch(self, x: Tensor) -> None:
        """Begin with other images."""
        self.watched, self.found, self.open = x, x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.forward(with_finite_gradient(x))
        outside = undefined(logits)
        for image in x.detach()[outside] if len(self.watched) else ():
            self._remember(image)
        return logits.masked_fill(outside[:, None], 0.0)

    def _remember(self, image: Tensor) -> None:
        ball, radius = geometry_of(self.attack.norm), self.attack.radius
        rows = self.open.nonzero().squeeze(1)
        near = ball.size(image - self.watched[rows]) <= radius * (1 + _ROUNDING)
        rows = rows[near]
        clean = self.watched[rows]
        self.found[rows] = ball.move(clean, image - clean, radius, self.attack.bounds)
        self.open[rows] = False


@dataclass(frozen=True)
class _Package:
    """The two releases of AutoAttack differ in names only."""

    name: str
    make: Callable[..., Any]
    batch_argument: str
    quiet: Mapping[str, Any]


def _package() -> _Package:
    try:
        import pyautoattack

        return _Package("pyautoattack", pyautoattack.AutoAttack, "batch_size", {})
    except ModuleNotFoundError:
        pass
    try:
        import autoattack

        return _Package("autoattack", autoattack.AutoAttack, "bs", {"verbose": False})
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "AutoAttack needs the package pyautoattack, which is not installed. Run: pip install pyautoattack"
        ) from error


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Leave the global random generators and the trace function as found; the package seeds and clears them."""
    used = {device} if device.type == "cuda" else set()
    initialized: Callable[[], bool] = torch.cuda.is_initialized
    if initialized():
        used.add(torch.device("cuda", torch.cuda.current_device()))  # seeded even when the images are on the CPU
    trace, python_state, numpy_state = sys.gettrace(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(list(used)):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        sys.settrace(trace)

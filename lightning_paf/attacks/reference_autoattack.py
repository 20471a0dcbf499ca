"""The published package of AutoAttack with the interface of all attacks."""

import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.attacks.autoattack import AutoAttackResult, Ensemble, check_fit, check_listing, warn_of_masking
from lightning_paf.attacks.base import Attack
from lightning_paf.functional.geometry import geometry_of, with_finite_gradient
from lightning_paf.functional.predictions import check_labels, misclassified, undefined
from lightning_paf.nn.equivalence import generators_kept
from lightning_paf.types import Forward, Norm, Radius

ReferenceVersion = Literal["standard", "rand", "custom"]
ReferenceSubAttack = Literal["apgd-ce", "apgd-t", "apgd-dlr", "fab", "fab-t", "square"]

_ATTACKS: Mapping[ReferenceVersion, tuple[ReferenceSubAttack, ...]] = MappingProxyType(
    {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
)
_PACKAGE_NORMS: Mapping[Norm, str] = MappingProxyType({"linf": "Linf", "l2": "L2", "l1": "L1"})

_ROUNDING = 1e-4  # fraction of the radius by which images of the package may exceed it

log = logging.getLogger(__name__)


class ReferenceAutoAttack(Ensemble):
    """The ensemble of Croce & Hein 2020, run by the published package.

    In addition to `AutoAttack` it has the l1 norm, `rand`, and untargeted FAB.

    `standard` runs APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square; `rand` (for
    randomised defences) averages gradients over 20 passes. The number of target classes is that of the package (9; 5
    for APGD in l1), at most all other classes. With fewer than 4 classes the targeted DLR loss is not defined: use
    `custom`.

    It runs in eval mode, on images in [0, 1], in single precision also under autocast. The global random generators
    (torch, numpy, python) and the trace function are restored. Progress is logged by the logger of this module at
    INFO. One of the packages `pyautoattack` or `autoattack` must be installed.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: Norm of the perturbation.
        version: `standard`, `rand`, or `custom` for the attacks in `attacks`.
        attacks: With `custom` only: any of apgd-ce, apgd-t, apgd-dlr, fab, fab-t, square, in the order to run, with the
            settings of `standard` (one restart).
        seed: Seed of every sub-attack.
        batch_size: Images attacked at once. Sub-attacks draw their noise per batch, so results depend on it slightly.

    Raises:
        ValueError: As for every attack; `attacks` missing, unknown, or given without `custom`. In the call: `loss` or
            `forward` given; images that are not float32; too few classes, or too small images, for an attack.
    """

    settings = ("version", "seed", "batch_size")

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
        check_listing(version, get_args(ReferenceVersion), attacks, get_args(ReferenceSubAttack))
        self.attacks: tuple[ReferenceSubAttack, ...] = tuple(attacks or _ATTACKS[version])
        self.version, self.seed, self.batch_size = version, seed, batch_size
        self.require(batch_size=1)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        package = _package().name
        release = f"{package} {importlib.metadata.version(package)}"
        return super().describe() | {"attacks": list(self.attacks), "package": release}

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """Run all attacks in turn on the frozen model, images (N, C, H, W) and labels (N,)."""
        x = x.contiguous()  # the package flattens gradients with `view`
        finite = _FiniteModel(model, self)
        with _isolated(x.device), torch.autocast(x.device.type, enabled=False):
            adversary, run = self._adversary(finite, x, y)
            x_adv, robust = x.clone(), self._correct(model, x, y)
            robust_after = {"clean": int(robust.sum())}
            for name in self.attacks:
                started, alive = time.perf_counter(), robust.nonzero().squeeze(1)
                if len(alive) == 0:
                    break
                adversary.attacks_to_run = [name]
                finite.watch(x[alive])
                for found in (run(x[alive], y[alive]), finite.found):
                    fooled = robust[alive] & ~self._correct(model, found, y[alive])
                    x_adv[alive[fooled]], robust[alive[fooled]] = found[fooled], False
                robust_after[name] = int(robust.sum())
                seconds = time.perf_counter() - started
                log.info("%s: robust %d/%d (%.1f s)", name, robust_after[name], len(x), seconds)
        warn_of_masking(robust_after, len(x))
        return AutoAttackResult(x_adv, robust, MappingProxyType(robust_after))

    def _adversary(self, model: "_FiniteModel", x: Tensor, y: Tensor) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
        """The object of the package, with at most all other classes as targets, and a function that runs it."""
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
    """The model with finite logits and gradients, since the package counts NaN as a correct prediction.

    Images with undefined logits are stored where they lie within the threat model of a watched image. The package
    writes into the logits, which the model may keep, and therefore gets a copy.

    Attributes:
        found: For each watched image one with undefined logits, or the image itself.
    """

    def __init__(self, forward: Forward, attack: Attack) -> None:
        self.forward, self.attack = forward, attack
        self.watched = self.found = torch.empty(0)
        self.open = torch.empty(0, dtype=torch.bool)

    def watch(self, x: Tensor) -> None:
        """Replace the watched images."""
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
    """Names that differ between the two releases of AutoAttack."""

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
    """Restore the global random generators and the trace function, which the package overwrites."""
    initialized: Callable[[], bool] = torch.cuda.is_initialized
    # The package seeds the current device even if the images are on the CPU.
    current = [torch.device("cuda", torch.cuda.current_device())] if initialized() else []
    trace = sys.gettrace()
    try:
        with generators_kept(nn.Module(), device, *current):
            yield
    finally:
        sys.settrace(trace)

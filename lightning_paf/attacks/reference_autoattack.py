"""The published package of AutoAttack with the interface of all attacks."""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_paf.attacks.autoattack import AutoAttackResult, Ensemble, check_listing, check_size
from lightning_paf.attacks.base import Attack
from lightning_paf.functional.geometry import geometry_of, with_finite_gradient
from lightning_paf.functional.predictions import misclassified, undefined
from lightning_paf.nn.equivalence import generators_kept
from lightning_paf.types import Forward, Norm, Radius

ReferenceVersion = Literal["standard", "rand", "custom"]
ReferenceSubAttack = Literal["apgd-ce", "apgd-t", "apgd-dlr", "fab", "fab-t", "square"]

_ATTACKS: Mapping[ReferenceVersion, tuple[ReferenceSubAttack, ...]] = MappingProxyType(
    {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
)
_PACKAGE_NORMS: Mapping[Norm, str] = MappingProxyType({"linf": "Linf", "l2": "L2", "l1": "L1"})

_ROUNDING = 1e-4  # fraction of the radius by which images of the package exceed it, from rounding


class ReferenceAutoAttack(Ensemble):
    """The ensemble of Croce & Hein 2020, run by the published package.

    In addition to `AutoAttack` it has the l1 norm, `rand`, and untargeted FAB.

    `standard` runs APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square; `rand` (for
    randomised defences) averages gradients over 20 passes. The number of target classes is that of the package (9; 5
    for APGD in l1), at most all other classes. The DLR losses need 3 and 4 classes, see `AutoAttack`.

    It runs in eval mode, on images in [0, 1], in single precision even under autocast. The global random generators
    (torch, numpy, python) and the trace function are restored. Progress is logged at INFO. One of the packages
    `pyautoattack` or `autoattack` must be installed.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: Norm of the perturbation.
        version: `standard`, `rand`, or `custom` for the attacks in `attacks`.
        attacks: With `custom` only: any of apgd-ce, apgd-t, apgd-dlr, fab, fab-t, square, in the order to run, with the
            settings of `standard` (one restart).
        seed: Seed of every sub-attack.
        batch_size: Images attacked at once. Sub-attacks draw their noise per batch, so results depend on it slightly.

    Raises:
        ValueError: `attacks` is missing, unknown, or given without `custom`; see also `Attack`. In the call: `loss` or
            `forward` is given, images are not float32 or have too few pixels, or all attacks need more classes.
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
        return super().describe() | {"package": release}

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """Run all attacks in turn on the frozen model."""
        x = x.contiguous()  # the package flattens gradients with `view`
        finite = _FiniteModel(model, self)
        with _isolated(x.device), torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                classes = finite(x[:1]).shape[1]
            fitted = self.for_classes(classes)
            check_size(fitted, x.shape[-2:])
            adversary, run = self._adversary(finite, x.device, classes)

            def run_one(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                adversary.attacks_to_run = [name]
                finite.watch(x)
                x_adv, robust = x.clone(), torch.ones_like(y, dtype=torch.bool)
                for found in (run(x, y), finite.found):
                    fooled = robust & ~self._correct(model, found, y)
                    x_adv[fooled], robust[fooled] = found[fooled], False
                return x_adv, ~robust

            attacks = ((name, partial(run_one, name)) for name in fitted.attacks)
            return self.run_in_turn(x, y, self._correct(model, x, y), attacks)

    def _adversary(
        self, model: "_FiniteModel", device: torch.device, classes: int
    ) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
        """Set up the package's adversary; return it and a function that runs it."""
        package = _package()
        adversary = package.make(
            model,
            norm=_PACKAGE_NORMS[self.norm],
            eps=float(self.eps),
            seed=self.seed,
            version="rand" if self.version == "rand" else "standard",
            device=device,
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
    """Model with finite logits and gradients: the package counts NaN as correct.

    Images with undefined logits are stored if they lie within the threat model of a watched image. The package writes
    into the logits, so it gets a copy.

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
        not_finite = undefined(logits)
        for image in x.detach()[not_finite] if len(self.watched) else ():
            self._store(image)
        return logits.masked_fill(not_finite[:, None], 0.0)

    def _store(self, image: Tensor) -> None:
        ball, radius = geometry_of(self.attack.norm), self.attack.radius
        rows = self.open.nonzero().squeeze(1)
        near = ball.size(image - self.watched[rows]) <= radius * (1 + _ROUNDING)
        rows = rows[near]
        clean = self.watched[rows]
        self.found[rows] = ball.move(clean, image - clean, radius, self.attack.bounds)
        self.open[rows] = False


class _Package(NamedTuple):
    """Release of AutoAttack: package name, batch-size argument, and quiet options."""

    name: str
    batch_argument: str
    quiet: Mapping[str, Any]

    def make(self, *args: Any, **options: Any) -> Any:
        """Return the object of the package."""
        return importlib.import_module(self.name).AutoAttack(*args, **options, **self.quiet)


_PACKAGES = (_Package("pyautoattack", "batch_size", {}), _Package("autoattack", "bs", {"verbose": False}))


def _package() -> _Package:
    """The first release that is installed."""
    for package in _PACKAGES:
        with suppress(ModuleNotFoundError):
            importlib.import_module(package.name)
            return package
    raise ModuleNotFoundError("pyautoattack must be installed for ReferenceAutoAttack. Run: pip install pyautoattack")


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Restore the global random generators and the trace function on exit."""
    initialized: Callable[[], bool] = torch.cuda.is_initialized
    # The package seeds the current device even if the images are on the CPU.
    current = [torch.device("cuda", torch.cuda.current_device())] if initialized() else []
    trace = sys.gettrace()
    try:
        with generators_kept(nn.Module(), device, *current):
            yield
    finally:
        sys.settrace(trace)

"""Minimal-norm attacks of the package foolbox."""

import importlib.metadata
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.attacks.target import Target
from lightning_paf.functional.geometry import with_finite_gradient
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, Radius

_ORDERS: Mapping[Norm, float] = MappingProxyType({"linf": float("inf"), "l2": 2, "l1": 1})
_NO_START = "init_attack failed"  # foolbox's error where it has no adversarial starting point


class FoolboxAttack(MinimalAttack):
    """Minimal-norm attack from foolbox (Rauber et al. 2020), chosen by name.

    For example HopSkipJump, DDN, EAD, Brendel-Bethge or FMN.

    It runs in single precision, on images in [0, 1]. Results are confirmed with the model, and their distances
    recomputed. The state of the global NumPy and Python generators is restored. Requires foolbox:
    pip install 'lightning-paf[attacks]'.

    Args:
        name: Class in `foolbox.attacks`, such as `HopSkipJumpAttack`, `DDNAttack`, `L2BrendelBethgeAttack`.
        eps: Radius within which a result counts as adversarial.
        norm: Norm that the class minimises.
        options: Arguments of the class.
        mode: Mode of the attacked model: `eval`, or `train` with its buffers protected.
        target: See `Attack`.

    Raises:
        ModuleNotFoundError: foolbox is not installed.
        ValueError: `name` is no minimal-norm attack of foolbox, or `norm` is not its norm; see also `Attack`.
    """

    def __init__(
        self,
        name: str = "HopSkipJumpAttack",
        eps: Radius = Fraction(1, 2),
        *,
        norm: Norm = "l2",
        options: dict[str, Any] | None = None,
        mode: Mode = "eval",
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode, target=target)
        self.name = name
        self.options = dict(options or {})
        foolbox = _foolbox()
        cls = getattr(foolbox.attacks, name, None)
        if not (isinstance(cls, type) and issubclass(cls, foolbox.attacks.base.MinimizationAttack)):
            raise ValueError(f"name must be a minimal-norm attack of foolbox, got {name}. Pass one such as DDNAttack.")
        self._attack: Any = cls(**self.options)
        order = getattr(self._attack.distance, "p", None)
        if order != _ORDERS[norm]:
            usual = next((known for known, p in _ORDERS.items() if p == order), None)
            hint = f"Pass norm={usual}." if usual else "Pass another attack."
            raise ValueError(f"norm must be {usual or self._attack.distance} for {name}, got {norm}. {hint}")

    @property
    def label(self) -> str:
        """Name of the class without `Attack`."""
        return self.name.removesuffix("Attack").lower()

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        package = f"foolbox {importlib.metadata.version('foolbox')}"
        own = {"name": self.name, "options": {key: str(value) for key, value in self.options.items()}}
        return super().describe() | own | {"package": package}

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest adversarial images and their distances."""
        nearest, every = Nearest(x, self.norm), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            wrong = misclassified(forward(x), y)
        nearest.update(every, x, wrong)
        rows = every[~wrong]
        if len(rows):
            with _isolated(), torch.autocast(x.device.type, enabled=False):
                found = self._run(forward, x[rows], y[rows])
            with torch.no_grad():
                nearest.update(rows, found, misclassified(forward(found), y[rows]))
        return nearest.x, nearest.distances

    def _run(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """Run foolbox, image by image if some images of the batch have no start."""
        foolbox = _foolbox()
        model = foolbox.PyTorchModel(_Net(forward).eval(), bounds=(0, 1), device=x.device)
        try:
            found: Tensor = self._attack.run(model, x, _criterion(y))
        except ValueError as error:
            if _NO_START not in str(error):
                raise
            if len(x) == 1:
                return x
            pairs = zip(torch.split(x, 1), torch.split(y, 1), strict=True)
            return torch.cat([self._run(forward, *pair) for pair in pairs])
        return torch.where(found.isfinite(), found, x).detach().clamp(0, 1)


class _Net(nn.Module):
    """Wrapper without submodules, since foolbox changes a module's mode and device."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.inner = [forward]  # in a list, so that it does not become a submodule

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner[0](with_finite_gradient(x))
        return logits


def _criterion(y: Tensor) -> Any:
    """The criterion of foolbox, with undefined logits counted as misclassified."""

    class Misclassification(_foolbox().criteria.Misclassification):  # type: ignore[misc]
        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            wrong = misclassified(getattr(outputs, "raw", outputs), y)
            return type(outputs)(wrong) if hasattr(outputs, "raw") else wrong

    return Misclassification(y)


def _foolbox() -> Any:
    try:
        import foolbox
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} must be installed for FoolboxAttack. Run: pip install 'lightning-paf[attacks]'"
        ) from error
    return foolbox


@contextmanager
def _isolated() -> Iterator[None]:
    """Seed the NumPy and Python generators from torch; restore them on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)

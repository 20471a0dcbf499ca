"""Published robust networks by name: the entries of RobustBench that fit our nets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

from lightning_paf.utils.files import parse_json

TABLE = Path(__file__).with_name("zoo.json")


@dataclass(frozen=True)
class ZooEntry:
    """One published network, with the facts of RobustBench's `model_info` files.

    Attributes:
        name: `DATASET/NORM/NAME` with the name of RobustBench.
        eps: Radius of the threat model, such as `8/255`.
        architecture: Name of the architecture on the leaderboard.
        clean: Published clean accuracy in percent.
        autoattack: Published robust accuracy under AutoAttack in percent.
        net: `class_path` and `init_args` of the network in this package.
        url: Address of the weights.
        paper: Address of the paper.
        activation: Class of the activation; None for the network's own.
        mean: Per-channel mean of images in [0, 1] before the network; empty for none.
        std: Per-channel standard deviation.
        entry: Name of the state dict in the file, where it has several.
        sha256: SHA-256 of the file; None if it was not published.
    """

    name: str
    eps: str
    architecture: str
    clean: float
    autoattack: float
    net: Mapping[str, Any]
    url: str
    paper: str
    activation: str | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    entry: str | None = None
    sha256: str | None = None

    @property
    def dataset(self) -> str:
        """Dataset of the training, such as `cifar10`."""
        return self.name.split("/")[0]

    @property
    def norm(self) -> str:
        """Norm of the threat model, such as `linf`."""
        return self.name.split("/")[1]

    @property
    def options(self) -> list[str]:
        """Options of `import-weights` and `fit` for the network and the threat model."""
        words = [f"--model.net.{name}={str(value).lower()}" for name, value in self.net["init_args"].items()]
        return [*words, "--autoattack.attack.norm", self.norm, "--autoattack.attack.eps", self.eps]


@cache
def zoo() -> tuple[ZooEntry, ...]:
    """All entries, by dataset and norm, the most robust ones first."""
    return tuple(ZooEntry(**row) for row in parse_json(TABLE.read_bytes()))


def zoo_entries(pattern: str = "") -> list[ZooEntry]:
    """Return the entries whose name or architecture matches, in any case.

    Args:
        pattern: A part of it, or a shell pattern.

    Raises:
        ValueError: There is none; the error lists near names.
    """
    wanted = pattern.lower()
    texts = [f"{entry.name} {entry.architecture}".lower() for entry in zoo()]
    matches = [wanted in text or any(fnmatch(part, wanted) for part in text.split()) for text in texts]
    found = list(compress(zoo(), matches))
    if not found:
        raise ValueError(f"The zoo has no network called {pattern}. {_near(pattern)}")
    return found


def zoo_entry(name: str) -> ZooEntry:
    """Return the entry of a name, with or without `DATASET/NORM/`, in any case.

    Raises:
        ValueError: There is none, or there are several of this name; the error lists the near ones.
    """
    found = [entry for entry in zoo() if f"/{entry.name}".lower().endswith(f"/{name.lower()}")]
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise ValueError(f"The name of a network must be that of one in the zoo, got {name}. Pass one of {names}.")
    if not found:
        raise ValueError(f"There is neither a file {name} nor a network of this name in the zoo. {_near(name)}")
    return found[0]


def _near(name: str) -> str:
    by_name = {
        key: entry.name for entry in zoo() for key in (entry.name.lower(), entry.name.rpartition("/")[2].lower())
    }
    close = [key for key in by_name if name.lower() in key] + get_close_matches(name.lower(), by_name, n=4, cutoff=0.5)
    near = list(dict.fromkeys(by_name[key] for key in close))[:4]
    return f"Near: {', '.join(near)}." if near else "Run `lightning-paf zoo` for all names."

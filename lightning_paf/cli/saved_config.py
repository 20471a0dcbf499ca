"""Checks of a configuration found next to a checkpoint, before its use."""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from lightning_paf.attacks import Attack
from lightning_paf.cli.class_names import subclasses
from lightning_paf.data import Augment, Mixing
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.runs.trust import TRUST
from lightning_paf.schedules import Schedule
from lightning_paf.speed.options import Speed
from lightning_paf.synthesis.samplers import Sampler
from lightning_paf.utils.terminal import clause, printable

_CLASSES: Mapping[str, tuple[type, ...]] = {
    "lightning_paf": (nn.Module, Attack, Schedule, Augment, Mixing, StopRule, Speed, Sampler, Optimizer),
    "lightning_paf.callbacks": (Callback,),
    "lightning.pytorch.callbacks": (Callback,),
    "lightning.pytorch.loggers": (CSVLogger, TensorBoardLogger, MLFlowLogger, WandbLogger),
    "lightning.pytorch.strategies": (DDPStrategy,),
    "torch.optim": (Optimizer,),
    "torchvision.datasets": (Dataset,),
}
"""Allowed classes: packages of their definitions, and possible bases."""
_FUNCTIONS = ("lightning_paf.functional", "lightning_paf.nets.factory")
"""Modules of functions without side effects, such as losses of attacks."""
_NETWORKS = {"timm": "timm", "torchvision": "torchvision.models"}
"""Libraries of networks, imported on demand, and modules that list their builders."""

_NAMEABLE = (
    *(base for bases in _CLASSES.values() for base in bases),
    *(Accelerator, CheckpointIO, ClusterEnvironment, LayerSync, Logger, LRScheduler, Precision, Profiler, Strategy),
)
"""Bases of the classes that the parser finds by their names without a path."""
_LOADING = re.compile(r"pretrained_cfg\w*|checkpoint_path|settings")
"""Arguments with which timm reads any file, and W&B starts any program."""
_REMOTE = re.compile(r"(hf[-_]hub|local-dir):|(?!(sqlite|file):///).*(://|::)", re.IGNORECASE)
"""Values that make a library load from or report to a configured address."""
_LOADERS = {yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}
_MOST_BYTES, _MOST_LEVELS, _MOST_STRINGS = 1_000_000, 50, 3
"""Limits of a configuration: bytes, levels, and levels of YAML in strings.

Those of this package have about 10,000 bytes, 15 levels, and strings like `{step}`.
"""


def config_words(config: Path, options: Sequence[str]) -> list[str]:
    """Return parser options for a configuration found next to a checkpoint.

    The options contain the checked values instead of the file, so that the parser reads nothing else.

    Args:
        config: The file.
        options: Words of the command line; with `--trust-config` among them, nothing is checked.

    Raises:
        ValueError: The file is not plain YAML, or a value is neither plain nor an allowed class. The check imports no
            module outside this package, timm and torchvision.
    """
    if TRUST in options:
        return ["--config", str(config)]
    if config.stat().st_size > _MOST_BYTES:
        raise _refusal(str(config), f"have at most {_MOST_BYTES} bytes", config.stat().st_size)
    try:
        values = _read(str(config), config.read_text(), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise _refusal(str(config), "be text", error) from error
    if not isinstance(values, dict):
        raise _refusal(str(config), "be a mapping", values)
    known = _known_classes()
    for key, value in _leaves(values, ""):
        _check(key, value, known)
    return ["--config", yaml.safe_dump(values, sort_keys=False)]


def _read(name: str, text: str, loader: Any) -> Any:
    """Parse YAML without anchors, merges and deep nesting.

    These can expand to far more values than the text has.
    """
    level = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if level > _MOST_LEVELS or getattr(event, "anchor", None) or getattr(event, "value", None) == "<<":
                break
        else:
            return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # an invalid number or date
        raise _refusal(name, "be plain YAML without tags", error) from error
    raise _refusal(name, f"have no anchors, no merges and at most {_MOST_LEVELS} levels", event)


def _leaves(value: Any, key: str, strings: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and scalar values.

    This includes values of collections in strings, which the parser would read.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name), strings)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key, strings)
    else:
        yield key, value
        for inner in _collections(value, key) if isinstance(value, str) else ():
            if strings == _MOST_STRINGS:
                raise _refusal(_option(key), f"have at most {_MOST_STRINGS} levels of YAML in strings", "more")
            yield from _leaves(inner, key, strings + 1)


def _collections(text: str, key: str) -> Iterator[Any]:
    """Yield the collections in a string of YAML, for both loaders of the parser."""
    for loader in _LOADERS:
        level = most = 0
        try:
            for event in yaml.parse(text, Loader=loader):
                level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                most = max(most, level)
                if level > _MOST_LEVELS:
                    break
        except yaml.YAMLError:  # text for the parser, too, such as `{epoch}-{step}`
            continue
        if most:
            yield _read(_option(key), text, loader)


def _check(key: str, value: Any, known: Mapping[str, Collection[type]]) -> None:
    """Check that a value cannot make the parser or a class run foreign code."""
    option, parts = _option(key), key.split(".")
    if value is not None and not isinstance(value, str | int | float):
        raise _refusal(option, "be a number, a string, true, false or null", value)
    if value is not None and any(_LOADING.fullmatch(part) for part in parts):
        raise _refusal(option, "be null", value)
    if parts[-1] == "weights_only" and value not in (None, True):
        raise _refusal(option, "be true or null", value)
    if "dict_kwargs" in parts and parts[0] != "model":
        raise _refusal(option, "be left out", value)
    if not isinstance(value, str):
        return
    is_class = parts[-1] == "class_path" or value in known or _is_import(value)
    if is_class and not _is_allowed(value, known):
        raise _refusal(option, "be a class of lightning_paf, timm or torchvision", value)
    if _REMOTE.match(re.sub(r"[\x00-\x20]", "", value)):  # timm removes such characters
        raise _refusal(option, "not be a URL", value)
    if not is_class and _is_text_file(value):
        raise _refusal(option, "not be a text file, which could be a configuration", value)


def _refusal(name: str, must: str, got: Any) -> ValueError:
    name, got = (printable(clause(text)[:200]) for text in (name, got))
    return ValueError(
        f"{name} must {must} in a configuration found next to a checkpoint, got {got}. "
        f"Pass {TRUST} to accept it, or -c FILE."
    )


def _option(key: str) -> str:
    """Return the command-line option of a key."""
    return re.sub(r"\.(class_path|init_args|dict_kwargs)(?=\.|$)", "", key)


def _known_classes() -> dict[str, list[type]]:
    """Map names without a path to the classes that the parser finds by them."""
    names = dict[str, list[type]]()
    for cls in subclasses(*_NAMEABLE):
        names.setdefault(cls.__name__, []).append(cls)
    return names


def _is_import(text: str) -> bool:
    """Return whether the parser could import a name, without importing its module."""
    root, *others = text.split(".")
    if not others or not all(part.isidentifier() for part in (root, *others)):
        return False
    return root in sys.modules or importlib.util.find_spec(root) is not None


def _is_allowed(path: str, known: Mapping[str, Collection[type]]) -> bool:
    """Return whether a name or path is that of a plug-in class or a network builder."""
    if "." not in path:
        return any(_is_plug_in(cls) for cls in known.get(path, ()))
    found = _found(path)
    if inspect.isclass(found):
        return _is_plug_in(found)
    return inspect.isfunction(found) and (_is_builder(found) or _is_below(found.__module__, *_FUNCTIONS))


def _found(path: str) -> Any:
    """Find the object of a path in allowed packages; None if there is none."""
    module, _, name = path.rpartition(".")
    root = path.partition(".")[0]
    if root in _NETWORKS:
        importlib.import_module(_NETWORKS[root])
    if root == "lightning_paf":
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    return getattr(sys.modules.get(module), name, None) if root in {*_NETWORKS, *map(_root, _CLASSES)} else None


def _is_plug_in(cls: type) -> bool:
    return any(_is_below(cls.__module__, package) and issubclass(cls, bases) for package, bases in _CLASSES.items())


def _is_builder(function: Any) -> bool:
    """Return whether a function builds a network of timm or torchvision."""
    root = _root(function.__module__)
    if root not in _NETWORKS:
        return False
    listed = importlib.import_module(_NETWORKS[root]).list_models()
    return function.__name__ in {*listed, "create_model", "get_model"}


def _is_below(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _root(path: str) -> str:
    return path.partition(".")[0]


def _is_text_file(text: str) -> bool:
    """Return whether the parser could read a file as a configuration."""
    try:
        path = Path(text).expanduser()
        if not path.exists() or path.is_dir():
            return False
        if not path.is_file():
            return True
        with path.open("rb") as stream:
            return b"\0" not in stream.read(1024)  # YAML contains no zero byte; images, weights and arrays do
    except (OSError, ValueError, RuntimeError):
        return False

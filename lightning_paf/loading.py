"""Loading of a trained run, for the commands that do not train."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.runs.trust import TRUST, TRUST_HELP

if TYPE_CHECKING:  # imported in functions, for a fast `--help`
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_paf.data import RobustDataModule
    from lightning_paf.evaluation import Samples
    from lightning_paf.nn.classifier import Classifier


@dataclass(frozen=True)
class Run:
    """A run of `fit` or `import-weights`, loaded from one of its checkpoints.

    Attributes:
        module: The training module with the weights of the checkpoint, in eval mode, on `device`.
        datamodule: The configured data; `samples` loads the images.
        checkpoint: File of the weights.
        config: The merged configuration, as plain values.
        device: Device of the model.
    """

    module: Any  # a `Task` of the requested kind
    datamodule: "RobustDataModule"
    checkpoint: Path
    config: dict[str, Any]
    device: "torch.device"

    @property
    def model(self) -> "Classifier":
        """Model from images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        model: Classifier = self.module.model
        return model

    def samples(self, examples: int | None = None) -> "Samples":
        """Return the first `examples` test images in their order; None returns all.

        Raises:
            ValueError: The data is missing; see `RobustDataModule`.
        """
        import numpy as np

        from lightning_paf.evaluation import Samples
        from lightning_paf.types import images_and_labels

        self.datamodule.prepare_data("test")
        self.datamodule.setup("test")
        loader = self.datamodule.test_dataloader()
        dataset = loader.dataset

        def fetch(ids: "NDArray[np.int64]") -> "tuple[Tensor, Tensor]":
            raw = dataset.__getitems__(ids.tolist())  # type: ignore[attr-defined]
            moved = type(raw)(*(part if part is None else part.to(self.device) for part in raw))
            return images_and_labels(self.datamodule.on_after_batch_transfer(moved, 0))

        size = len(dataset)  # type: ignore[arg-type]
        return Samples(np.arange(min(size, examples or size)), fetch)


def add_run_arguments(parser: argparse.ArgumentParser, nargs: int | str | None = None) -> None:
    """Add the options of a run; `--data.*` and other options of `fit` can follow them.

    `nargs` is that of `--ckpt`, which is optional for "*".
    """
    optional = nargs == "*"
    parser.add_argument(
        *("--ckpt", "--ckpt_path"),
        type=Path,
        nargs=nargs,
        required=not optional,
        default=[] if optional else None,
        help="e.g. RUN/checkpoints/last.ckpt",
    )
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the configuration and the device of a run."""
    parser.add_argument("--config", "-c", type=Path, help="default: config.yaml of the checkpoint's run")
    add_device_argument(parser)
    describe_fit_options(parser)


def add_device_argument(parser: argparse._ActionsContainer, default: str = "cuda if available, else cpu") -> None:
    """Add the option for the device of a run."""
    parser.add_argument("--device", type=_device, help=f"cpu, cuda, cuda:1, ...; default: {default}")


def _device(name: str) -> str:
    """Check that a device exists."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"must be cpu or an available device such as cuda, got {name}") from None
    return name


def describe_fit_options(parser: argparse.ArgumentParser) -> None:
    """Describe the remaining options of `load_run` in the help of a command."""
    parser.add_argument_group("options of fit", f"--data.root DIR and others. {TRUST}: {TRUST_HELP}")


def load_run(
    checkpoint: Path | str,
    config: Path | str | None = None,
    device: str | None = None,
    options: Sequence[str] = (),
    kind: str = "classifier",
) -> Run:
    """Build the objects of a configuration and load a checkpoint.

    Args:
        checkpoint: File that `fit` or `import-weights` wrote.
        config: Its configuration; by default `config.yaml` of the checkpoint's run.
        device: Device of the model; by default a GPU if available.
        options: Further options of `fit`, such as `--data.root DIR`, which override the configuration. Without
            `config`, `--trust-config` among them accepts a configuration that names any class.
        kind: Required `kind` of the training task.

    Raises:
        ValueError: A file is missing, damaged, or does not match the configuration; the run is of another kind; or the
            configuration names a class that is not trusted.
    """
    import torch

    from lightning_paf.cli.evaluated_checkpoint import check_trained
    from lightning_paf.cli.saved_config import config_words
    from lightning_paf.cli.training import train
    from lightning_paf.runs.checkpoints import check_checkpoint
    from lightning_paf.runs.config_file import run_of

    checkpoint = Path(checkpoint)
    check_checkpoint(str(checkpoint))
    check_trained(checkpoint)
    typed = ["--config", str(config)] if config else None
    config = Path(config) if config else run_of(checkpoint) / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"The configuration of a checkpoint must exist, got no file {config}. Pass --config RUN/config.yaml."
        )
    quiet = ["--model.init", "null", "--run", "null", "--trainer.logger", "false", "--trainer.precision", "32-true"]
    cli = train([*(typed or config_words(config, options)), *quiet, *options], run=False)
    _check_kind(checkpoint, cli.model, kind)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    try:
        cli.model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} does not match {config}. Pass the config.yaml of its run as --config. {error}"
        ) from error
    cli.model.on_load_checkpoint(content)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Run(cli.model.eval().to(chosen), cli.datamodule, checkpoint, cli.config.as_dict(), chosen)


def _check_kind(checkpoint: Path, module: Any, kind: str) -> None:
    """Check the kind of model that a task trains."""
    if module.kind != kind:
        raise ValueError(
            f"{checkpoint} must hold a model of the kind {kind}, got {type(module).__name__} of the kind "
            f"{module.kind}. Pass the checkpoint of another run."
        )

"""A trained run as objects, for the commands that are not trainings."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.runs.trust import TRUST, TRUST_HELP

if TYPE_CHECKING:  # the `--help` of a command that loads a run is to be fast
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_paf.data import RobustDataModule
    from lightning_paf.evaluation import Samples
    from lightning_paf.nn.classifier import Classifier
    from lightning_paf.tasks.classification import RobustModule


@dataclass(frozen=True)
class Run:
    """A run that `fit` or `import-weights` wrote, loaded from one of its checkpoints.

    Attributes:
        module: With the weights of the checkpoint, in eval mode, on `device`.
        datamodule: As configured; the images are read by `samples`.
        checkpoint: The file.
        config: The merged configuration, as plain values.
        device: Where the model is.
    """

    module: "RobustModule"
    datamodule: "RobustDataModule"
    checkpoint: Path
    config: dict[str, Any]
    device: "torch.device"

    @property
    def model(self) -> "Classifier":
        """Images in [0, 1] to logits."""
        return self.module.model

    def samples(self, examples: int | None = None) -> "Samples":
        """The first so many test images, or all, in their order.

        Raises:
            ValueError: The data is missing; see `RobustDataModule`.
        """
        import numpy as np

        from lightning_paf.evaluation import Samples

        self.datamodule.prepare_data("test")
        self.datamodule.setup("test")
        loader = self.datamodule.test_dataloader()
        dataset = loader.dataset

        def fetch(ids: "NDArray[np.int64]") -> "tuple[Tensor, Tensor]":
            raw = dataset.__getitems__(ids.tolist())  # type: ignore[attr-defined]
            moved = type(raw)(*(part if part is None else part.to(self.device) for part in raw))
            return self.datamodule.on_after_batch_transfer(moved, 0)

        size = len(dataset)  # type: ignore[arg-type]
        return Samples(np.arange(min(size, examples or size)), fetch)


def add_run_arguments(parser: argparse.ArgumentParser, nargs: int | str | None = None) -> None:
    """The options that name a run; `--data.*` and other options of `fit` may follow them."""
    help_ = "e.g. RUN/checkpoints/last.ckpt"
    parser.add_argument("--ckpt", "--ckpt_path", type=Path, nargs=nargs, required=True, help=help_)
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """How the model of a run is built, and where it works."""
    parser.add_argument("--config", "-c", type=Path, help="default: config.yaml of the checkpoint's run")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one")
    describe_fit_options(parser)


def describe_fit_options(parser: argparse.ArgumentParser) -> None:
    """Name the options that are left for `load_run`, `--trust-config` among them, in the help of a command."""
    parser.add_argument_group("options of fit", f"--data.root DIR and others. {TRUST}: {TRUST_HELP}")


def load_run(
    checkpoint: Path, config: Path | None = None, device: str | None = None, options: Sequence[str] = ()
) -> Run:
    """Build what a configuration describes, and load a checkpoint into it.

    Args:
        checkpoint: File that `fit` or `import-weights` wrote.
        config: Its configuration; by default `config.yaml` of the run that the checkpoint lies in.
        device: Where to put the model; by default on a GPU, where there is one.
        options: Further options of `fit`, such as `--data.root DIR`; they win over the configuration. Without
            `config`, `--trust-config` among them accepts a configuration that names any class.

    Raises:
        ValueError: A file is missing, damaged, or does not fit the configuration, or the configuration names a class
            that is not trusted.
    """
    import torch

    from lightning_paf.cli.evaluated_checkpoint import check_trained, run_of
    from lightning_paf.cli.saved_config import config_words
    from lightning_paf.cli.training import train
    from lightning_paf.runs.checkpoints import check_checkpoint

    check_checkpoint(str(checkpoint))
    check_trained(checkpoint)
    typed = ["--config", str(config)] if config else None
    config = config or run_of(checkpoint) / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"A checkpoint is read with its configuration, but there is no {config}. Pass --config RUN/config.yaml."
        )
    quiet = ["--model.init", "null", "--run", "null", "--trainer.logger", "false", "--trainer.precision", "32-true"]
    cli = train([*(typed or config_words(config, options)), *quiet, *options], run=False)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    try:
        cli.model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit {config}. Pass the --config of its own run. {error}") from error
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Run(cli.model.eval().to(place), cli.datamodule, checkpoint, cli.config.as_dict(), place)

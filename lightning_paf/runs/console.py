"""Console output of the training commands, and filters for Lightning's messages."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]


class _Progress(logging.Handler):
    """Handler that prints to the current standard error, on rank zero only.

    A progress bar can replace standard error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(self.format(record), file=sys.stderr)  # noqa: T201


def _is_not_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


def set_up() -> None:
    """Print the log of this package, and hide messages that are not about the run."""
    package = logging.getLogger("lightning_paf")
    if not any(isinstance(handler, _Progress) for handler in package.handlers):
        package.addHandler(_Progress())
    package.setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_advertisement)
    for message in (
        r".*LeafSpec.* is deprecated",  # Lightning 2.6 with torch >= 2.13
        r"(?s).*skip_none parameter was deprecated",  # Lightning 2.6 with jsonargparse >= 4.50
        r".*callbacks used to create the checkpoint need to be provided",  # only `fit` has those of the training
        r".*does not have many workers",  # small data is loaded in the main process on purpose
        r"Experiment logs directory .* exists and is not empty",  # a resumed run appends to its own metrics
    ):
        warnings.filterwarnings("ignore", message)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's messages (not warnings) about a trainer that will not run."""
    before = {logger: logger.level for logger in map(logging.getLogger, ("lightning.fabric", "lightning.pytorch"))}
    for logger in before:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)

"""Base class of the tasks whose test gives scores, such as PSNR or Dice."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_paf.evaluation.identity import content_fingerprint, network_fingerprint
from lightning_paf.evaluation.scores import Limits, Row, ScoreState, summary, text
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.runs.weights_origin import weights_origin
from lightning_paf.tasks.base import Task
from lightning_paf.utils.distributed import barrier_without_timeout, gathered
from lightning_paf.utils.figures import save_figure
from lightning_paf.utils.files import write_whole
from lightning_paf.utils.hashing import code_fingerprint, tensors_fingerprint, weights_fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ScoredTask(Task):
    """Task whose `test` scores samples one by one, and keeps each in a state on disk.

    A killed test continues at the sample that it had not finished. The state of other weights or settings is separate;
    `test --fresh` removes the records. `test` writes `STEM.json`, which `lightning-paf compare` reads, and `STEM.png`
    to the run folder. The values do not depend on batches and devices.
    """

    stem: ClassVar[str]
    """Name of the files of a test, without suffix."""
    limits: ClassVar[Limits] = {}
    """Smallest and largest value of scores, for their intervals."""
    fresh = False
    """Whether a test removes the records of its state first."""

    @abstractmethod
    def test_settings(self) -> dict[str, Any]:
        """Return everything that the values of a test depend on, except weights and data."""

    @abstractmethod
    def evaluations(self, batch: Any) -> Iterator[tuple[int, Sequence[Tensor], Callable[[], Row]]]:
        """Yield number, tensors and evaluation of each sample of a batch."""

    def table(self, rows: Mapping[int, Row]) -> dict[str, Row]:
        """Return the scores by name, from the values of all samples by number."""
        names = self.test_dataset().names
        return {names[number]: row for number, row in sorted(rows.items())}

    @abstractmethod
    def draw_test(self) -> "Figure":
        """Draw an example."""

    def text_of(self, scores: Mapping[str, Any]) -> str:
        """Format the scores of one condition in a `summary`, for the log."""
        return text(scores)

    def test_dataset(self) -> Any:
        """The dataset of the test."""
        return self.trainer.datamodule.test_dataloader().dataset  # type: ignore[attr-defined]

    def test_batch(self, number: int) -> Any:
        """One sample as a batch, converted and moved like those of the loader."""
        return self.trainer.strategy.batch_to_device(self.test_dataset()[number])

    def on_test_start(self) -> None:
        """Open the state."""
        super().on_test_start()
        self._folder: Path = run_folder_of(self.trainer)  # on all ranks
        self._rows: dict[int, tuple[str, Row]] = {}
        identity = {
            "weights": weights_fingerprint(self.model),
            "network": network_fingerprint(self.model),
            "settings": self.test_settings(),
            "precision": str(self.trainer.precision),
            "code": code_fingerprint(),
        }
        self._state = ScoreState(self._folder / "state", {"kind": self.kind, **identity})
        if self.fresh and self.trainer.is_global_zero:
            self._state.clear()
        self.trainer.strategy.barrier()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the samples that have no record."""
        for number, tensors, evaluate in self.evaluations(batch):
            sample = tensors_fingerprint(tensors)
            row = self._state.read(number, sample)
            self._rows[number] = sample, self._state.write(number, sample, evaluate()) if row is None else row

    def on_test_epoch_end(self) -> None:
        """Log the means, and write the result of all processes."""
        with barrier_without_timeout() as wait:
            wait()
            found = {number: row for part in gathered(self._rows) for number, row in part.items()}
            table = self.table({number: row for number, (_, row) in found.items()})
            results = summary([*table.values()], self.limits)
            for condition, scores in results.items():
                for score, mean in scores.items():
                    self.log(f"test/{score}_{condition}", mean["value"], sync_dist=True)
            content = {
                "kind": self.kind,
                "weights": weights_origin(self.trainer, self).content(),
                "data": content_fingerprint({str(number): sample for number, (sample, _) in found.items()}),
                "settings": self.test_settings(),
                "samples": [*table],
                "results": results,
            }
            if self.trainer.is_global_zero:
                self._folder.mkdir(parents=True, exist_ok=True)
                data = f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()
                write_whole(self._folder / f"{self.stem}.json", data)
                save_figure(self.draw_test(), self._folder / f"{self.stem}.png")
        for condition, scores in results.items():
            rank_zero_info(f"{condition}: {self.text_of(scores)}")
        rank_zero_info(f"Result: {self._folder / f'{self.stem}.json'}, {self.stem}.png")

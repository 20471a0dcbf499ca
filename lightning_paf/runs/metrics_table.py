"""The table `metrics.csv` of a run."""

import csv
from pathlib import Path


def read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows, without an incomplete last line.

    Raises:
        OSError: The file cannot be read.
        ValueError: A row has no number of a step.
    """
    try:
        with table.open(newline="") as stream:
            reader = csv.DictReader(line for line in stream if line.endswith("\n"))
            rows = list(reader)
        for row in rows:
            int(row["step"])
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{table} must be a table with a step in every row, got {error!r}. Restore it, or move it away."
        ) from error
    return list(reader.fieldnames or []), rows

"""A result as one HTML page: `report.write(result, path)`."""

from lightning_paf.evaluation.report.report import Supplement, write

__all__ = ["Supplement", "write"]

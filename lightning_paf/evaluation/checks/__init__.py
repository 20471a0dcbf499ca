"""Sanity checks of a robustness evaluation: masked gradients and mistakes."""

from lightning_paf.evaluation.checks.context import CheckResult, Context, smallest_visible_gain
from lightning_paf.evaluation.checks.run import CHECKS, run_checks

__all__ = ["CHECKS", "CheckResult", "Context", "run_checks", "smallest_visible_gain"]

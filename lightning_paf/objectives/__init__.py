"""Training losses; one method, one file."""

from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.standard import AdversarialCE, Natural
from lightning_paf.objectives.trades import TRADES

__all__ = ["TRADES", "AdversarialCE", "Natural", "Objective", "StepResult"]

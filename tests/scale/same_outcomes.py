"""`same_outcomes.py FILE OTHER`: check that two results of a test have the same outcome for every sample."""

import sys
from pathlib import Path

from lightning_paf.evaluation import EvaluationResult

if __name__ == "__main__":
    result, other = (EvaluationResult.load(Path(name)) for name in sys.argv[1:])
    print(f"robust {result.robust}, {result.evaluated} samples")
    sys.exit(result.outcomes.tolist() != other.outcomes.tolist())

"""`same_verdict.py FILE OTHER`: whether two results of a test say the same of every sample."""

import sys
from pathlib import Path

from lightning_paf.evaluation import EvaluationResult

if __name__ == "__main__":
    result, other = (EvaluationResult.load(Path(name)) for name in sys.argv[1:])
    print(f"robust {result.robust}, {result.evaluated} samples")
    sys.exit(result.outcomes.tolist() != other.outcomes.tolist())

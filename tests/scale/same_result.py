"""`same_result.py RUN OTHER`: check that two trainings ended with the same last checkpoint, bit by bit."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.resume_helpers import differences, last

if __name__ == "__main__":
    run, other = (last(Path(name)) for name in sys.argv[1:])
    found = differences(run, other)
    print(f"{len(run['state_dict'])} tensors after step {run['global_step']}, {len(found)} differences", *found[:10])
    sys.exit(bool(found))

"""Small experiments that put a paper's claim to the test, one file a method in `experiments/methods`."""

from lightning_paf.experiments.experiment import Arm, Claim, Measure, Study, find_study, study_names

__all__ = ["Arm", "Claim", "Measure", "Study", "find_study", "study_names"]

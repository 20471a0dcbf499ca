"""Small experiments that test claims of papers, one file per method in `methods`."""

from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant, experiment_names, find_experiment

__all__ = ["Claim", "Experiment", "Metric", "Variant", "experiment_names", "find_experiment"]

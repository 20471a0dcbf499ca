"""Check resources of Kubeflow against the models of its client, and write the Job of a TrainingRuntime to a file.

    python kubernetes_models.py FILE.yaml JOB.yaml

The models drop unknown keys, so the result is compared with the input.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from kubeflow_trainer_api import models


def lost(given: Any, kept: Any, where: str) -> list[str]:
    """Return the keys at which a document and its model differ."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [x for key in given for x in lost(given[key], kept.get(key), f"{where}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [x for i, pair in enumerate(zip(given, kept, strict=True)) for x in lost(*pair, f"{where}[{i}]")]
    return [] if given == kept else [where]


def main() -> None:
    """Exit with status 1 and the keys if a document does not match."""
    source, job = map(Path, sys.argv[1:])
    for document in yaml.safe_load_all(source.read_text()):
        model = getattr(models, f"TrainerV1alpha1{document['kind']}")
        unknown = lost(document, model.from_dict(document).to_dict(), document["kind"])
        if unknown:
            sys.exit(f"{source.name}: unknown keys: {', '.join(unknown)}")
        if document["kind"] == "TrainingRuntime":
            (replicated,) = document["spec"]["template"]["spec"]["replicatedJobs"]
            spec = replicated["template"]["spec"]
            job_document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": spec}
            job.write_text(yaml.safe_dump(job_document))


if __name__ == "__main__":
    main()

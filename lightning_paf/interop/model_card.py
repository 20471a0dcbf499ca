"""Model card of an exported network: threat model, accuracies, commands."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_paf.evaluation.evidence import Evidence
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.interop.leaderboard import architecture

_HEAD = """---
library_name: lightning-paf
pipeline_tag: image-classification
tags: [adversarial-robustness]
---

# {name} on {dataset}

Adversarially trained image classifier. Input: images (N, {channels}, H, W) in [0, 1]. Output: logits of {num_classes} \
classes. SHA-256 of the weights: `{weights}`.

## Robustness
"""
_UNEVALUATED = "The run has no evidence for these weights: clean and robust accuracy were not measured."
_TABLE = """| attack | norm | eps | images | clean accuracy | robust accuracy |
| --- | --- | --- | --- | --- | --- |
{rows}

Intervals are exact 95 % intervals over test images. The robust accuracy is an upper bound: a better attack can only \
lower it."""
_COMMANDS = """
## Use

Import the weights, evaluate them, and check the evidence of another evaluation:

```bash
{import_command}
lightning-paf test --ckpt_path RUN/checkpoints/imported.ckpt --data.root FOLDER{threat}
lightning-paf verify EVIDENCE --ckpt RUN/checkpoints/imported.ckpt
```
"""


def model_card(config: Mapping[str, Any], weights: str, evidence: Sequence[Evidence], source: str) -> str:
    """Write the card in Markdown, with the metadata of the Hugging Face Hub.

    Args:
        config: Configuration of the run, as plain values.
        weights: SHA-256 of the weights.
        evidence: Evidence of the evaluations of these weights.
        source: File or repository that `import-weights` reads.
    """
    data = config["data"]
    facts = {name: data.get(name) or "its" for name in ("channels", "num_classes")}
    head = _HEAD.format(name=architecture(config["model"]), dataset=data["dataset"], weights=weights, **facts)
    rows = "\n".join(map(_row, evidence))
    attack = evidence[0].metadata["attack"] if evidence else None
    threat = f" --autoattack.attack.norm {attack['norm']} --autoattack.attack.eps {attack['eps']}" if attack else ""
    commands = _COMMANDS.format(import_command=import_command(config, source), threat=threat)
    return head + "\n" + (_TABLE.format(rows=rows) if evidence else _UNEVALUATED) + "\n" + commands


def import_command(config: Mapping[str, Any], source: str) -> str:
    """Return the command that imports an exported network."""
    model, data = config["model"], config["data"]
    net = model["net"]
    while isinstance((net.get("init_args") or {}).get("net"), Mapping):  # the normalisation is in the file
        net = net["init_args"]["net"]
    words = ["lightning-paf", "import-weights", source, "--net", net["class_path"], "--out", "RUN"]
    words += ["--dataset", data["dataset"]]
    if model.get("activation"):
        words += ["--activation", json.dumps(model["activation"]), "--activation_scope", model["activation_scope"]]
    arguments = {**(net.get("init_args") or {}), **(net.get("dict_kwargs") or {})}
    arguments = {name: value for name, value in arguments.items() if name not in ("num_classes", "pretrained")}
    options = {f"--model.net.{name}": value for name, value in arguments.items() if value is not None}
    options |= {f"--data.{name}": data[name] for name in ("num_classes", "channels") if data.get(name) is not None}
    for name, value in options.items():
        words += [name, value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def _row(content: Evidence) -> str:
    attack, total = content.metadata["attack"], len(content)
    counts = [int(np.count_nonzero(content.outcomes == outcome)) for outcome in (Outcome.ROBUST, Outcome.FOOLED)]
    cells = (attack["attack"], attack["norm"], attack["eps"], f"{total} of {content.metadata['dataset']}")
    accuracies = (exact_accuracy(sum(counts), total), exact_accuracy(counts[0], total))
    return f"| {' | '.join(map(str, (*cells, *accuracies)))} |"

"""Short help of the training commands, formatted without importing torch.

`--help.full` lists all options.
"""

_PART = "recipe or class"
_RUN = {
    "-c, --config FILE": "recipe or file of an experiment; may be repeated",
    "--run FOLDER": "run folder: configuration, metrics, checkpoints",
    "--seed_everything N": "seed of weights, augmentation and attacks",
}
_FIT = {
    "Run": {**_RUN, "--ckpt_path FILE": "resume from a file, or from `last` in --run"},
    "Model": {
        "--model.net NET": f"network; {_PART}, e.g. resnet18",
        "--model.activation ACT": f"activation; {_PART}, e.g. pssilu",
        "--model.attack ATTACK": f"training attack; {_PART}, e.g. pgd10_linf",
        "--model.attack.eps EPS": "radius of the training attack, e.g. 8/255",
        "--model.objective LOSS": "training loss; class, e.g. TRADES",
        "--model.optimizer CLASS": "optimizer of torch.optim, e.g. SGD, or SAM",
    },
    "Data": {
        "--data.dataset NAME": "digits, cifar10, cifar100, svhn, npz or folder",
        "--data.root FOLDER": "folder of the real images",
        "--data.num_classes N": "number of classes of npz",
        "--data.synthetic FILE": "synthetic images; null for none",
        "--data.real_fraction F": "fraction of real images in a batch",
        "--data.batch_size N": "images in a batch, over all devices",
        "--data.val_size N": "training images held out for validation",
        "--data.num_workers N": "processes that fetch batches, per device",
    },
    "Trainer": {
        "--trainer PART": "recipe or file, e.g. cpu, gpu1, ddp8",
        "--trainer.max_epochs N": "length of the training",
        "--trainer.devices N": "GPUs per node",
        "--trainer.precision P": "e.g. 32-true, bf16-mixed",
    },
    "Evaluation": {
        "--val_attack EVAL": "evaluation during training; recipe, e.g. pgd20",
        "--autoattack EVAL": "evaluation by `test`; recipe, e.g. autoattack",
        "--checkpoint PART": "checkpoint to keep; recipe, e.g. best_robust",
    },
}
_EVALUATE = {
    "Run": {
        "--ckpt_path FILE": "checkpoint; or `last` or `best` in --run",
        **_RUN,
        "--untrained": "evaluate the starting weights",
        "--trust-config": "accept any class in a found configuration",
    },
    "Data": {
        "--data.root FOLDER": "folder of the images",
        "--data.eval_batch_size N": "images in a batch, per device",
    },
    "Evaluation": {
        "--val_attack EVAL": "first attack; recipe, e.g. pgd20; null for none",
        "--autoattack EVAL": "second attack, e.g. autoattack, or null",
        "--autoattack.attack.eps EPS": "radius, e.g. 8/255",
        "--autoattack.test_examples N": "number of test images",
        "--trainer.accelerator NAME": "cpu, gpu or auto",
        "--trainer.devices N": "GPUs per node",
    },
}
_PREDICT = {group: rows for group, rows in _EVALUATE.items() if group != "Evaluation"}
_LAST = "runs/a/checkpoints/last.ckpt"
_PAGES: dict[str, tuple[str, dict[str, dict[str, str]], tuple[str, ...]]] = {
    "fit": (
        "Train a model.",
        _FIT,
        (
            "-c demo/digits --data digits --run runs/a",
            "-c paper/resnet18_linf --data.root DATA --run runs/b",
            "-c runs/a/config.yaml --ckpt_path last --run runs/a",
        ),
    ),
    "validate": ("Measure clean and robust accuracy on the validation images.", _EVALUATE, (f"--ckpt_path {_LAST}",)),
    "test": (
        "Measure clean and robust accuracy on the test images.",
        {**_EVALUATE, "Run": {**_EVALUATE["Run"], "--fresh": "evaluate again instead of reading records"}},
        (f"--ckpt_path {_LAST}", "--ckpt_path best --run runs/b --autoattack.test_examples 99"),
    ),
    "predict": ("Write class probabilities of the test images.", _PREDICT, (f"--ckpt_path {_LAST}",)),
}
SUMMARIES = {command: page[0] for command, page in _PAGES.items()}
"""First line of each help page."""


def page(command: str) -> str:
    """Format the main options of a training command, with examples, in 80 columns."""
    summary, groups, examples = _PAGES[command]
    lines = [f"usage: lightning-paf {command} [options]", "", summary]
    for group, rows in groups.items():
        lines += ["", f"{group}:", *(f"  {option:29}{text}" for option, text in rows.items())]
    lines += ["", "Examples:", *(f"  lightning-paf {command} {words}" for words in examples), ""]
    lines += [
        "Recipes are listed by `lightning-paf recipes`.",
        f"All options: lightning-paf {command} --help.full",
        f"Options of one class: lightning-paf {command} --model.attack.help PGD",
        "Merged configuration: add --print_config to a command.",
    ]
    return "\n".join(lines)

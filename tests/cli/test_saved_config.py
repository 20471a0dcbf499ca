"""A configuration found next to a checkpoint runs no code of its author."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli_runs import status, trained_run
from helpers.fakes import CONFIGS, root_without_runs

from lightning_paf.cli.saved_config import config_words
from lightning_paf.cli.training import train

EXPERIMENTS = [path for folder in ("paper", "methods") for path in sorted((CONFIGS / folder).glob("*.yaml"))]
COMMANDS = {
    "test": ["test", "--ckpt_path", "CKPT"],
    "validate": ["validate", "--ckpt_path=CKPT"],
    "predict": ["predict", "--ckpt_path", "CKPT"],
    "verify": ["verify", "EVIDENCE", "--ckpt", "CKPT"],
    "sanity-check": ["sanity-check", "--ckpt", "CKPT"],
    "curve": ["curve", "--ckpt_path", "CKPT"],
    "export": ["export", "--ckpt", "CKPT", "--out", "RUN/out"],
    "certify": ["certify", "RUN", "--sigma", "0.25"],
    "certify a file": ["certify", "CKPT", "--sigma", "0.25"],
    "report": ["report", "RUN", "--ckpt", "CKPT"],
    "report without a checkpoint": ["report", "RUN"],
    "concentration": ["analyze", "concentration", "--ckpt", "CKPT"],
    "saliency": ["analyze", "saliency", "--ckpt", "CKPT"],
    "min-max": ["analyze", "min-max", "--ckpt", "CKPT"],
    "protection": ["analyze", "protection", "--ckpt", "CKPT", "--protected", "0"],
    "ladder": ["analyze", "ladder", "--ckpt", "CKPT", "--out", "RUN/ladder.npz"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trained_run(folder)
    assert status("test", "--ckpt_path", folder / "run" / "checkpoints" / "last.ckpt") == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """File that an executed payload creates, as the import of the module `stranger` does."""
    modules = tmp_path / "installed"
    modules.mkdir()
    path = tmp_path / "executed"
    (modules / "stranger.py").write_text(
        f"open({str(path)!r}, 'w').close()\n"
        "from lightning_paf.nets import SmallConvNet\nclass Net(SmallConvNet): pass\ndef function(): pass\n"
    )
    monkeypatch.syspath_prepend(str(modules))
    yield path
    sys.modules.pop("stranger", None)


def config_of(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def put(run: Path, key: str, value: object) -> None:
    """Set a value in the configuration of the run."""
    config = config_of(run)
    *above, last = key.split(".")
    inner = config
    for name in above:
        inner = inner[name]
    inner[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def words(run: Path, command: list[str]) -> list[str]:
    evidence = next((run / "test").glob("*.evidence.safetensors"))
    filled = {"CKPT": str(run / "checkpoints" / "last.ckpt"), "EVIDENCE": str(evidence), "RUN": str(run)}
    for name, path in filled.items():
        command = [word.replace(name, path) if not word.startswith(str(run)) else word for word in command]
    return command


def refusal(run: Path, capsys) -> str:
    """Return the one-line error of `test`."""
    capsys.readouterr()
    assert status(*words(run, COMMANDS["test"])) == 1
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert not [other for other in before if not other.startswith("Configuration of the checkpoint: ")]
    assert line.startswith("lightning-paf: error: ")
    return line.removeprefix("lightning-paf: error: ")


def touch(path: Path) -> dict:
    return {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(path)]}}


# ------------------------------------------------------------------ values that are refused


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_command_imports_a_class_of_a_configuration(command, run, marker, capsys):
    put(run, "model.net", {"class_path": "stranger.Net", "init_args": {"in_channels": 3, "width": 4}})
    capsys.readouterr()
    assert status(*words(run, command)) == 1
    error = capsys.readouterr().err
    assert not marker.exists()
    assert (
        "model.net must be a class of lightning_paf, timm or torchvision in a configuration found next to a "
        "checkpoint, got stranger.Net. Pass --trust-config to accept it, or -c FILE.\n"
    ) in error
    assert "Traceback" not in error


PAYLOADS = {
    "a function as the network": ("model.net", lambda file: "os.system"),
    "a function with arguments": (
        "model.net",
        lambda file: {"class_path": "os.system", "init_args": {"command": f"touch {file}"}},
    ),
    "nested in an attack": ("model.attack.init_args.loss", touch),
    "a function of a stranger in an attack": ("model.attack.init_args.loss", lambda file: "stranger.function"),
    "nested in a network": (
        "model.net",
        lambda file: {
            "class_path": "lightning_paf.nets.RandomSelfEnsemble",
            "init_args": {"net": {"class_path": "functools.partial", "init_args": {"func": "os.system"}}},
        },
    ),
    "in the free arguments of a network": (
        "model.net",
        lambda file: {"class_path": "TimmNet", "init_args": {"name": "resnet10t"}, "dict_kwargs": {"x": touch(file)}},
    ),
    "a logger": ("trainer.logger", touch),
    "one of several loggers": ("trainer.logger", lambda file: [{"class_path": "CSVLogger"}, touch(file)]),
    "a callback": ("trainer.callbacks", lambda file: [touch(file)]),
    "a callback by its name alone": ("trainer.callbacks", lambda file: ["stranger.Net"]),
    "a function of a callback": (
        "trainer.callbacks",
        lambda file: [{"class_path": "LambdaCallback", "init_args": {"setup": "stranger.function"}}],
    ),
    "a slot": ("monitor", touch),
    "a plug-in": ("trainer.plugins", lambda file: [touch(file)]),
    "a strategy": ("trainer.strategy", touch),
    "a profiler": ("trainer.profiler", touch),
    "an optimiser": ("model.optimizer", touch),
    "YAML in a string": ("model.net", lambda file: yaml.safe_dump(touch(file))),
    "JSON in a string": ("trainer.callbacks", lambda file: '["stranger.Net"]'),
    "a string in a string": ("model.net", lambda file: yaml.safe_dump({"x": yaml.safe_dump(touch(file))})),
    "a key with dots": ("model", lambda file: {"net.class_path": "os.system", "net.init_args.command": "true"}),
    "another module through ours": ("model.net", lambda file: "lightning_paf.cli.training.sys.exit"),
    "a function that ours imports": ("model.net", lambda file: "lightning_paf.commands.sanity_check.asdict"),
    "a function of ours with effects": ("model.attack.init_args.loss", lambda file: "lightning_paf.cli.training.train"),
    "a helper of ours that writes": ("trainer.callbacks", lambda file: ["lightning_paf.runs.folder.RunFolder"]),
    "a class of torch": ("model.net", lambda file: "torch.nn.Identity"),
    "a class of torch without its path": ("model.net", lambda file: "Identity"),
    "a class of a library of networks": ("model.net", lambda file: "timm.models.resnet.ResNet"),
    "a loader of a library of networks": ("model.net", lambda file: "timm.models.load_checkpoint"),
    "the running program": ("model.net", lambda file: "__main__.main"),
}


@pytest.mark.parametrize(("key", "payload"), PAYLOADS.values(), ids=PAYLOADS)
def test_no_value_runs_anything(key, payload, run, marker, capsys):
    put(run, key, payload(marker))
    option = key.replace(".init_args", "")
    line = refusal(run, capsys)
    assert line.startswith(option)
    assert "must be a class of lightning_paf, timm or torchvision in a configuration found next to" in line
    assert not marker.exists()
    assert "stranger" not in sys.modules


PLAIN = {
    "pickles are loaded": ("weights_only", False),
    "timm reads a file": (
        "model.net",
        {"class_path": "timm.create_model", "init_args": {"model_name": "resnet10t", "checkpoint_path": "x.pth"}},
    ),
    "timm reads a file of a description": (
        "model.net",
        {
            "class_path": "TimmNet",
            "init_args": {"name": "resnet10t"},
            "dict_kwargs": {"pretrained_cfg_overlay": {"file": "x.pth"}},
        },
    ),
    "timm loads from a hub": (
        "model.net",
        {"class_path": "timm.create_model", "init_args": {"model_name": "HF-\thub:a/b"}},
    ),
    "timm loads from a folder": (
        "model.net",
        {"class_path": "timm.create_model", "init_args": {"model_name": "local-dir:a"}},
    ),
    "metrics are sent away": (
        "trainer.logger",
        {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": "https://stranger.example"}},
    ),
    "metrics are sent by a chain": (
        "trainer.logger",
        {"class_path": "CSVLogger", "init_args": {"save_dir": "simplecache::s3"}},
    ),
    "W&B starts a program": (
        "trainer.logger",
        {"class_path": "WandbLogger", "dict_kwargs": {"settings": {"x_executable": "x"}}},
    ),
    "a key that is not a string": ("model.net", {"class_path": b"os.system"}),
}


@pytest.mark.parametrize(("key", "value"), PLAIN.values(), ids=PLAIN)
def test_no_value_makes_a_library_load_or_send(key, value, run, capsys):
    put(run, key, value)
    assert refusal(run, capsys).startswith(key)


@pytest.mark.parametrize("key", ["model.activation", "model.net", "trainer", "config"])
def test_no_file_is_read_as_another_configuration(key, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "part.txt").write_text("class_path: os.system")
    monkeypatch.chdir(tmp_path)
    for name in ("part.txt", str(tmp_path / "part.txt")):
        put(run, key, name)
        assert refusal(run, capsys).startswith(f"{key} must not be a text file")


LEVEL = "b{n}: &b{n} [*b{m}, *b{m}, *b{m}, *b{m}, *b{m}, *b{m}, *b{m}, *b{m}]\n"
TEXTS = {
    "a tag": "model: {net: !!python/object/apply:os.system ['touch executed']}",
    "a bomb": "b0: &b0 [x]\n" + "".join(LEVEL.format(n=n, m=n - 1) for n in range(1, 30)),
    "a bomb of merges": "a: &a {x: 1}\n" + "".join(f"m{n}: {{<<: [{{}}]}}\n" for n in range(3)),
    "a list inside itself": "a: &a [*a]",
    "too many levels": "[" * 10_000,
    "a bomb in a string": "model: {net: 'a: &a [*a]'}",
    "too long": "a: " + "x" * 1_000_001,
    "not a mapping": "just words",
    "not text": "a: \0",
    "strings in strings": "a: |\n" + "".join(f"{' ' * n}a: |\n" for n in range(1, 40)) + " " * 40 + "a: 1",
    "a date": "a: 2020-01-01",
    "an invalid number": "a: 2020-99-99",
    "levels that do not end": "a: " + "[" * 900_000,
    "levels that do not end in a string": "a: '" + "[" * 900_000 + "'",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_that_expands_is_refused(text, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (run / "config.yaml").write_text(text)
    assert "in a configuration found next to a checkpoint, got " in refusal(run, capsys)
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------ trusted configurations


def test_trust_config_accepts_any_class(run, marker):
    put(run, "model.net.class_path", "stranger.Net")
    assert status(*words(run, COMMANDS["validate"])) == 1
    assert not marker.exists()
    assert status(*words(run, [*COMMANDS["validate"], "--trust-config"])) == 0
    assert marker.exists()


@pytest.mark.parametrize("trust", [["-c", "RUN/config.yaml"], ["--trust-config"]])
def test_a_tool_accepts_a_trusted_configuration(trust, run, marker):
    put(run, "model.net.class_path", "stranger.Net")
    assert status(*words(run, [*COMMANDS["min-max"], *trust])) == 0
    assert marker.exists()


def test_a_configuration_on_the_command_line_is_trusted(run, marker):
    put(run, "model.net.class_path", "stranger.Net")
    assert status(*words(run, ["validate", "-c", "RUN/config.yaml", "--ckpt_path", "CKPT", "--run", "RUN"])) == 0
    assert marker.exists()


def test_a_class_on_the_command_line_is_trusted(run, marker):
    assert status(*words(run, [*COMMANDS["validate"], "--model.net", "stranger.Net"])) == 0
    assert marker.exists()


@pytest.mark.parametrize(
    "command", sorted({tuple(command[: 1 + (command[0] == "analyze")]) for command in COMMANDS.values()})
)
def test_every_help_names_the_option(command, capsys):
    assert status(*command, "--help") == 0
    assert "--trust-config" in capsys.readouterr().out


# ------------------------------------------------------------------ configurations of this package


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root_without_runs(tmp_path_factory.mktemp("root")))
        yield train(["-c", "configs/demo/digits.yaml"], run=False).parser


def parts(folder: str) -> list[Path]:
    return sorted((CONFIGS / folder).glob("*.yaml"))


KINDS = {
    "model.activation": parts("activation"),
    "model.attack": parts("attack"),
    "model.net": parts("net"),
    "model.speed": parts("speed"),
    "val_attack": [*parts("eval"), "RobustEval"],
    "autoattack": parts("eval"),
    "trainer": parts("trainer"),
    "trainer.logger": parts("logger"),
}
DIGITS = ["-c", str(CONFIGS / "demo" / "digits.yaml")]
OPTIONS = [
    *(["-c", str(path)] for folder in ("paper", "methods", "demo", "experiments") for path in parts(folder)),
    *(
        [*DIGITS, *(word for key, paths in KINDS.items() for word in (f"--{key}", str(paths[number % len(paths)])))]
        for number in range(max(map(len, KINDS.values())))
    ),
    [*DIGITS, "--trainer.callbacks+=LearningRateMonitor", "--model.attack.loss", "lightning_paf.functional.margin"],
    [*DIGITS, "--checkpoint.filename", "{epoch}-{val/acc_pgd:.3f}", "--periodic.filename", "[a] {step}"],
    [*DIGITS, "--autoattack.stop", "HalfWidth", "--data.augment", "CropFlip", "--data.mixing", "CutMix"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(Path(word).stem for word in options[1::2]))
def test_saved_recipes_are_accepted_unchanged(options, parser, tmp_path):
    text = parser.dump(parser.parse_args(options), skip_unset=False, skip_validation=True)
    (tmp_path / "config.yaml").write_text(text)
    _, accepted = config_words(tmp_path / "config.yaml", [])
    assert yaml.safe_load(accepted) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "name",
    [
        "timm.create_model",
        "timm.models.resnet10t",
        "torchvision.models.resnet18",
        "lightning_paf.nets.timm_net",
        "lightning_paf.interop.NormalizedNet",
        "lightning.pytorch.callbacks.ModelCheckpoint",
    ],
)
def test_builders_and_classes_are_accepted_by_their_paths(name, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"net": {"class_path": name}}}))
    assert config_words(tmp_path / "config.yaml", [])


def test_names_without_a_path_are_those_of_the_parser(run):
    for key, name in (("model.attack.class_path", "PGD"), ("model.net.class_path", "SmallConvNet")):
        put(run, key, name)
    put(run, "model.activation", "PReLU")  # also a class of torch
    assert status(*words(run, COMMANDS["min-max"])) == 1, "weights of another activation"
    put(run, "model.activation", "PSSiLU")
    assert status(*words(run, COMMANDS["min-max"])) == 0


def test_files_of_images_and_weights_can_be_named(run, tmp_path, monkeypatch):
    torch.save({}, tmp_path / "begin.ckpt")
    monkeypatch.chdir(tmp_path)
    put(run, "model.init", "begin.ckpt")
    assert config_words(run / "config.yaml", [])


# ------------------------------------------------------------------ the working folder


def test_no_module_of_the_working_folder_is_imported(run, tmp_path):
    """Optional imports of torch and Lightning do not find one either."""
    folder = tmp_path / "working"
    folder.mkdir()
    for module in ("timm", "yaml", "difflib", "opt_einsum", "wandb", "stranger"):
        (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write(__name__)\n")
    put(run, "model.net", {"class_path": "stranger.Net"})
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_paf", *words(run, COMMANDS["test"])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "got stranger.Net" in done.stderr
    assert not (tmp_path / "executed").exists()

"""The wheel contains the commands and the recipes, the sdist also the tests."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.short_demo import write_short_demo, write_short_generator

ROOT = Path(__file__).parents[1]
TINY = ["--model.net", "SmallConvNet", "--model.net.width", "2", "--model.attack.steps", "1", "--data.num_workers", "0"]
SHORT = ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce]"]
SHORT += ["--autoattack.test_examples", "4", "--val_attack.test_examples", "4"]
RUN = ["--run", "run", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1", "--data.train_examples", "128"]
REAL = ["--data.synthetic", "null", "--data.real_fraction", "1.0"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The sdist, built from the files of the checkout, and the wheel, built from the sdist."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files of a checkout are listed by git")
    folder = tmp_path_factory.mktemp("distribution")
    source = folder / "source"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    build("build_sdist", source, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def build(what: str, source: Path, folder: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.{what}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)


def test_the_sdist_holds_what_its_suite_needs(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    assert {name for name in tracked if (ROOT / name).is_file()} <= names


def test_the_wheel_holds_the_recipes_and_no_tests(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        names = set(archive.namelist())
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"lightning_paf/{name}" for name in recipes} <= names
    assert not any(name.startswith(("tests/", "configs/")) for name in names)


@pytest.fixture(scope="module")
def python(archives, tmp_path_factory):
    """Runs Python in a new environment with the dependencies of this one and the wheel, outside the checkout."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    library = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (library / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    options = ["--no-deps", "--no-index", "--quiet", "--target", library]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, archives[1]], check=True)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(*words: str) -> str:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [environment / "bin" / "python", *words]
        done = subprocess.run(command, cwd=folder, env=variables, check=False, **pipes)
        assert done.returncode == 0, done.stdout
        return done.stdout

    found = run("-c", "import lightning_paf; print(lightning_paf.__file__)").strip()
    assert found == str(library / "lightning_paf" / "__init__.py")
    return run


def test_the_installed_package_has_the_commands_and_recipes(python, tmp_path):
    recipes = ["--config", str(write_short_demo(tmp_path)), "--generator", str(write_short_generator(tmp_path))]
    commands = [
        ["fit", "-c", "demo/digits", "--model.activation", "relu", *RUN, *REAL, *TINY],
        ["test", "--ckpt_path", "run/checkpoints/last.ckpt", *SHORT],
        ["reproduce", "--list"],
        ["demo", *recipes, "--out", "demo", "--count", "60", "--epochs", "1"],
    ]
    code = "import json, sys; from lightning_paf.__main__ import main; print(*map(main, json.loads(sys.argv[1])))"
    shown = python("-c", code, json.dumps(commands))
    assert "autoattack" in shown
    assert "madry" in shown
    assert "PSSiLU minus ReLU" in shown
    assert shown.splitlines()[-1] == "0 0 0 0"
    assert "paper/resnet18_linf" in python("-m", "lightning_paf", "recipes")

"""Who installs the wheel, without a checkout, has the commands and the recipes; the sdist has the suite."""

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
import yaml

ROOT = Path(__file__).parents[1]
TINY = ["--model.net", "SmallConvNet", "--model.net.width", "2", "--model.attack.steps", "1", "--data.num_workers", "0"]
SHORT = {"class_path": "AutoAttack", "init_args": {"eps": 0.25, "version": "custom", "attacks": ["apgd-ce"]}}
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
def command(archives, tmp_path_factory):
    """`lightning-paf` of a new environment that has the dependencies of this one, and the wheel."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    library = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (library / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    options = ["--no-deps", "--no-index", "--quiet", "--target", library]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, archives[1]], check=True)
    python = place / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    folder, package = tmp_path_factory.mktemp("elsewhere"), library / "lightning_paf"
    shorten_demo(shutil.copytree(package / "configs", folder / "shortened") / "demo" / "digits.yaml")

    def run(*words: str) -> str:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run([python, *words], cwd=folder, env=environment, check=False, **pipes)
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert run("-c", "import lightning_paf; print(lightning_paf.__file__)").strip() == str(package / "__init__.py")
    return lambda *words: run("-m", "lightning_paf", *words)


def shorten_demo(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    config["data"] = {
        **yaml.safe_load((path.parents[1] / "data/digits_synthetic.yaml").read_text()),
        "train_examples": 64,
    }
    config["data"] |= {"batch_size": 32, "num_workers": 0}
    config["val_attack"]["init_args"] |= {"max_examples": 4, "test_examples": 4}
    config["model"]["net"] = {"class_path": "SmallConvNet", "init_args": {"width": 2}}
    config["model"]["attack"]["init_args"]["steps"] = 1
    config["autoattack"]["init_args"] |= {"test_examples": 4, "attack": SHORT}
    path.write_text(yaml.safe_dump(config))


def test_the_installed_package_trains_tests_and_lists(command):
    run = ["--run", "run", "--trainer.max_epochs", "1", "--data.train_examples", "100"]
    command("fit", "-c", "demo/digits", "--model.activation", "relu", *run, *REAL, *TINY)
    shown = command("test", "--ckpt_path", "run/checkpoints/last.ckpt", "--autoattack.attack", json.dumps(SHORT))
    assert "autoattack" in shown
    assert "madry" in command("reproduce", "--list")
    assert "paper/resnet18_linf" in command("recipes")
    demo = ["demo", "--config", "shortened/demo/digits.yaml", "--count", "60", "--epochs", "1"]
    assert "PSSiLU minus ReLU, same 4 images" in command(*demo)

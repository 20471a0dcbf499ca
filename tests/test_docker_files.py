"""The files in docker/ are consistent with each other and with the package; needs neither Docker nor a cluster."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fakes import CONFIGS

from lightning_paf import __version__
from lightning_paf.__main__ import main
from lightning_paf.utils.process import EXIT_STATUS

ROOT = CONFIGS.parent
DOCKER = ROOT / "docker"
FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file())


def instructions(text: str) -> list[tuple[str, str]]:
    """Keyword and rest of every instruction of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in joined) if word]


INSTRUCTIONS = instructions((DOCKER / "Dockerfile").read_text())


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name; the last one has an empty name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in INSTRUCTIONS[1:]:
        if word == "FROM":
            found[rest.partition(" AS ")[2]] = current = []
        current.append((word, rest))
    return found


def only(word: str, where: list[tuple[str, str]] | None = None) -> str:
    (rest,) = [rest for found, rest in (where or INSTRUCTIONS) if found == word]
    return rest


VOLUMES = set(json.loads(only("VOLUME")))
UID, GID = map(int, only("USER").split(":"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


KUBERNETES = [document for path in sorted((DOCKER / "kubernetes").glob("*.yaml")) for document in documents(path)]
COMPOSE = documents(DOCKER / "compose.yaml")[0]


def jobs() -> dict[str, dict[str, Any]]:
    """Specs of batch/v1 Jobs by name, including those inside runtimes."""
    found = {}
    for document in KUBERNETES:
        name, spec = document["metadata"]["name"], document["spec"]
        if document["kind"] == "Job":
            found[name] = spec
        if document["kind"] == "TrainingRuntime":
            (part,) = spec["template"]["spec"]["replicatedJobs"]
            found[name] = part["template"]["spec"]
    return found


JOBS = jobs()
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


def pod(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of a job, and its container."""
    spec = job["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def commands() -> list[list[str]]:
    """Every `fit` and `test` command in docker/ and in the page about it, from this word on."""
    found = [list(map(str, pod(job)[1].get("args", []))) for job in JOBS.values()]
    found += [document["spec"]["trainer"]["args"] for document in KUBERNETES if document["kind"] == "TrainJob"]
    defaults = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["command"]) for service in COMPOSE["services"].values()]
    found += [shlex.split(command) for command in defaults]
    for path in (DOCKER / "README.md", ROOT / "docs" / "scaling.md"):
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
            found += [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    own = []
    for words in found:
        for start, word in enumerate(words[:-1]):
            complete = "..." not in words
            if complete and word in ("lightning-paf", "lightning_paf") and words[start + 1] in ("fit", "test"):
                own.append(words[start + 1 :])
    return own


COMMANDS = [list(words) for words in dict.fromkeys(map(tuple, commands()))]


def test_there_are_commands():
    assert {words[0] for words in COMMANDS} == {"fit", "test"}
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_accepted(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name, *options = words
    if name == "test":  # the configuration is next to the checkpoint, which does not exist here
        options = ["-c", "configs/paper/resnet18_linf.yaml", *options]
    with pytest.raises(SystemExit) as stopped:
        main([name, *options, "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "fit"], ids=" ".join)
def test_restarted_trainings_resume(words):
    assert words[words.index("--run") + 1].startswith("runs/")
    assert words[words.index("--ckpt_path") + 1] == "auto"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist_and_there_are_no_secrets(path):
    text = path.read_text()
    named = re.findall(r"\b(?:configs|docker|docs|tests)/[\w/.]*\w", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    assert not re.search(r"(?i)password|secret|token|api.?key", text)


def test_any_base_image_and_old_builders_can_be_used():
    """buildah 1.28 supports neither here-documents nor links, and ignores changes of a mounted stage."""
    assert re.fullmatch(r"BASE_IMAGE=python:3\.\d+-slim", INSTRUCTIONS[0][1])
    assert next(rest for word, rest in INSTRUCTIONS if word == "FROM") == "${BASE_IMAGE} AS base"
    assert not [rest for word, rest in INSTRUCTIONS if "<<" in rest or "--link" in rest]
    assert not [rest for word, rest in INSTRUCTIONS if word == "RUN" and "--mount" in rest]


def test_code_is_copied_after_the_dependencies():
    found = stages()
    before = [rest for name in ("base", "dependencies") for word, rest in found[name] if word in ("COPY", "ADD")]
    assert before == ["--from=requirements /requirements.txt /requirements.txt"]
    assert [rest for word, rest in found["requirements"] if word == "COPY"] == ["pyproject.toml /"]
    assert any("pip install -r" in rest for word, rest in found["dependencies"] if word == "RUN")
    assert only("FROM", found[""]) == "dependencies"
    assert not [rest for word, rest in found[""] if word == "RUN" and "pip" in rest]


@pytest.mark.parametrize("extras", ["", "parquet mlflow"])
def test_the_requirements_are_those_of_the_package(extras):
    command = only("RUN", stages()["requirements"])
    program = re.search(r'python3 -c "(.*?)" > /requirements.txt', command, re.DOTALL)[1]
    program = program.replace("/pyproject.toml", str(ROOT / "pyproject.toml")).replace("${EXTRAS}", extras)
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    expected = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    assert printed.splitlines() == expected + [line for extra in extras.split() for line in optional[extra]]


def test_the_user_is_not_root():
    assert UID == GID > 1000  # often 1000 is the first user of the host
    words = [word for word, _ in INSTRUCTIONS]
    assert "RUN" not in words[words.index("USER") :]
    assert f"--uid {UID} " in "".join(rest for word, rest in INSTRUCTIONS if word == "RUN")


def test_the_image_has_entry_point_volumes_and_labels():
    assert json.loads(only("ENTRYPOINT")) == ["tini", "--"]  # forwards signals
    assert json.loads(only("CMD"))[0] == "lightning-paf"
    variables = dict(pair.split("=", 1) for pair in shlex.split(only("ENV", stages()[""])))
    assert {variables[name] for name in ("HOME", "TMPDIR")} <= VOLUMES
    assert {f"{only('WORKDIR')}/{folder}" for folder in ("data", "runs")} <= VOLUMES
    assert f"VERSION={__version__}" in [rest for word, rest in INSTRUCTIONS if word == "ARG"]
    assert {"image.version", "image.revision", "image.licenses"} <= set(re.findall(r"image\.\w+", only("LABEL")))


def test_the_build_context_contains_only_copied_files():
    ignored, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert ignored == "*"
    sent = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        name
        for word, line in INSTRUCTIONS
        if word == "COPY" and not line.startswith("--from")
        for name in line.split()[:-1]
    }
    assert sent == copied
    assert not sent & {".git", ".venv", "runs", "data", "docs", "tests"}
    assert {line for line in rest if not line.startswith("!")} == {"**/__pycache__", "**/*.pyc"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_services_are_restricted(name):
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    mounts = [volume.split(":") for volume in service["volumes"]]
    assert {mount[0] for mount in mounts} <= COMPOSE["volumes"].keys()
    assert {mount[1] for mount in mounts} <= VOLUMES
    assert service["build"]["args"].keys() <= {rest.partition("=")[0] for word, rest in INSTRUCTIONS if word == "ARG"}
    assert documents(DOCKER / "compose.gpu.yaml")[0]["services"].keys() <= COMPOSE["services"].keys()


@every_job
def test_pods_have_the_restrictions_of_the_image_and_survive_evictions(job):
    spec, container = pod(job)
    assert spec["securityContext"]["runAsNonRoot"]
    assert {spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["image"] == f"lightning-paf:{__version__}"
    assert "command" not in container  # which would replace tini
    assert spec["restartPolicy"] == "Never"  # podFailurePolicy, by which evictions are no failures, requires it
    conditions = [rule["onPodConditions"] for rule in job["podFailurePolicy"]["rules"] if "onPodConditions" in rule]
    assert conditions == [[{"type": "DisruptionTarget"}]]


@every_job
def test_pods_have_the_volumes_and_shared_memory(job):
    spec, container = pod(job)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounted) == VOLUMES | {"/dev/shm"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert set(mounted.values()) == set(volumes)
    assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "emptyDir" not in volume}
    assert claims == {d["metadata"]["name"] for d in KUBERNETES if d["kind"] == "PersistentVolumeClaim"}


def test_the_memory_limit_includes_the_shared_memory():
    limits = {name: pod(job)[1].get("resources", {}).get("limits") for name, job in JOBS.items()}
    limits["lightning-paf"] = next(
        d["spec"]["trainer"]["resourcesPerNode"]["limits"] for d in KUBERNETES if d["kind"] == "TrainJob"
    )
    for name, job in JOBS.items():
        (shared,) = [v["emptyDir"]["sizeLimit"] for v in pod(job)[0]["volumes"] if "medium" in v.get("emptyDir", {})]
        memory = limits[name]["memory"]
        assert shared.endswith("Gi")
        assert memory.endswith("Gi")
        assert int(memory[:-2]) >= 4 * int(shared[:-2])
        assert limits[name]["nvidia.com/gpu"] >= 1


def test_a_stopped_training_is_restarted():
    rules = [rule for rule in JOBS["paf-train"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules}
    assert actions == {2: "FailJob", EXIT_STATUS: "Ignore"}
    assert pod(JOBS["paf-train"])[0]["terminationGracePeriodSeconds"] >= 120


def test_torchrun_leaves_time_for_the_checkpoint():
    spec, container = pod(JOBS["lightning-paf"])
    (seconds,) = [v["value"] for v in container["env"] if v["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert 120 <= int(seconds) < spec["terminationGracePeriodSeconds"]


def test_the_training_job_names_its_runtime():
    (reference,) = [d["spec"]["runtimeRef"] for d in KUBERNETES if d["kind"] == "TrainJob"]
    named = [(d["apiVersion"].split("/")[0], d["kind"], d["metadata"]["name"]) for d in KUBERNETES]
    assert (reference["apiGroup"], reference["kind"], reference["name"]) in named


def test_evaluation_is_an_indexed_job():
    job = JOBS["paf-evaluate"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1

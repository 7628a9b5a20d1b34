"""The rules of images/Containerfile that a reader would check. Nothing is built here."""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gripline import __version__, threads
from gripline.envs import gl
from gripline.stages import STEP_IMAGE

ROOT = Path(__file__).parents[3]
TARGETS = ("step", "policy", "env-mujoco", "env-isaac")
ENV_TARGETS = ("env-mujoco", "env-isaac")
RENDERING = (*ENV_TARGETS, "step")
LEARNING = {"torch", "transformers", "peft"}


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def parse() -> tuple[dict[str, str], dict[str, Stage]]:
    """(global build arguments, stages by name) of the Containerfile."""
    lines = [line for line in (ROOT / "images" / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, current = rest.split()
            stages[current] = Stage(base)
        elif word and current:
            stages[current].instructions.append((word, rest))
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value.strip('"')
    return arguments, stages


ARGUMENTS, STAGES = parse()


def history(target: str) -> list[tuple[str, str]]:
    """Every instruction that an image is made by, those of the stages that it is built on first."""
    stage = STAGES[target]
    before = history(stage.base) if stage.base in STAGES else []
    return before + stage.instructions


def environment(target: str) -> dict[str, str]:
    pairs = [shlex.split(rest) for word, rest in history(target) if word == "ENV"]
    return dict(pair.split("=", 1) for line in pairs for pair in line)


def commands(target: str) -> list[list[str]]:
    """The single commands of all RUN lines."""
    lines = [rest for word, rest in history(target) if word == "RUN"]
    return [shlex.split(command) for line in lines for command in line.split(" && ")]


def installed(target: str) -> list[str]:
    """What pip is told to install, with its dependencies."""
    found: list[str] = []
    for command in commands(target):
        if "install" in command and "pip" in command and "--no-deps" not in command:
            words = command[command.index("install") + 1 :]
            found += [word for word in words if not word.startswith(("-", "$"))]
    return found


def with_dependencies(names: list[str]) -> set[str]:
    """Names of the distributions that installing these brings, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [Requirement(name) for name in names if not name.startswith(".")]
    for name in names:
        if name.startswith("."):
            todo += [Requirement(each) for each in project["dependencies"]]
            for extra in name[1:].strip("[]").split(","):
                todo += [Requirement(each) for each in project["optional-dependencies"][extra]]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for each in map(Requirement, importlib.metadata.requires(name) or []):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    todo.append(each)
    return {name for name, _ in seen}


def test_every_kind_of_pod_has_an_image() -> None:
    assert set(TARGETS) <= set(STAGES)


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_runs_as_root(target: str) -> None:
    """Catches: `runAsNonRoot` refuses a name, because only a number proves that it is not root."""
    users = [rest for word, rest in history(target) if word == "USER"]
    assert users[-1] == "1000"
    assert any("useradd" in command and "1000" in command for command in commands(target))
    assert environment(target)["HOME"] == "/home/gripline"


@pytest.mark.parametrize("target", ENV_TARGETS)
def test_env_images_hold_no_torch(target: str) -> None:
    """Catches: four gigabytes on every simulator pod, brought by whatever they install."""
    assert not with_dependencies(installed(target)) & LEARNING


@pytest.mark.parametrize("target", ["policy", "step"])
def test_the_other_images_do_hold_torch(target: str) -> None:
    """Shows that the test above looks at the right thing."""
    assert with_dependencies(installed(target)) >= LEARNING


def test_env_workers_import_nothing_that_their_image_lacks(tmp_path: Path) -> None:
    """Catches: an import in the path of an env worker for which env-mujoco has no package; torch above all."""
    present = with_dependencies(installed("env-mujoco")) | {"gripline"}
    ray = importlib.util.find_spec("ray")
    assert ray is not None and ray.origin is not None
    bundled = {path.stem for path in (Path(ray.origin).parent / "thirdparty_files").iterdir()}
    owners = importlib.metadata.packages_distributions()
    absent = [name for name in set(owners) - bundled if not present & set(map(canonicalize_name, owners[name]))]
    assert "torch" in absent and "mujoco" not in absent
    program = f"""
import sys

ABSENT = frozenset({absent!r})

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError("not in the image: " + name, name=name)

sys.meta_path.insert(0, Absent())
import gripline.rollout.actors
import gripline.rollout.standard
import gripline.envs.toy
import gripline.envs.metaworld.adapter
import gripline.envs.metaworld.simulator
import gripline.envs.metaworld.rendering
import gripline.envs.metaworld.success
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("target", TARGETS)
def test_python_is_the_same_minor_version_everywhere(target: str) -> None:
    """Catches: a base image with another Python, which would be noticed when Ray's nodes refuse each other."""
    assert ARGUMENTS["PYTHON"] == "3.11"
    checks = [" ".join(command) for command in commands(target) if "${PYTHON}" in " ".join(command)]
    assert len(checks) == 1 and "assert sys.version.startswith('${PYTHON}.')" in checks[0]
    assert environment(target)["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] == "minor"


@pytest.mark.parametrize("target", TARGETS)
def test_versions_come_from_constraints_alone(target: str) -> None:
    """Catches: a second place that says which Ray it is."""
    assert environment(target)["PIP_CONSTRAINT"] == "/opt/gripline/constraints.txt"
    assert not [name for name in installed(target) if re.search(r"[<>=~]", name)]
    assert "ray" in with_dependencies(installed(target))
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([pin for pin in pins if pin.startswith("ray==")]) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_pods_find_the_ray_of_the_health_probes(target: str) -> None:
    """Catches: the plain `ray`, whose nodes have no agent to answer KubeRay's probes."""
    names = with_dependencies(installed(target))
    assert {"aiohttp-cors", "opencensus"} <= names


@pytest.mark.parametrize("target", ["policy", "env-mujoco", "step"])
def test_packages_are_installed_before_what_changes_often(target: str) -> None:
    """Catches: ten minutes of installing after each edit of a page or a module."""
    steps = history(target)
    last = max(index for index, (word, rest) in enumerate(steps) if word == "RUN" and "pip install" in rest)
    copied = {name for word, rest in steps[:last] if word == "COPY" for name in rest.split()[:-1]}
    assert {name for name in copied if Path(name).name != "__init__.py"} <= {
        "pyproject.toml",
        "constraints.txt",
        "images/10_nvidia.json",
    }


@pytest.mark.parametrize("name", ["BASE", "ISAAC_BASE"])
def test_bases_are_pinned_build_arguments(name: str) -> None:
    image, _, tag = ARGUMENTS[name].rpartition(":")
    assert re.fullmatch(r"[a-z0-9.-]+(/[a-z0-9.-]+)+", image)
    assert re.search(r"\d", tag) and tag != "latest"
    assert f"${{{name}}}" in {stage.base for stage in STAGES.values()}


@pytest.mark.parametrize("target", RENDERING)
def test_images_that_draw_know_nvidias_egl(target: str) -> None:
    """Catches: libEGL that knows Mesa only, so that MuJoCo draws in software beside a GPU."""
    assert ("COPY", "images/10_nvidia.json /usr/share/glvnd/egl_vendor.d/") in history(target)
    assert {"graphics", "all"} & set(environment(target)["NVIDIA_DRIVER_CAPABILITIES"].split(","))
    assert json.loads((ROOT / "images" / "10_nvidia.json").read_text()) == {
        "file_format_version": "1.0.0",
        "ICD": {"library_path": "libEGL_nvidia.so.0"},
    }


def test_the_software_renderer_is_the_one_that_is_recommended() -> None:
    assert ARGUMENTS["GL"] == gl.PACKAGES
    for target in ("env-mujoco", "step"):
        assert any("${GL}" in command for command in commands(target))


@pytest.mark.parametrize("target", TARGETS)
def test_threads_are_limited_as_on_a_laptop(target: str) -> None:
    assert environment(target).items() >= threads.DEFAULTS.items()


def test_nobodys_licence_is_accepted_for_them() -> None:
    """Catches: an image that agrees to NVIDIA's terms in the user's place."""
    text = (ROOT / "images" / "Containerfile").read_text() + (ROOT / "images" / "build").read_text()
    assert not re.search(r"EULA|PRIVACY_CONSENT", text)


def test_copied_files_exist_and_reach_the_builder() -> None:
    """Catches: a file that was moved, and one that .dockerignore keeps away."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            *sources, _ = rest.split()
            if word == "COPY" and not rest.startswith("--from"):
                for source in sources:
                    assert (ROOT / source).exists(), source
                    assert {source, source.split("/")[0]} & sent, source


@pytest.mark.parametrize("target", TARGETS)
def test_no_layer_keeps_caches(target: str) -> None:
    assert environment(target)["PIP_NO_CACHE_DIR"] == "1"
    for word, rest in history(target):
        if word == "RUN" and "apt-get update" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest


@pytest.mark.parametrize("target", TARGETS)
def test_bytecode_is_compiled_and_profiles_are_there(target: str) -> None:
    """Catches: every start of a worker compiles again, because nothing can be written; profiles that are not found."""
    assert ("COPY", "--from=code /opt/gripline /opt/gripline") in history(target)
    assert any("compileall" in command for command in commands("code"))
    assert ("COPY", "profiles profiles") in history("code")


# --- images/build ----------------------------------------------------------------------------------------------------


def build(
    tmp_path: Path, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run images/build with a builder that only notes what it is told; returns that for each call."""
    builder, notes = tmp_path / "builder", tmp_path / "notes.jsonl"
    builder.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(notes)!r}, 'a'))\n"
    )
    builder.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "images" / "build"), *arguments],
        env={"PATH": os.environ["PATH"], "BUILDER": str(builder)} | variables,
        capture_output=True,
        text=True,
    )
    return done, [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def values(call: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(call) if name == option]


def test_build_names_what_the_pipeline_uses(tmp_path: Path) -> None:
    """Catches: an image under a name that no step asks for."""
    done, calls = build(tmp_path)
    assert done.returncode == 0, done.stderr
    assert STEP_IMAGE in [tag for call in calls for tag in values(call, "--tag")]
    assert {target for call in calls for target in values(call, "--target")} == set(TARGETS) - {"env-isaac"}


def test_build_labels_commit_and_version(tmp_path: Path) -> None:
    _, calls = build(tmp_path, "policy")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    labels = dict(label.split("=", 1) for label in values(calls[0], "--label"))
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == (commit or "unknown")
    assert labels["org.opencontainers.image.title"] == "gripline-policy"


def test_build_passes_registry_tag_base_and_flags_on(tmp_path: Path) -> None:
    variables = {
        "REGISTRY": "registry.example/team/",
        "TAG": "7",
        "BASE": "localhost/debian:bookworm",
        "TORCH_FROM": "--extra-index-url https://wheels.example/cpu",
        "BUILD_FLAGS": "--network host",
    }
    _, calls = build(tmp_path, "env-isaac", **variables)
    assert values(calls[0], "--tag") == ["registry.example/team/gripline-env-isaac:7"]
    expected = {"BASE=localhost/debian:bookworm", "TORCH_FROM=--extra-index-url https://wheels.example/cpu"}
    assert set(values(calls[0], "--build-arg")) == expected
    assert values(calls[0], "--network") == ["host"]


def test_build_refuses_an_unknown_image_in_one_line(tmp_path: Path) -> None:
    done, calls = build(tmp_path, "polcy")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.count("\n") == 1 and "'polcy'" in done.stderr

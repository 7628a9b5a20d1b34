"""A placement in a file beside the profile: it is put in its place, and a mistake is told with file and field."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gripline import preflight, profiles
from gripline.cluster_config import Placement
from gripline.errors import UserError

POOL = """\
name: my-pool
node_affinity:
  - label: nvidia.com/gpu.product
    values: [NVIDIA-L40S]
tolerations:
  - key: nvidia.com/gpu
gpu_resource: nvidia.com/gpu
"""
PROFILE = """\
name: mine
env:
  tasks: [faucet-open-v3, faucet-close-v3]
cluster:
  stages: [rl]
  policy:
    placement: onprem-train
    gpus: 1
  env:
    placement: {placement}
    gpus: 1
    rendering: rtx
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """profile.yaml, with pools/my-pool.yaml for its env pods."""
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "my-pool.yaml").write_text(POOL)
    (tmp_path / "profile.yaml").write_text(PROFILE.format(placement="pools/my-pool.yaml"))
    return tmp_path


def refusal(profile: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        profiles.load(str(profile), overrides)
    assert "\n" not in refused.value.line and refused.value.next_step
    return refused.value.line


def test_file_beside_the_profile_is_put_in_its_place(folder: Path) -> None:
    """Catches: a path that is looked for in the working directory, or that a pod cannot follow."""
    profile = profiles.load(str(folder / "profile.yaml"))
    assert isinstance(profile.cluster.env.placement, Placement)
    assert profile.cluster.env.placement.name == "my-pool"
    assert profiles.load(profiles.dump(profile)) == profile
    assert profiles.load_placement(str(folder / "pools" / "my-pool.yaml")) == profile.cluster.env.placement


def test_command_line_wins_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an override that is looked for beside the profile, or that is told as the file's mistake."""
    monkeypatch.chdir(folder / "pools")
    (folder / "pools" / "other.yaml").write_text(POOL.replace("my-pool", "other"))
    mine = folder / "profile.yaml"

    def placed(override: str) -> str | Placement:
        return profiles.load(str(mine), [override]).cluster.env.placement

    assert placed("cluster.env.placement=gke-l4") == "gke-l4"
    other = placed("cluster.env.placement=other.yaml")
    assert isinstance(other, Placement) and other.name == "other"
    changed = placed("cluster.env.placement.runtime_class=nvidia")
    assert isinstance(changed, Placement) and (changed.name, changed.runtime_class) == ("my-pool", "nvidia")
    assert refusal(mine, "cluster.env.placement=none.yaml").startswith("--set: cluster.env.placement: none.yaml cannot")
    assert refusal(mine, "cluster.env.placement=3").startswith("--set: cluster.env.placement: must be a name, a path")
    assert refusal(mine, "cluster.env.placement.gpu=x").startswith("--set: cluster.env.placement.gpu: unknown key")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("gpu_resource:", "gpu_resorce:", "gpu_resorce: unknown key; did you mean 'gpu_resource'?"),
        ("  - key:", "  - kee:", "tolerations[0].key: is missing (and 1 more)"),
        ("label:", "lable:", "node_affinity[0].label: is missing (and 1 more)"),
        ("name: my-pool\n", "", "name: is missing"),
        ("[NVIDIA-L40S]", "[]", "node_affinity[0].values: "),
        (
            "[NVIDIA-L40S]",
            "[a, true]",
            "node_affinity[0].values[1]: must be a valid string, got True; put it in",
        ),
        ("[NVIDIA-L40S]", "['L40S +']", "node_affinity[0].values[0]: String should match pattern"),
        ("gpu_resource: nvidia.com/gpu", "gpu_resource: gpu", "gpu_resource: String should match pattern"),
        (
            "gpu_resource:",
            "container_env: {EULA: YES}\ngpu_resource:",
            "container_env.EULA: must be a valid string, got True; put",
        ),
        (
            "tolerations:\n  - key: nvidia.com/gpu",
            "tolerations: [gpu]",
            "tolerations[0]: is a section, not",
        ),
        ("tolerations:\n  - key: nvidia.com/gpu", "tolerations: 3", "tolerations: must be a valid tuple"),
        ("key: nvidia.com/gpu", "key: a\n    effect: NoSchedul", "tolerations[0].effect: must be '', 'NoSchedule'"),
        ("gpu_resource: nvidia.com/gpu", "gpu_resource: ''", "gpu_resource: is empty, but gpus is 1"),
        ("gpu_resource: nvidia.com/gpu", "gpu_resource: nvidia.com/mig-1g.24gb.gfx", "gpu_resource: nvidia.com/mig-1g"),
        ("[NVIDIA-L40S]", "[NVIDIA-L40S, NVIDIA-H100-NVL]", "node_affinity[0].values: NVIDIA-H100-NVL has no RT cores"),
        ("[NVIDIA-L40S]", "[NVIDIA-L40S-SHARED]", "node_affinity[0].values: NVIDIA-L40S-SHARED is time-shared"),
        (
            "tolerations:",
            "  - {label: nvidia.com/gpu.product, values: [NVIDIA-L4]}\ntolerations:",
            "node_affinity[1]: contradicts an earlier requirement: nvidia.com/gpu.product can only be NVIDIA-L40S",
        ),
        ("name: my-pool", "name: [my-pool", "line 2: is not valid YAML"),
        (POOL, "- my-pool\n", "is not a mapping of keys to values; see gripline/kube/placements"),
    ],
)
def test_mistake_in_the_file_is_told_with_file_and_field(folder: Path, old: str, new: str, told: str) -> None:
    path = folder / "pools" / "my-pool.yaml"
    assert old in POOL
    path.write_text(POOL.replace(old, new))
    assert refusal(folder / "profile.yaml").startswith(f"{path}: {told}")


def test_sections_may_be_repeated_by_an_alias(folder: Path) -> None:
    """Catches: a section that is one object in two places, replaced twice."""
    given = "  policy:\n    placement: onprem-train\n    gpus: 1\n"
    assert given in PROFILE
    text = PROFILE.replace(given, "  head: &pods\n    placement: pools/my-pool.yaml\n  policy: *pods\n")
    (folder / "profile.yaml").write_text(text.format(placement="onprem-rt"))
    cluster = profiles.load(str(folder / "profile.yaml")).cluster
    assert isinstance(cluster.head.placement, Placement) and cluster.head.placement == cluster.policy.placement


def test_files_that_cannot_be_read(folder: Path) -> None:
    for named, told in (("none.yaml", "No such file"), ("./pools", "Is a directory")):
        (folder / "profile.yaml").write_text(PROFILE.format(placement=named))
        line = refusal(folder / "profile.yaml")
        assert line.startswith(f"{folder}/profile.yaml: cluster.env.placement: ") and told in line
    assert "is a path, and this profile is no file" in refusal(PROFILE.format(placement="my-pool.yaml"))


@pytest.mark.parametrize(
    ("inline", "told"),
    [
        ("{name: x, gpu_res: y}", "cluster.env.placement.gpu_res: unknown key; did you mean 'gpu_resource'?"),
        ("{name: X}", "cluster.env.placement.name: String should match pattern"),
        ("[gke-l4]", "cluster.env.placement: must be a name, a path or a mapping, got ['gke-l4']"),
        ("null", "cluster.env.placement: must be a name, a path or a mapping, got None"),
    ],
)
def test_mistake_in_the_profile_is_told_with_its_field(folder: Path, inline: str, told: str) -> None:
    (folder / "profile.yaml").write_text(PROFILE.format(placement=inline))
    assert refusal(folder / "profile.yaml").startswith(f"{folder}/profile.yaml: {told}")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "cluster.stages=[rll]",
            "--set: cluster.stages[0]: must be 'sft', 'rl' or 'evaluate', got 'rll'",
        ),
        ("cluster.env.rendering=vulkan", "--set: cluster.env.rendering: must be 'cpu', 'egl' or 'rtx', got 'vulkan'"),
        ("cluster.env.container_env.A=1", "--set: cluster.env.container_env.A: must be a valid string, got 1; put it"),
        ("cluster.env.replica=3", "--set: cluster.env.replica: unknown key; did you mean 'replicas'?"),
        ("cluster=3", "--set: cluster: is a section, not a value"),
        ("cluster.env=3", "--set: cluster.env: is a section, not a value"),
    ],
)
def test_mistake_in_the_cluster_section(override: str, told: str) -> None:
    """Catches: a traceback for a mistake in a list or in free keys, of which the other sections have none."""
    assert refusal("laptop", override).startswith(told)


def test_preflight_checks_placements_of_stages_on_the_cluster(folder: Path) -> None:
    """Catches: an H100 for Isaac Sim that the pods find out; a laptop run that is refused for a cluster's sake."""
    mine = str(folder / "profile.yaml")
    preflight.check(profiles.load(mine), "")
    wrong = ["cluster.env.placement=gke-h100"]
    with pytest.raises(UserError, match=r"^cluster\.env\.placement 'gke-h100': node_affinity"):
        preflight.check(profiles.load(mine, wrong), "")
    preflight.check(profiles.load(mine, [*wrong, "cluster.stages=[]"]), "")


def test_a_wrong_pool_is_one_line_without_heavy_imports(folder: Path) -> None:
    path = folder / "pools" / "my-pool.yaml"
    path.write_text(POOL.replace("NVIDIA-L40S", "NVIDIA-H200"))
    script = (
        "import json, sys\nfrom pipelines.cli import main\n"
        "try:\n    main(['run', 'profile.yaml'])\n"
        "except SystemExit as ended:\n"
        "    heavy = {'torch', 'ray', 'mujoco', 'mlflow', 'kfp', 'kubernetes'} & set(sys.modules)\n"
        "    print(json.dumps([ended.code, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [2, []]
    assert done.stderr.startswith("gripline: pools/my-pool.yaml: node_affinity[0].values: NVIDIA-H200 has no RT cores")
    assert done.stderr.count("\n") == 1

"""`gripline render`: a manifest on standard output, or one line that says what to change; nothing heavy, no network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gripline.kube import names
from pipelines.cli import main

HEAVY = ("torch", "ray", "mujoco", "mlflow", "kfp", "transformers", "kubernetes", "scipy", "rich")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as ended:
        main(["render", *arguments])
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


@pytest.mark.parametrize("profile", ["cluster", "cluster-smoke"])
def test_shipped_cluster_profiles_are_accepted(profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, profile)
    assert (code, err) == (0, "")
    manifest = yaml.safe_load(out)
    assert manifest["metadata"]["labels"][names.RUN_LABEL] == profile
    groups = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["policy", "env"]


def test_options_reach_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--job", "eval-rl", "--run-name", "mine", "--store", "gs://b/runs/", "--image", "step:1"]
    _, out, _ = run(capsys, "cluster", *options, "--tracking", "http://mlflow:5000", "--set", "cluster.queue=q")
    manifest = yaml.safe_load(out)
    head = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert manifest["metadata"]["name"].startswith("mine-eval-rl-")
    assert manifest["metadata"]["labels"][names.QUEUE_LABEL] == "q"
    assert manifest["metadata"]["annotations"][names.RUN_DIR_ANNOTATION] == "gs://b/runs/mine"
    assert head["image"] == "step:1"
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in head["env"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["laptop"], "profile: cluster.stages: does not name 'rl'"),
        (["cluster", "--job", "sft"], "profile: cluster.stages: does not name 'sft'"),
        (["cluster", "--job", "demos"], "gripline render: argument --job: invalid choice"),
        (
            ["cluster", "--set", "cluster.env.rendering=rtx", "--set", "cluster.env.placement=onprem-train"],
            "onprem-train",
        ),
        (
            ["cluster", "--set", "cluster.env.container_env={A_TOKEN: x}"],
            "cluster.env.container_env.A_TOKEN: looks like",
        ),
        (["cluster", "--image", "My Image"], "profile: cluster.head.image: 'My Image' is no image"),
        (["cluster", "--tracking", "http://me:pw@host"], "--tracking: holds a password"),
        (["cluster", "--seed", "1"], "--seed: unknown option"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1
    assert "pw" not in err


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = f"""
import json, sys
from pipelines.cli import main
try:
    main(["render", "cluster"])
except SystemExit as ended:
    print(json.dumps([ended.code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]

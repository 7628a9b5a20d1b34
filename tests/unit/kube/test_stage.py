"""A stage gives the same result in its step and as a RayJob; and the launcher stays small."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, make_pod

from gripline.cluster_config import ClusterConfig, EnvGroup, PodConfig, PolicyGroup
from gripline.errors import UserError
from gripline.kube import api, launcher
from gripline.kube.jobfiles import Attempt, JobFiles, Request, Result, content_hash
from gripline.kube.stage import environment, run_stage
from gripline.stages import RunContext

FUNCTION = "played_stage:run"
HEAVY = ("torch", "ray", "mlflow", "transformers", "mujoco", "kfp", "scipy", "numpy", "matplotlib", "kubernetes")


def make_context(folder: Path) -> str:
    return RunContext(
        run_name="Laptop 1", run_dir=str(folder / "run"), tracking_uri="http://mlflow:5000", experiment="e",
        parent_run_id="p", profile_name="x", seed=1, split_hashes={},
    ).model_dump_json()  # fmt: skip


def make_cluster(**settings: Any) -> ClusterConfig:
    image = {"image": "registry/gripline:1"}
    return ClusterConfig(
        stages=("evaluate",), head=PodConfig(**image), policy=PolicyGroup(**image), env=EnvGroup(**image), **settings
    )


def run_evaluation(folder: Path, cluster: str) -> dict[str, Any]:
    (folder / "splits").write_text("the splits")
    return run_stage(
        "eval-sft",
        FUNCTION,
        cluster=cluster,
        context=make_context(folder),
        arguments={"config": "{}"},
        files={"splits_path": str(folder / "splits")},
        outputs={"results_path": str(folder / "results")},
    )


class Driver:
    """Plays operator and driver: the stage is done as soon as its RayJob exists."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = FakeCluster()
        self.cluster.on_create = self.run
        self.files = JobFiles(str(folder / "run"), "eval-sft")
        self.scratch = folder / "pod"
        self.after: Callable[[], None] = lambda: None
        monkeypatch.setattr(api, "connect", lambda namespace="": self.cluster)
        monkeypatch.setattr(launcher, "POLL_S", 0.01)

    def run(self) -> None:
        request = self.files.read(Request)
        assert request is not None and request.function == FUNCTION
        splits = self.files.download(request.files["splits_path"], self.scratch / "splits")
        import played_stage

        outputs = played_stage.run(
            **request.arguments, splits_path=str(splits), results_path=str(self.scratch / "results")
        )
        self.files.upload(self.scratch / "results", request.outputs["results_path"])
        hashes = {request.outputs["results_path"]: content_hash(self.scratch / "results")}
        self.files.write(Attempt(attempt="a", time_s=0))
        self.files.write(Result(attempt="a", outputs=outputs, files=hashes))
        self.after()
        name = next(iter(self.cluster.objects))
        self.cluster.status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    for name in ("KFP_POD_NAME", "POD_NAME", "KUBERNETES_SERVICE_HOST", "KFP_MLFLOW_CONFIG", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return Driver(tmp_path, monkeypatch)


@pytest.mark.parametrize("where", ["", ClusterConfig().model_dump_json(), make_cluster().model_dump_json()])
def test_the_result_is_the_same_wherever_it_runs(tmp_path: Path, driver: Driver, where: str) -> None:
    outputs = run_evaluation(tmp_path, where)
    assert outputs == {"context": make_context(tmp_path), "config": "{}", "success": 0.5}
    assert (tmp_path / "results").read_text() == "results of the splits"
    assert len(driver.cluster.created) == ("evaluate" in where)
    assert driver.cluster.objects == {}


def test_what_the_cluster_is_asked_for(tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = make_pod("step-7")
    pod["metadata"]["labels"] |= {"pipeline/runid": "run-7"}
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "post-training-x", "uid": "wf-uid"}
    pod["metadata"]["ownerReferences"] = [owner | {"controller": True, "blockOwnerDeletion": True}]
    driver.cluster.pod_list = [pod]
    monkeypatch.setenv("KFP_POD_NAME", "step-7")
    run_evaluation(tmp_path, make_cluster().model_dump_json())
    metadata = driver.cluster.created[0]["metadata"]
    assert metadata["ownerReferences"] == [owner], "the run, and never its pod, which may be replaced"
    assert metadata["name"].startswith("laptop-1-eval-sft-")
    request = driver.files.read(Request)
    assert request is not None
    assert request.tags == {"gripline.workflow": "post-training-x", "gripline.kfp_run_id": "run-7"}
    assert request.files["splits_path"].startswith("in/splits_path-")


def test_changed_input_is_another_request(tmp_path: Path, driver: Driver) -> None:
    """Catches: the result of other splits handed on, because the arguments have the same names."""
    run_evaluation(tmp_path, make_cluster().model_dump_json())
    run_evaluation(tmp_path, make_cluster().model_dump_json())
    assert len(driver.cluster.created) == 1, "finished already"
    (tmp_path / "splits").unlink()
    before = driver.files.read(Request)

    def run_other() -> None:
        (tmp_path / "splits").write_text("other splits")
        run_stage(
            "eval-sft", FUNCTION, cluster=make_cluster().model_dump_json(), context=make_context(tmp_path),
            arguments={"config": "{}"}, files={"splits_path": str(tmp_path / "splits")},
            outputs={"results_path": str(tmp_path / "results")},
        )  # fmt: skip

    run_other()
    after = driver.files.read(Request)
    assert before is not None and after is not None and before.files != after.files
    assert len(driver.cluster.created) == 2
    assert (tmp_path / "results").read_text() == "results of other splits"


def test_output_that_is_not_what_the_driver_wrote(tmp_path: Path, driver: Driver) -> None:
    (tmp_path / "torn").write_text("torn")
    driver.after = lambda: driver.files.upload(tmp_path / "torn", "out/results_path")
    with pytest.raises(UserError, match="out/results_path: is not what the driver wrote"):
        run_evaluation(tmp_path, make_cluster().model_dump_json())


def test_environment_of_the_pods() -> None:
    plugin = {"parentRunId": "parent", "experimentId": "3", "endpoint": "http://me:pw@mlflow", "authType": "none"}
    own = {
        "AWS_ENDPOINT_URL": "http://store:8333",
        "AWS_REGION": "",
        "AWS_SECRET_ACCESS_KEY": "never",
        "MLFLOW_TRACKING_URI": "http://me:pw@mlflow:5000",
        "MLFLOW_RUN_ID": "nested",
        "KFP_MLFLOW_CONFIG": json.dumps(plugin),
        "PATH": "/bin",
    }
    found = environment(own, "http://mlflow:5000", has_secrets=False)
    assert json.loads(found.pop("KFP_MLFLOW_CONFIG")) == {"parentRunId": "parent", "experimentId": "3"}
    assert found == {
        "AWS_ENDPOINT_URL": "http://store:8333",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_RUN_ID": "nested",
    }
    assert "MLFLOW_TRACKING_URI" not in environment(own, "http://mlflow:5000", has_secrets=True)
    without_plugin = {"MLFLOW_RUN_ID": "the user's parent"}
    assert environment(without_plugin, "u", has_secrets=False) == {"MLFLOW_TRACKING_URI": "u"}


def test_own_pod_in_another_namespace_owns_nothing() -> None:
    from gripline.kube.own_pod import OwnPod

    pod = OwnPod("me", "kubeflow", "uid", {})
    assert pod.owner("robots") is None
    assert pod.owner("kubeflow") == {"apiVersion": "v1", "kind": "Pod", "name": "me", "uid": "uid"}
    assert OwnPod().owner("") is None


def test_launcher_is_light() -> None:
    """Catches: an import that costs the waiting step hundreds of megabytes on every cluster."""
    code = f"""
import json, re, sys
import s3fs, urllib3
import gripline.kube.stage, gripline.kube.launcher, gripline.kube.own_pod, gripline.kube.rayjob
import gripline.kube.surroundings, gripline.rollout.shares
heavy = [name for name in {HEAVY!r} if name in sys.modules]
largest_kb = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss counts the parent's, too
print(json.dumps([heavy, int(largest_kb) / 1024]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy, memory_mb = json.loads(done.stdout)
    assert heavy == [] and memory_mb < 150

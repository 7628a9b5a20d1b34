"""The compiled pipeline on a Kubeflow Pipelines server: whole, terminated in its RL step, with a launcher that dies.

KFP_HOST names the API of a single-user installation on the three real nodes (../shared/cluster/kfp starts one where its
binaries are). Where its MLflow plugin is on, KFP_MLFLOW names that server. KFP_METADATA names what answers the UI's
questions about artifacts: the UI, or an Envoy before ML Metadata.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster.e2e.surroundings import BUCKET, ROOT, Servers, answers, grant, profile_text
from cluster.kube import Json, Kube, pods, rayclusters, rayjobs
from cluster.site import eventually, nothing

from gripline.kube.names import MANAGED_LABEL

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(5400)]
NAMESPACE = "kubeflow"
RUN_S = 2400.0
ITERATIONS = 16
"""Of profile.yaml."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@pytest.fixture(scope="module")
def host() -> str:
    named = os.environ.get("KFP_HOST", "").rstrip("/")
    if not named:
        pytest.skip("KFP_HOST names no Kubeflow Pipelines API")
    if not answers(f"{named}/apis/v2beta1/healthz"):
        pytest.skip(f"no Kubeflow Pipelines API answers at KFP_HOST {named}")
    return named


@dataclass(frozen=True)
class Pipelines:
    """Runs of the pipeline, as users start and look at them."""

    host: str
    kube: Kube
    images: dict[str, str]
    tracking: str

    def create(self, name: str) -> "Run":
        """`kfp run create` of the committed YAML."""
        arguments = {
            "profile": profile_text(self.images),
            "image": self.images["step"],
            "store_uri": f"s3://{BUCKET}/kfp",
            "tracking_uri": self.tracking,
            "run_name": name,
        }
        command = [str(Path(sys.executable).with_name("kfp")), "--endpoint", self.host, "run", "create"]
        command += ["-e", "gripline-e2e", "-r", name, "-f", str(ROOT / "pipelines" / "post_training.yaml")]
        command += [f"{key}={value}" for key, value in arguments.items()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = re.search(r"runs/details/([0-9a-f-]+)", done.stdout)  # the experiment's link comes before
        assert found, done.stdout
        return Run(self, name, found[1])

    @property
    def client(self) -> Any:
        import kfp

        return kfp.Client(host=self.host)


@dataclass(frozen=True)
class Run:
    pipelines: Pipelines
    name: str
    run_id: str

    @property
    def uri(self) -> str:
        """Its folder in the store."""
        return f"s3://{BUCKET}/kfp/{self.name}"

    def state(self) -> str:
        return str(self.pipelines.client.get_run(self.run_id).state)

    def ends(self) -> str:
        """The state in which it ended."""
        state: str = eventually(
            lambda: state if (state := self.state()) in ENDED else None,
            f"end of run {self.name}",
            timeout_s=RUN_S,
            every_s=5,
            context=self.log,
        )
        return state

    def step_pods(self) -> list[Json]:
        """Of the steps' own containers, without Kubeflow's drivers."""
        found = self.pipelines.kube.items(pods(NAMESPACE), f"pipeline/runid={self.run_id}")
        return [pod for pod in found if "system-container-impl" in pod["metadata"]["name"]]

    def log(self) -> str:
        """Of all steps that have begun."""
        begun = [pod for pod in self.step_pods() if pod["status"]["phase"] != "Pending"]
        names = [pod["metadata"]["name"] for pod in begun]
        return "\n".join(self.pipelines.kube.text(f"{pods(NAMESPACE, name)}/log", container="main") for name in names)

    def launcher(self) -> str:
        """Name of the pod whose step runs RL, once that is in the middle of its iterations."""

        def look() -> str | None:
            assert self.state() not in ENDED, self.log()
            for pod in self.step_pods():
                name = pod["metadata"]["name"]
                if pod["status"]["phase"] == "Running" and f"[rl] advance 1/{ITERATIONS}" in self.pipelines.kube.text(
                    f"{pods(NAMESPACE, name)}/log", container="main"
                ):
                    return name
            return None

        name: str = eventually(look, "first RL iteration", timeout_s=RUN_S, every_s=2, context=self.log)
        return name


@pytest.fixture(scope="module")
def pipelines(host: str, kube: Kube, images: dict[str, str], servers: Servers, operator: Path) -> Pipelines:
    grant(kube, NAMESPACE, servers, account="gripline-pipeline-runner")
    return Pipelines(host, kube, images, os.environ.get("KFP_MLFLOW", servers.mlflow))


def left(kube: Kube) -> list[str]:
    """What of RayJobs still takes resources, of any run."""
    found = kube.items(rayjobs(NAMESPACE)) + kube.items(rayclusters(NAMESPACE))
    found += kube.items(pods(NAMESPACE), f"{MANAGED_LABEL}=gripline")
    return [f"{item['kind']} {item['metadata']['name']}" for item in found]


@pytest.fixture(scope="module")
def finished(pipelines: Pipelines) -> Iterator[Run]:
    """A run that was left alone."""
    run = pipelines.create("whole")
    assert run.ends() == "SUCCEEDED", run.log()
    yield run


def test_a_run_goes_from_demonstrations_to_the_decision(finished: Run) -> None:
    from gripline.checkpoint import read_manifest
    from gripline.store import RunStore, fetch

    for stage in ("sft", "rl"):
        assert read_manifest(fetch(f"{finished.uri}/{stage}/checkpoint")).provenance.stage == stage
    rows = (RunStore(finished.uri).pull("rl/metrics.jsonl")).read_text().splitlines()
    assert len(rows) == ITERATIONS
    for stage in ("eval-sft", "eval-rl", "promote"):
        assert (RunStore(finished.uri).pull(f"{stage}/stage.json")).exists()


def test_nothing_of_the_whole_run_is_left(finished: Run, kube: Kube) -> None:
    nothing(lambda: left(kube), "the job", timeout_s=90)


def test_artifacts_are_where_the_ui_looks(finished: Run) -> None:
    """Catches: a page of the run without its models and its report."""
    where = os.environ.get("KFP_METADATA", "").rstrip("/")
    if not where:
        pytest.skip("KFP_METADATA names nothing that answers for ML Metadata")
    request = urllib.request.Request(
        f"{where}/ml_metadata.MetadataStoreService/GetArtifacts",
        data=bytes(5),  # an empty message, framed
        headers={"Content-Type": "application/grpc-web+proto"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        held = answer.read().decode(errors="replace")
    for name in ("policy", "improved_policy", "results", "report", "table", "metrics"):
        assert re.search(rf"{finished.run_id}/[\w-]+/[\w-]+/{name}\b", held), name
    assert f"{finished.uri}/rl/checkpoint" in held


def test_mlflow_runs_are_nested(finished: Run, pipelines: Pipelines) -> None:
    """Under the plugin's own run where it is on, else under ours."""
    from mlflow.tracking import MlflowClient

    from gripline.store import RunStore

    client = MlflowClient(pipelines.tracking)
    context = json.loads((RunStore(finished.uri).pull("context.json")).read_text())
    parent = client.get_run(context["parent_run_id"])
    runs = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    points = [client.get_metric_history(run.info.run_id, "train/success") for run in runs]
    assert sorted(map(len, points))[-1] == ITERATIONS
    if "KFP_MLFLOW" in os.environ:
        assert parent.data.tags["kfp.pipeline_run_id"] == finished.run_id


def test_a_terminated_run_leaves_nothing(pipelines: Pipelines, finished: Run, kube: Kube) -> None:
    """Catches: GPUs that are held by a run that was given up."""
    run = pipelines.create("terminated")
    run.launcher()
    assert left(kube)
    pipelines.client.terminate_run(run.run_id)
    nothing(lambda: left(kube), "the job", timeout_s=120)
    assert run.ends() in ("FAILED", "CANCELED")


def test_a_run_survives_its_launchers_pod(pipelines: Pipelines, finished: Run, kube: Kube) -> None:
    """Catches: a RayJob that goes with its launcher, or a second one beside it."""
    run = pipelines.create("bereft")
    pod = run.launcher()
    [before] = kube.items(rayjobs(NAMESPACE))
    kube.delete(pods(NAMESPACE, pod))
    eventually(lambda: kube.get(pods(NAMESPACE, pod)) is None, "end of the launcher's pod", timeout_s=60)
    [after] = kube.items(rayjobs(NAMESPACE))
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert run.ends() == "SUCCEEDED", run.log()
    nothing(lambda: left(kube), "the job", timeout_s=90)

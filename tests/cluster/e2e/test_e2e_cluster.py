"""RL on three real nodes: Meta-World in pods of the RT pool, policy and learner in one of the training pool.

The demonstrations and SFT run on this machine beforehand. Then a launcher, as a pod with its own account, starts the
RayJob; everything between them passes through an object store.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster.e2e.beginning import milestones
from cluster.e2e.surroundings import BUCKET, CPU, NAMESPACE, ROOT, RT, SECRET, TRAIN, Servers, profile_text
from cluster.kube import Json, Kube, pods, rayclusters, rayjobs
from cluster.site import eventually, nothing

from gripline.checkpoint import checkpoint_hash, read_manifest
from gripline.kube.names import JOB_LABEL, LOG_CONTAINER, ROLE_LABEL, RUN_LABEL, rayjob_name, slug
from gripline.stages import RunContext

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]
ITERATIONS = 16
"""Of profile.yaml."""
RUN_S = 1200.0
"""For a whole job, on two cores that three nodes share."""


@dataclass(frozen=True)
class Planned:
    """What `plan` and SFT left for the RL step."""

    context: str
    rl: str
    cluster: str
    policy_uri: str
    splits: Path

    @property
    def run(self) -> RunContext:
        return RunContext.model_validate_json(self.context)

    @property
    def rayjob_name(self) -> str:
        return rayjob_name(self.run.run_dir, self.run.run_name, "rl")

    @property
    def labels(self) -> str:
        return f"{RUN_LABEL}={slug(self.run.run_name)},{JOB_LABEL}=rl"


def plan(name: str, images: dict[str, str], servers: Servers, folder: Path, checkpoint_uri: str = "") -> Planned:
    """Plan a run; without a given checkpoint, demonstrate and fine-tune here and now."""
    import components.demos.collect
    import components.plan.plan
    import components.sft.train

    splits = folder / f"{name}-splits.json"
    planned = components.plan.plan.run(
        profile=profile_text(images, NAMESPACE),
        run_name=name,
        job_id=name,
        seed=-1,
        checkpoint_uri=checkpoint_uri,
        tracking_uri=servers.mlflow,
        store_uri=f"s3://{BUCKET}/runs",
        splits_path=str(splits),
        image=images["step"],
    )
    demos = folder / f"{name}-demos"
    components.demos.collect.run(config=planned.demos, demos_path=str(demos), checkpoint_uri=checkpoint_uri)
    tuned = components.sft.train.run(
        context=planned.context, config=planned.sft, demos_path=str(demos), checkpoint_uri=checkpoint_uri
    )
    return Planned(planned.context, planned.rl, planned.cluster, tuned["uri"], splits)


@dataclass
class Launcher:
    """A pod that runs the RL step, with the launcher's account, under `restricted`."""

    kube: Kube
    namespace: str
    name: str
    image: str
    planned: Planned
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = pods(self.namespace, self.name)
        planned = self.planned
        inputs = {"context": planned.context, "config": planned.rl, "cluster": planned.cluster}
        files = {
            "inputs.json": json.dumps(inputs | {"policy_uri": planned.policy_uri}),
            "splits.json": planned.splits.read_text(),
            "launch.py": (ROOT / "tests/cluster/e2e/launch.py").read_text(),
        }
        config_map = {"metadata": {"name": self.name}, "data": files}
        self.kube.create(f"/api/v1/namespaces/{self.namespace}/configmaps", config_map)
        self.kube.create(pods(self.namespace), self._pod())

    def log(self) -> str:
        return self.kube.text(f"{self.path}/log") if self.phase() != "Pending" else ""

    def phase(self) -> str:
        found = self.kube.get(self.path)
        return found["status"]["phase"] if found else "Gone"

    def until(self, text: str, timeout_s: float = RUN_S) -> None:
        """Wait for a line with this text in the step's log."""

        def look() -> bool:
            assert self.phase() not in ("Failed", "Gone"), self.log()
            return text in self.log()

        eventually(look, f"{text!r} in the step's log", timeout_s=timeout_s, every_s=1, context=self.log)

    def outputs(self) -> Json:
        """Of the stage, once the pod has succeeded."""
        eventually(lambda: self.phase() in ("Succeeded", "Failed"), "end of the step", timeout_s=RUN_S, every_s=1)
        log = self.log()
        assert self.phase() == "Succeeded", log
        found: Json = json.loads(log.splitlines()[-1].removeprefix("outputs "))
        return found

    def _pod(self) -> Json:
        container = {
            "name": "step",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "/inputs/launch.py", "/inputs"],
            "envFrom": [{"secretRef": {"name": SECRET}}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "inputs", "mountPath": "/inputs"}],
        }
        spec = {
            "serviceAccountName": "gripline-launcher",
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "inputs", "configMap": {"name": self.name}}],
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}


def ray_pods(kube: Kube, namespace: str, planned: Planned, role: str = "") -> list[Json]:
    """Of the run's Ray cluster, those that run; role: head, policy or env."""
    selector = planned.labels + (f",{ROLE_LABEL}={role}" if role else "")
    return [pod for pod in kube.items(pods(namespace), selector) if pod["status"]["phase"] == "Running"]


def ready(pod: Json) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


def beginning_of(kube: Kube, namespace: str, planned: Planned) -> dict[str, float]:
    """Of a job that has come as far as to run episodes."""
    job, [head] = kube.get(rayjobs(namespace, planned.rayjob_name)), ray_pods(kube, namespace, planned, "head")
    assert job is not None
    log = kube.text(f"{pods(namespace, head['metadata']['name'])}/log", container=LOG_CONTAINER, timestamps="true")
    return milestones(job, ray_pods(kube, namespace, planned), planned.run.run_dir, log)


def left(kube: Kube, namespace: str, planned: Planned) -> list[str]:
    """What still takes resources."""
    found = (
        kube.items(rayjobs(namespace))
        + kube.items(rayclusters(namespace))
        + kube.items(pods(namespace), planned.labels)
    )
    return [f"{item['kind']} {item['metadata']['name']}" for item in found]


def curve(planned: Planned) -> list[Json]:
    """The stage's metrics as they are in the store."""
    import fsspec

    with fsspec.open(f"{planned.run.run_dir}/rl/metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def planned(
    images: dict[str, str], servers: Servers, operator: Path, namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Planned:
    return plan("first", images, servers, tmp_path_factory.mktemp("plan"))


@dataclass(frozen=True)
class Done:
    """What was seen of a run whose env pod was deleted in its middle."""

    nodes: dict[str, set[str]]
    beginning: dict[str, float]
    deleted: str
    replaced_by: set[str]
    outputs: Json
    log: str


@pytest.fixture(scope="module")
def done(kube: Kube, namespace: str, images: dict[str, str], planned: Planned) -> Iterator[Done]:
    launcher = Launcher(kube, namespace, "launcher-first", images["step"], planned)
    roles = {"head": 1, "policy": 1, "env": 2}

    def all_ready() -> dict[str, list[Json]] | None:
        assert launcher.phase() != "Failed", launcher.log()
        found = {role: [pod for pod in ray_pods(kube, namespace, planned, role) if ready(pod)] for role in roles}
        return found if {role: len(each) for role, each in found.items()} == roles else None

    running = eventually(all_ready, "Ray's pods", timeout_s=600, every_s=1, context=launcher.log)
    nodes = {role: {pod["spec"]["nodeName"] for pod in each} for role, each in running.items()}
    launcher.until(f"[rl] advance 1/{ITERATIONS}")
    beginning = beginning_of(kube, namespace, planned)
    before = {pod["metadata"]["name"] for pod in running["env"]}
    deleted = sorted(before)[0]
    kube.delete(pods(namespace, deleted), grace_s=0)

    def new_env_pods() -> set[str]:
        return {pod["metadata"]["name"] for pod in ray_pods(kube, namespace, planned, "env") if ready(pod)} - before

    replaced_by = eventually(new_env_pods, "another env pod", timeout_s=180, every_s=1, context=launcher.log)
    yield Done(nodes, beginning, deleted, replaced_by, launcher.outputs(), launcher.log())


def test_every_pod_is_on_its_pool(done: Done) -> None:
    assert done.nodes == {"head": {CPU}, "policy": {TRAIN}, "env": {RT}}


def test_the_first_episodes_come_soon(done: Done) -> None:
    """What took how long is kept as build/cluster-start.json."""
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "cluster-start.json").write_text(json.dumps(done.beginning, indent=1) + "\n")
    assert done.beginning["first episodes are over"] < 600, done.beginning


def test_a_lost_env_pod_is_replaced_and_the_run_goes_on(done: Done, planned: Planned) -> None:
    """Catches: a run that stops, or waits for ever, with one pod less; iterations that are lost or done twice."""
    assert len(done.replaced_by) == 1 and done.deleted not in done.replaced_by
    assert done.outputs["iterations"] == ITERATIONS
    rows = curve(planned)
    assert [row["step"] for row in rows] == list(range(ITERATIONS))
    assert sum(row["rollout/faults"] for row in rows) >= 1
    assert any("learn/loss" in row for row in rows), "no group had mixed outcomes: nothing was learned"


def test_the_checkpoint_came_back_through_the_store(done: Done, planned: Planned) -> None:
    from gripline.store import fetch

    assert done.outputs["uri"] == f"{planned.run.run_dir}/rl/checkpoint"
    folder = fetch(done.outputs["uri"])
    assert checkpoint_hash(folder) == done.outputs["hash"]
    assert read_manifest(folder).provenance.parent == checkpoint_hash(fetch(planned.policy_uri))


def test_metrics_are_in_mlflow(done: Done, planned: Planned, servers: Servers) -> None:
    """Catches: a run on another server, none at all, and one that is said to go on for ever."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(servers.mlflow)
    parent = client.get_run(planned.run.parent_run_id)
    runs = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    [run] = [run for run in runs if run.info.run_name == "rl"]
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train/success")
    assert sorted(point.step for point in points) == list(range(ITERATIONS))
    assert any(artifact.path.endswith(".png") for artifact in client.list_artifacts(run.info.run_id))


def test_the_drivers_lines_are_in_the_steps_log(done: Done) -> None:
    for iteration in range(1, ITERATIONS + 1):
        assert done.log.count(f"[rl] advance {iteration}/{ITERATIONS} ") == 1


def test_nothing_is_left(done: Done, kube: Kube, namespace: str, planned: Planned) -> None:
    nothing(lambda: left(kube, namespace, planned), "the job", timeout_s=90)


def test_there_is_a_picture_of_the_run(done: Done, planned: Planned) -> None:
    """It is kept as build/cluster-trace.png."""
    from gripline.store import RunStore

    folder = RunStore(planned.run.run_dir).pull("rl/trace")
    [picture] = folder.glob("*.png")
    assert picture.stat().st_size > 10_000
    (ROOT / "build").mkdir(exist_ok=True)
    shutil.copy(picture, ROOT / "build" / "cluster-trace.png")


def test_a_second_launcher_adopts_and_a_second_driver_resumes(
    done: Done, kube: Kube, namespace: str, images: dict[str, str], planned: Planned, servers: Servers, tmp_path: Path
) -> None:
    """Catches: two jobs of one run, and one that begins anew after its head was lost."""
    again = plan("second", images, servers, tmp_path, checkpoint_uri=planned.policy_uri)
    first = Launcher(kube, namespace, "launcher-second", images["step"], again)
    first.until(f"[rl] advance 2/{ITERATIONS}")
    job = rayjobs(namespace, again.rayjob_name)
    before = kube.get(job)
    assert before is not None
    second = Launcher(kube, namespace, "launcher-third", images["step"], again)
    eventually(lambda: first.phase() in ("Succeeded", "Failed"), "end of the first launcher", timeout_s=120, every_s=1)
    after = kube.get(job)
    assert after is not None and after["metadata"]["uid"] == before["metadata"]["uid"]
    [head] = ray_pods(kube, namespace, again, "head")
    kube.delete(pods(namespace, head["metadata"]["name"]), grace_s=0)
    second.until("resumed at iteration")
    outputs = second.outputs()
    assert outputs["iterations"] == ITERATIONS
    assert [row["step"] for row in curve(again)] == list(range(ITERATIONS))
    nothing(lambda: left(kube, namespace, again), "the job", timeout_s=90)

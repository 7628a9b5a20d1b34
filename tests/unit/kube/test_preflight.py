"""What is checked before anything is spent, against an API server that is a dictionary."""

import http.server
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.kube import preflight
from gripline.kube.api import ForbiddenError, NoSuchKindError, NotFoundError, UnavailableError
from gripline.kube.cluster_checks import RIGHTS, on_cluster
from gripline.kube.preflight import account_of_steps, by_name, everything
from gripline.object_store import ObjectStore

Json = dict[str, Any]
IMAGES = {group: {"image": f"registry.example/{group}:1.0"} for group in ("head", "policy", "env")}
HOME = "/api/v1/namespaces/runs"


class FakeCluster:
    """Answers by path. What is not there is 404; `forbidden` resources are 403; `away` answers nothing."""

    namespace = "runs"

    def __init__(self) -> None:
        operator: Json = {"metadata": {"name": "kuberay-operator", "namespace": "kuberay"}}
        operator["status"] = {"availableReplicas": 1}
        self.objects: dict[str, Json] = {
            HOME: {},
            "/apis/ray.io/v1": {"resources": [{"name": "rayclusters"}, {"name": "rayjobs"}]},
            "/apis/apps/v1/deployments": {"items": [operator]},
        }
        self.node_list: list[Json] = [node("cpu-0"), node("cpu-1")]
        self.forbidden: set[str] = set()
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that the account may not."""
        self.reviews: list[Json] = []
        self.away = False

    def nodes(self) -> list[Json]:
        self._may("list", "nodes")
        return self.node_list

    def read(self, resource: str, path: str, query: Mapping[str, str] | None = None) -> Json:
        self._may("get", resource)
        if path not in self.objects:
            if path in ("/apis/ray.io/v1", "/apis/kueue.x-k8s.io"):
                raise NoSuchKindError("404 page not found")
            raise NotFoundError(f"{path} not found")
        return self.objects[path]

    def review(self, path: str, body: Json) -> Json:
        self._may("create", path.rpartition("/")[2])
        assert path == f"/apis/authorization.k8s.io/v1/{body['kind'].lower()}s"
        self.reviews.append(body)
        asked = body["spec"]["resourceAttributes"]
        assert asked["namespace"] == self.namespace
        resource = "/".join(asked[part] for part in ("resource", "subresource") if part in asked)
        return {"status": {"allowed": (asked["verb"], resource) not in self.denied}}

    def _may(self, verb: str, resource: str) -> None:
        if self.away:
            raise UnavailableError("connection refused")
        if resource in self.forbidden:
            raise ForbiddenError("no", verb, resource, self.namespace)


def node(name: str, labels: Json | None = None, gpus: int = 0, taints: list[Json] | None = None) -> Json:
    resources = {"cpu": "64", "memory": "256Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {
            "allocatable": resources,
            "capacity": resources,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def config(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"stages": ["rl"], **IMAGES, **changes})


def lines(api: FakeCluster, account: str = "", **changes: Any) -> dict[str, str]:
    """Name of each finding → its line."""
    return {found.name: found.line for found in on_cluster(config(**changes), api, account=account)}


def named(store_uri: str = "memory://runs", tracking_uri: str = "", image: str = "", **changes: Any) -> dict[str, str]:
    found = by_name(config(**changes), store_uri=store_uri, tracking_uri=tracking_uri, image=image)
    return {each.name: each.line for each in found}


def test_a_good_cluster_has_nothing_to_mend() -> None:
    api = FakeCluster()
    api.objects[f"{HOME}/secrets/store"] = {}
    api.objects["/apis/scheduling.k8s.io/v1/priorityclasses/low"] = {}
    found = lines(api, secrets=["store"], priority_class="low")
    assert {line[0] for line in found.values()} == {"✓"}, found
    assert {"namespace", "kuberay", "operator", "rights", "secret", "priority"} <= set(found)


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"secrets": ["store"]}, "secret", "kubectl create secret generic store -n runs"),
        ({"pull_secrets": ["registry"]}, "secret", "kubectl create secret docker-registry registry -n runs"),
        ({"service_account": "gripline-ray"}, "account", "gripline-ray is not there; kubectl apply -k"),
        ({"priority_class": "gripline-low"}, "priority", "gripline-low is not there; kubectl apply -k"),
        ({"cache_claim": "caches"}, "caches", "caches is not there; kubectl apply -k"),
        ({"queue": "gripline"}, "queue", "Kueue, which is not installed; leave cluster.queue empty"),
    ],
)
def test_what_the_profile_names_and_is_missing_is_told_with_its_remedy(changes: Json, name: str, text: str) -> None:
    """Catches: a run that waits for a Secret which nobody made."""
    line = lines(FakeCluster(), **changes)[name]
    assert line.startswith("✗") and text in line


def test_what_may_not_be_read_is_not_called_wrong() -> None:
    """The step's own account may read no Secret and no node: it must not refuse the run for that."""
    api = FakeCluster()
    api.forbidden = {"namespaces", "nodes", "deployments", "secrets", "priorityclasses", "persistentvolumeclaims"}
    found = lines(api, secrets=["store"], priority_class="low", cache_claim="caches")
    assert {line[0] for name, line in found.items() if name not in ("kuberay", "rights")} == {"–"}
    assert "no permission to get secrets" in found["secret"]


def test_a_silent_api_server_is_told_once() -> None:
    api = FakeCluster()
    api.away = True
    (line,) = lines(api).values()
    assert line.startswith("–") and "connection refused" in line


def test_a_cluster_without_kuberay() -> None:
    api = FakeCluster()
    del api.objects["/apis/ray.io/v1"]
    api.objects["/apis/apps/v1/deployments"] = {"items": []}
    found = lines(api)
    assert found["kuberay"].startswith("✗") and "helm install" in found["kuberay"]
    assert found["operator"].startswith("–")


def test_an_operator_without_a_pod() -> None:
    api = FakeCluster()
    api.objects["/apis/apps/v1/deployments"]["items"][0]["status"] = {}
    line = lines(api)["operator"]
    assert line.startswith("✗") and "kubectl describe deployment kuberay-operator -n kuberay" in line


def test_missing_rights_are_named() -> None:
    api = FakeCluster()
    api.denied = {("create", "rayjobs"), ("delete", "rayjobs"), ("get", "pods/log")}
    line = lines(api)["rights"]
    assert line.startswith("✗") and "create/delete rayjobs, get pods/log in runs" in line
    assert len(api.reviews) == sum(len(verbs) for _, _, verbs in RIGHTS)
    assert {body["kind"] for body in api.reviews} == {"SelfSubjectAccessReview"}


def test_rights_are_asked_for_the_account_that_will_launch() -> None:
    """Catches: a person's own rights taken for those of the pipeline's steps."""
    api = FakeCluster()
    assert lines(api, account="kubeflow/pipeline-runner")["rights"].startswith("✓ rights")
    assert {body["spec"]["user"] for body in api.reviews} == {"system:serviceaccount:kubeflow:pipeline-runner"}
    assert all("system:serviceaccounts:kubeflow" in body["spec"]["groups"] for body in api.reviews)


@pytest.mark.parametrize(
    ("modes", "replicas", "nodes", "mark"),
    [
        (["ReadWriteMany"], 4, 2, "✓"),
        (["ReadWriteOnce"], 1, 2, "✓"),
        (["ReadWriteOnce"], 4, 1, "✓"),
        (["ReadWriteOnce"], 4, 2, "✗"),
    ],
)
def test_a_claim_that_env_pods_on_several_nodes_cannot_share(
    modes: list[str], replicas: int, nodes: int, mark: str
) -> None:
    api = FakeCluster()
    api.node_list = [node(f"cpu-{number}") for number in range(nodes)]
    api.objects[f"{HOME}/persistentvolumeclaims/caches"] = {"spec": {"accessModes": modes}}
    env = IMAGES["env"] | {"replicas": replicas}
    assert lines(api, cache_claim="caches", env=env)["caches"][0] == mark


def test_room_on_the_nodes() -> None:
    """Catches: a run that waits for GPUs that the cluster does not have; one refused where an autoscaler adds them."""
    api = FakeCluster()
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    rt = [node(f"rt-{n}", {"nvidia.com/gpu.product": "NVIDIA-L40S"}, 4, [taint]) for n in range(2)]
    env = IMAGES["env"] | {"placement": "onprem-rt", "gpus": 1, "rendering": "rtx", "replicas": 8}
    assert lines(api, env=env)["nodes"].startswith(
        "✗ nodes       cluster.env: 8 pods of placement 'onprem-rt', room for 0"
    )
    api.node_list += rt
    assert lines(api, env=env)["nodes"].startswith("✓ nodes       4, with room")
    api.node_list.pop()
    assert "8 pods of placement 'onprem-rt', room for 4 now" in lines(api, env=env)["nodes"]
    api.node_list[0]["metadata"]["labels"] = {"karpenter.sh/nodepool": "default"}
    line = lines(api, env=env)["nodes"]
    assert line.startswith("–") and "an autoscaler may add nodes" in line


def test_a_queue_that_admits_nothing() -> None:
    api = FakeCluster()
    api.objects["/apis/kueue.x-k8s.io"] = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}
    path = "/apis/kueue.x-k8s.io/v1beta2/namespaces/runs/localqueues/gripline"
    assert lines(api, queue="gripline")["queue"].startswith("✗ queue       gripline is not there; kubectl apply -k")
    condition = {"type": "Active", "status": "False", "message": "ClusterQueue is missing"}
    api.objects[path] = {"status": {"conditions": [condition]}}
    assert "admits nothing: ClusterQueue is missing" in lines(api, queue="gripline")["queue"]
    condition["status"] = "True"
    assert lines(api, queue="gripline")["queue"].startswith("✓")


def test_images_must_be_named_and_pinned() -> None:
    assert named()["images"].startswith("✓")
    nameless = {"head": {}, "env": {}}
    assert "none named for head, env; give --image" in named(**nameless)["images"]
    assert "head registry.example/step:2" in named(image="registry.example/step:2", **nameless)["images"]
    for image in ("registry.example:5000/env", "registry.example/env:latest"):
        assert named(env={"image": image})["images"].startswith("✗")
    assert named(env={"image": f"registry.example/env@sha256:{'0' * 64}"})["images"].startswith("✓")


def test_a_rayjob_that_would_be_refused_is_told() -> None:
    """Catches: a profile whose mistake shows when training is done and the evaluation's RayJob is refused."""
    assert "rl can be rendered" in named()["rayjob"]
    line = named(env=IMAGES["env"] | {"placement": "onprem-train", "gpus": 1, "rendering": "rtx"})["rayjob"]
    assert line.startswith("✗") and "RT cores" in line
    assert "rayjob" not in named(stages=[])


def test_images_that_no_node_can_pull() -> None:
    """On a laptop's cluster, images are loaded onto the nodes; elsewhere, pods would wait for them."""
    loaded = {group: {"image": f"{group}:1.0"} for group in IMAGES}
    assert named(**loaded)["images"].startswith("–")
    assert named(env={"image": "localhost/env:1.0"})["images"].startswith("–")
    assert named(pull_policy="Always", **loaded)["images"].startswith("✗")


def test_without_a_cluster_it_is_said_what_was_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    found = list(everything(config(), store_uri="memory://runs", tracking_uri="", image=""))
    assert found[-1].name == "cluster" and found[-1].mark == "–" and "no cluster is known" in found[-1].text


def test_the_account_of_steps() -> None:
    assert account_of_steps("") == "kubeflow/pipeline-runner"
    assert account_of_steps("team-a") == "team-a/default-editor"


def test_the_store_is_written_to_and_left_as_it_was() -> None:
    assert named(store_uri="memory://probed/runs")["store"].startswith("✓")
    assert fsspec.filesystem("memory").find("/probed") == []


@pytest.mark.parametrize("uri", ["/data/runs", "file:///data/runs", "runs"])
def test_a_folder_is_no_store_for_pods(uri: str) -> None:
    assert "which the pods of a cluster do not share; name a bucket" in named(store_uri=uri)["store"]


def test_an_unknown_scheme_is_wrong_and_an_unreachable_store_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a run refused because this machine has no credentials, which the pods have."""
    line = named(store_uri="gopher://runs")["store"]
    assert line.startswith("✗") and "Protocol not known" in line

    def fails(error: Exception) -> str:
        def write(store: ObjectStore, name: str, content: bytes) -> None:
            raise UserError(store.uri, "", f"cannot be used: {error}", "check it") from error

        monkeypatch.setattr(ObjectStore, "write", write)
        return named(store_uri="s3://bucket/runs")["store"]

    assert fails(FileNotFoundError("The specified bucket does not exist")).startswith("✗")
    for error in (PermissionError("Access Denied"), OSError("no route"), ImportError("Install s3fs")):
        line = fails(error)
        assert line.startswith("–") and str(error) in line and "the step `plan` finds out" in line


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(preflight, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(preflight, "_write_and_delete", lambda uri: waiting.wait(30))
    line = named(store_uri="s3://bucket/runs")["store"]
    waiting.set()
    assert line.startswith("–") and "no answer" in line


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP server whose answer's status is `server.status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            self.send_response(listening.status)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    listening = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield listening
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize(("status", "mark"), [(200, "✓"), (401, "✓"), (403, "✓"), (404, "✗"), (502, "✗")])
def test_mlflow(server: Any, status: int, mark: str) -> None:
    """One that asks for a password is there; what it is, the pods know."""
    server.status = status
    assert named(tracking_uri=f"http://127.0.0.1:{server.server_port}/")["mlflow"][0] == mark


def test_mlflow_elsewhere(tmp_path: Path) -> None:
    assert named()["mlflow"].startswith("–")
    assert named(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")["mlflow"].startswith("✗")
    line = named(tracking_uri="http://me:secret@127.0.0.1:9")["mlflow"]
    assert line.startswith("–") and "secret" not in line

"""Which pod this is, whom a RayJob goes with, and whether another pod follows."""

from pathlib import Path

import pytest
from fake_cluster import FakeCluster, make_pod

from gripline.kube import api, own_pod
from gripline.kube.api import UnavailableError
from gripline.kube.own_pod import OwnPod, find_own_pod

WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-1", "uid": "wf-uid"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    for name in ("KFP_POD_NAME", "POD_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeCluster()
    fake.pod_list = [make_pod("me")]
    return fake


def test_outside_of_a_cluster_there_is_none(cluster: FakeCluster) -> None:
    pod = find_own_pod(cluster)
    assert pod == OwnPod() and pod.owner("robots") is None and not pod.is_replaced(cluster) and pod.tags == {}


@pytest.mark.parametrize("variable", ["KFP_POD_NAME", "POD_NAME"])
def test_named_by_its_environment(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "me")
    pod = find_own_pod(cluster)
    assert pod.owner("robots") == {"apiVersion": "v1", "kind": "Pod", "name": "me", "uid": "uid-of-me"}
    assert pod.owner("elsewhere") is None, "an owner must be of the same namespace"


def test_pod_of_a_pipeline_never_owns(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a RayJob that is collected with the pod that was evicted, so that its successor finds none."""
    cluster.pod_list[0]["metadata"]["ownerReferences"] = [WORKFLOW | {"controller": True}]
    monkeypatch.setenv("KFP_POD_NAME", "me")
    assert find_own_pod(cluster).owner("robots") == WORKFLOW


def test_named_by_its_host_name(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("robots\n")
    monkeypatch.setattr(own_pod.socket, "gethostname", lambda: "me")
    assert find_own_pod(cluster).name == "me"
    monkeypatch.setattr(own_pod.socket, "gethostname", lambda: "node-7")  # a pod in its node's network
    assert find_own_pod(cluster) == OwnPod()


def test_replaced(cluster: FakeCluster) -> None:
    pod = OwnPod("me", "robots", "uid-of-me")
    assert not pod.is_replaced(cluster)
    cluster.errors["get", "pods"] = UnavailableError("timeout")
    assert not pod.is_replaced(cluster), "then the job is deleted: it would be made again, and nothing is left behind"
    cluster.errors = {}
    cluster.pod_list[0]["metadata"]["deletionTimestamp"] = "now"
    assert pod.is_replaced(cluster)
    cluster.pod_list = []
    assert pod.is_replaced(cluster)

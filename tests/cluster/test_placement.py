"""On the real API server and scheduler: what is rendered is accepted; its pods land where they should, or nowhere."""

import time
from collections import Counter
from typing import Any

import pytest
from cluster import kube as paths
from cluster.kube import Json, KubeError
from cluster.operator_standin import wanted_pods
from cluster.site import SMALL, SMALL_CLUSTER, Site, eventually

from gripline.cluster_config import ClusterConfig
from gripline.kube.rayjob import Job, render

pytestmark = pytest.mark.cluster

CPU_NODES = {"cpu-0", "cpu-1"}
L40S_NODES = {"rt-l40s-0", "rt-l40s-1"}


def manifest(site: Site, job: str = "rl", **cluster: Any) -> Json:
    """A rendered RayJob in the site's namespace."""
    config = ClusterConfig.model_validate(SMALL_CLUSTER | {"namespace": site.namespace} | cluster)
    return render(Job("a run", "s3://bucket/runs/a", job, config, env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"}))


def pods_of(rendered: Json) -> dict[str, Json]:
    """The pods that the operator makes of a RayJob, by name."""
    meta = {"name": rendered["metadata"]["name"], "namespace": rendered["metadata"]["namespace"], "uid": "u"}
    return wanted_pods({"metadata": meta, "spec": rendered["spec"]["rayClusterSpec"]})


def gpu_group(placement: str, gpus: int, **more: Any) -> Json:
    return SMALL | {"placement": placement, "gpus": gpus, "replicas": 1} | more


def scheduled(site: Site, num_pods: int) -> dict[str, str]:
    """Where the scheduler put the job's pods, by group; 'Pending' for those that it looked at and found no node for."""

    def look() -> dict[str, str]:
        found = site.kube.items(paths.pods(site.namespace))
        nodes = {pod["metadata"]["name"]: _node(pod) for pod in found}
        return nodes if len(nodes) == num_pods and all(nodes.values()) else {}

    places: dict[str, str] = eventually(look, "decision of the scheduler")
    return {name.split("-", 1)[1]: node for name, node in places.items()}


def _node(pod: Json) -> str:
    if "nodeName" in pod["spec"]:
        return str(pod["spec"]["nodeName"])
    conditions = {each["type"]: each for each in pod["status"].get("conditions", [])}
    return "Pending" if conditions.get("PodScheduled", {}).get("reason") == "Unschedulable" else ""


def by_group(places: dict[str, str]) -> dict[str, Counter[str]]:
    """Node counts of head, policy and env."""
    groups = {group: Counter[str]() for group in ("head", "policy", "env")}
    for name, node in places.items():
        groups[next(group for group in groups if f"-{group}" in name)][node] += 1
    return groups


CLUSTERS: dict[str, Json] = {
    "cpu": {},
    "egl on shared GPUs": {"env": gpu_group("onprem-shared", 1, rendering="egl")},
    "rtx": {"env": gpu_group("onprem-rt", 1, rendering="rtx", container_env={"ACCEPT_EULA": "Y"})},
    "training GPUs": {"policy": gpu_group("onprem-train", 2, learner_gpus=1.0, servers_per_pod=2)},
    "GKE": {"env": gpu_group("gke-l4", 1, rendering="egl")},
    "Karpenter": {"env": gpu_group("eks-karpenter-rt", 1, rendering="rtx")},
    "secrets and caches": {"secrets": ["store"], "pull_secrets": ["registry"], "cache_claim": "caches"},
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_objects_are_accepted(site: Site, name: str) -> None:
    """Catches: a field that the CRD does not know, a pod that `restricted` refuses, with what KubeRay adds to it."""
    for job in ("rl", "sft", "eval-rl"):
        rendered = manifest(site, job, stages=["sft", "rl", "evaluate"], **CLUSTERS[name])
        site.kube.create(paths.rayjobs(site.namespace), rendered, dry_run=True)
        for pod in pods_of(rendered).values():
            pod["metadata"].pop("ownerReferences")
            site.kube.create(paths.pods(site.namespace), pod, dry_run=True)


def test_what_is_wrong_is_refused(site: Site) -> None:
    """Catches: a test above that is blind: unknown fields are taken, or the namespace is not `restricted`."""
    rendered = manifest(site)
    rendered["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["tolerance"] = []
    with pytest.raises(KubeError, match="tolerance"):
        site.kube.create(paths.rayjobs(site.namespace), rendered, dry_run=True)
    pod = next(iter(pods_of(manifest(site)).values()))
    pod["metadata"].pop("ownerReferences")
    pod["spec"]["containers"][0].pop("securityContext")
    with pytest.raises(KubeError, match="restricted"):
        site.kube.create(paths.pods(site.namespace), pod, dry_run=True)


@pytest.mark.parametrize(
    ("cluster", "policy_nodes", "env_nodes"),
    [
        ({}, CPU_NODES, CPU_NODES),
        (
            {
                "policy": gpu_group("onprem-train", 2, learner_gpus=1.0),
                "env": gpu_group("onprem-rt", 1, rendering="rtx", replicas=3),
            },
            {"train-h200-0"},
            L40S_NODES,
        ),
        ({"env": gpu_group("onprem-shared", 1, rendering="egl")}, CPU_NODES, {"rt-l4-shared-0", *L40S_NODES}),
        ({"env": gpu_group("gke-l4", 1, rendering="egl")}, CPU_NODES, {"gke-l4-0"}),
        ({"env": gpu_group("eks-karpenter-rt", 4, rendering="rtx")}, CPU_NODES, {"eks-g6e-0"}),
    ],
    ids=["cpu", "train-and-rt", "shared", "gke", "karpenter"],
)
def test_pods_land_on_their_pools(site: Site, cluster: Json, policy_nodes: set[str], env_nodes: set[str]) -> None:
    rendered = manifest(site, **cluster)
    site.kube.create(paths.rayjobs(site.namespace), rendered)
    places = by_group(scheduled(site, len(pods_of(rendered))))
    for group, nodes in {"head": CPU_NODES, "policy": policy_nodes, "env": env_nodes}.items():
        assert places[group] and set(places[group]) <= nodes, group


@pytest.mark.parametrize(
    ("env", "room"),
    [
        (gpu_group("onprem-rt", 4, rendering="rtx", replicas=3), {"rt-l40s-0": 1, "rt-l40s-1": 1}),
        (gpu_group("gke-l4", 1, rendering="egl", replicas=2), {"gke-l4-0": 1}),
        (gpu_group("eks-karpenter-rt", 4, rendering="rtx", replicas=2), {"eks-g6e-0": 1}),
    ],
    ids=["onprem", "gke", "karpenter"],
)
def test_pods_stay_pending_when_only_a_wrong_gpu_is_free(site: Site, env: Json, room: dict[str, int]) -> None:
    """Catches: an Isaac pod on an H200, a MIG slice or a time-shared card, all of which are free here."""
    rendered = manifest(site, env=env)
    site.kube.create(paths.rayjobs(site.namespace), rendered)
    assert by_group(scheduled(site, len(pods_of(rendered))))["env"] == Counter(room) + Counter(Pending=1)
    time.sleep(2)
    assert by_group(scheduled(site, len(pods_of(rendered))))["env"]["Pending"] == 1


def test_env_pods_do_not_take_training_gpus_nor_the_reverse(site: Site) -> None:
    """Catches: a policy pod on an L40S when every H200 is taken."""
    rendered = manifest(site, policy=gpu_group("onprem-train", 8, replicas=2))
    site.kube.create(paths.rayjobs(site.namespace), rendered)
    places = by_group(scheduled(site, len(pods_of(rendered))))
    assert places["policy"] == Counter({"train-h200-0": 1, "Pending": 1})

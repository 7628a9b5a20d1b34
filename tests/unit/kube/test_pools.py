"""Pools: what the nodes of a cluster say, and which placement a node of them takes."""

from typing import Any

import pytest
from catalogue import CATALOGUE, GFD, PRESENT, node
from hypothesis import given
from hypothesis import strategies as st

from gripline.cluster_config import ClusterConfig, Placement, Requirement, Toleration
from gripline.kube.placement import shipped
from gripline.kube.pools import Pool, fitting, misfit, pools, shortfalls

NODES = sorted(CATALOGUE)


def pool_of(*nodes: dict[str, Any]) -> Pool:
    (pool,) = pools(nodes)
    return pool


@pytest.mark.parametrize(
    ("name", "fits", "unfit"),
    [
        ("cpu", ["cpu"], []),
        ("l40s", ["onprem-rt"], []),
        ("h200", ["onprem-train"], ["rtx"]),
        ("a100-mig", [], ["rtx", "egl"]),
        ("l4-shared", ["onprem-shared"], ["rtx", "policy"]),
        ("gke-l4", ["gke-l4"], []),
        ("gke-l4-shared", ["gke-l4"], ["rtx", "policy"]),
        ("gke-rtx-pro-6000", ["gke-rtx-pro-6000"], []),
        ("gke-a100", ["gke-a100"], ["rtx"]),
        ("gke-h100", ["gke-h100"], ["rtx"]),
        ("gke-h100-mig", ["gke-h100"], ["rtx", "egl"]),
        ("gke-h200", ["gke-h200"], ["rtx"]),
        ("karpenter-l40s", ["eks-karpenter-rt"], []),
        ("karpenter-h100", ["eks-karpenter-train"], ["rtx"]),
        ("auto-l4", ["eks-auto-rt"], []),
        ("auto-b200", ["eks-auto-train"], ["rtx"]),
        ("eks-g6e", ["eks-rt"], []),
        ("eks-p5", ["eks-train"], ["rtx"]),
        ("aks-a10", ["aks-a10"], []),
        ("aks-a10-part", [], ["rtx"]),
        ("aks-rtx-pro", ["aks-rtx-pro-6000"], []),
        ("aks-a100", ["aks-a100"], ["rtx"]),
        ("aks-h100", ["aks-h100"], ["rtx"]),
        ("mig-mixed", [], ["rtx", "egl"]),
        ("unlabelled", [], ["rtx"]),
    ],
)
def test_each_kind_of_node(name: str, fits: list[str], unfit: list[str]) -> None:
    """Catches: a placement that takes the nodes of another, a use that a pool is wrongly praised for."""
    pool = pool_of(CATALOGUE[name])
    assert fitting(pool) == fits
    assert sorted(pool.unfit()) == sorted(unfit)


def test_every_node_of_the_catalogue_is_tried() -> None:
    (marker,) = test_each_kind_of_node.pytestmark
    assert sorted(row[0] for row in marker.args[1]) == NODES


def test_alike_nodes_are_one_pool() -> None:
    """Catches: a pool for each node, or L40S nodes with and without a taint thrown together."""
    more = [node(f"rt-l40s-{index}", {GFD: "NVIDIA-L40S"}, 4, PRESENT) for index in (1, 2)]
    bare = node("rt-l40s-3", {GFD: "NVIDIA-L40S"}, 2)
    found = pools([CATALOGUE["cpu"], bare, *more, CATALOGUE["l40s"]])
    assert [(len(pool.nodes), pool.gpus) for pool in found] == [
        (3, {"nvidia.com/gpu": 12}),
        (1, {"nvidia.com/gpu": 2}),
        (1, {}),
    ]
    assert pools([]) == []


@given(st.lists(st.sampled_from(NODES)))
def test_no_node_is_lost(names: list[str]) -> None:
    nodes = [CATALOGUE[name] for name in names]
    found = pools(nodes)
    assert sum(len(pool.nodes) for pool in found) == len(nodes)
    count = sum(int(each["status"]["allocatable"].get("nvidia.com/gpu", 0)) for each in nodes)
    assert sum(pool.gpus.get("nvidia.com/gpu", 0) for pool in found) == count


@given(st.sampled_from(NODES), st.sampled_from(sorted(shipped())), st.integers(0, 16))
def test_more_demands_never_help(name: str, placed: str, gpus: int) -> None:
    """Catches: a requirement, a toleration or a GPU count that is read the wrong way round."""
    pool, place = pool_of(CATALOGUE[name]), shipped()[placed]
    fits = not misfit(pool, place, gpus)
    stricter = place.model_copy(update={"node_affinity": (*place.node_affinity, Requirement(label="a", values=("b",)))})
    everywhere = place.model_copy(
        update={"tolerations": tuple(Toleration(key=key) for key in ("nvidia.com/gpu", "sku")) + place.tolerations}
    )
    assert misfit(pool, stricter, gpus)
    assert not fits or not misfit(pool, everywhere, gpus)
    assert not fits or not misfit(pool, place, max(gpus - 1, 0))


def test_why_a_pool_does_not_take_a_pod() -> None:
    l40s, rt = pool_of(CATALOGUE["l40s"]), shipped()["onprem-rt"]
    assert misfit(l40s, rt, 4) == ""
    assert misfit(l40s, rt, 5) == "offers 4 nvidia.com/gpu"
    assert misfit(l40s, shipped()["gke-l4"]) == "label cloud.google.com/gke-accelerator is not set"
    assert misfit(l40s, shipped()["onprem-train"]) == "label nvidia.com/gpu.product is NVIDIA-L40S"
    assert misfit(l40s, shipped()["cpu"]) == "taint nvidia.com/gpu=present:NoSchedule is not tolerated"
    mixed = pool_of(CATALOGUE["mig-mixed"])
    assert misfit(mixed, shipped()["onprem-train"]) == "offers no nvidia.com/gpu"
    mig = shipped()["onprem-train"].model_copy(update={"gpu_resource": "nvidia.com/mig-1g.10gb"})
    assert misfit(mixed, mig) == ""


@pytest.mark.parametrize(
    ("taint", "toleration", "kept_off"),
    [
        ({"key": "a", "effect": "NoSchedule"}, {"key": "a"}, False),
        ({"key": "a", "value": "x", "effect": "NoSchedule"}, {"key": "a"}, False),
        ({"key": "a", "value": "x", "effect": "NoSchedule"}, {"key": "a", "value": "x"}, False),
        ({"key": "a", "value": "x", "effect": "NoSchedule"}, {"key": "a", "value": "y"}, True),
        ({"key": "a", "effect": "NoExecute"}, {"key": "a"}, True),
        ({"key": "a", "effect": "NoExecute"}, {"key": "a", "effect": ""}, False),
        ({"key": "b", "effect": "NoSchedule"}, {"key": "a"}, True),
        ({"key": "b", "effect": "PreferNoSchedule"}, {"key": "a"}, False),
    ],
)
def test_taints_are_read_as_the_scheduler_does(
    taint: dict[str, str], toleration: dict[str, str], kept_off: bool
) -> None:
    tainted = node("n", {})
    tainted["spec"]["taints"] = [taint]
    place = Placement.model_validate({"name": "mine", "tolerations": [toleration]})
    assert bool(misfit(pool_of(tainted), place)) == kept_off


def test_a_cordoned_node_takes_nothing() -> None:
    cordoned = node("rt-l40s-9", {GFD: "NVIDIA-L40S"}, 4)
    cordoned["spec"]["unschedulable"] = True
    assert "node.kubernetes.io/unschedulable:NoSchedule" in misfit(pool_of(cordoned), shipped()["onprem-rt"])


def test_nodes_without_the_usual_fields() -> None:
    """Catches: a traceback for a node that has just joined."""
    pool = pool_of({"metadata": {"name": "new"}})
    assert (pool.gpu, pool.gpus, fitting(pool)) == (None, {}, ["cpu"])
    dead = pool_of({"metadata": {"name": "dead", "labels": {GFD: "NVIDIA-L40S"}}, "spec": {}, "status": {}})
    assert dead.gpu is not None and dead.gpus == {}
    assert misfit(dead, shipped()["onprem-rt"]) == "offers no nvidia.com/gpu"


def test_what_does_not_fit_now_is_told() -> None:
    """Catches: a run that waits for a pool that the cluster does not have."""
    cluster = ClusterConfig.model_validate(
        {
            "policy": {"placement": "onprem-train", "gpus": 4, "replicas": 2},
            "env": {"placement": "onprem-rt", "gpus": 1, "replicas": 4, "rendering": "rtx"},
        }
    )
    nodes = [CATALOGUE["cpu"], CATALOGUE["h200"], CATALOGUE["l40s"]]
    assert shortfalls(cluster, pools(nodes)) == []
    assert shortfalls(cluster, pools(nodes[1:])) == [
        "cluster.head: 1 pods of placement 'cpu', room for 0 now "
        "(taint nvidia.com/gpu=present:NoSchedule is not tolerated)"
    ]
    more = cluster.model_copy(update={"env": cluster.env.model_copy(update={"replicas": 5})})
    assert shortfalls(more, pools(nodes)) == ["cluster.env: 5 pods of placement 'onprem-rt', room for 4 now"]
    assert len(shortfalls(cluster, [])) == 3 and "the cluster has no nodes" in shortfalls(cluster, [])[0]

"""The pools that a cluster has, as its nodes tell, and which placement fits which.

Counts are what a node can give out in all (allocatable), what runs there already included. A pool that an autoscaler
has scaled to zero has no nodes and is not seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gripline.cluster_config import ClusterConfig, EnvGroup, Placement, PolicyGroup, Requirement, Toleration
from gripline.kube.placement import placement, pods_of, shipped
from gripline.kube.products import USES, Gpu, Use, combined, gpu_of_node, gpu_of_resource

GPU_VENDORS = ("nvidia.com/", "amd.com/", "habana.ai/", "gpu.intel.com/")
"""Prefixes of the extended resources that are GPUs."""
UNSCHEDULABLE = ("node.kubernetes.io/unschedulable", "", "NoSchedule")
"""The taint of a cordoned node."""
Taint = tuple[str, str, str]
"""Key, value, effect."""


@dataclass(frozen=True)
class Node:
    name: str
    labels: Mapping[str, str]
    taints: frozenset[Taint]
    """Only those that keep pods off."""
    gpus: Mapping[str, int]
    """Allocatable units of each GPU resource that it has any of."""

    @property
    def gpu(self) -> Gpu | None:
        """What its labels and resources say; None: no GPU."""
        told = gpu_of_node(self.labels)
        if told is None:
            told = Gpu("GPU without a label") if self.gpus else None
        if told is None or not self.gpus:
            return told
        resources = [gpu_of_resource(name) for name in sorted(self.gpus)]
        return combined(told, *resources) if all(one.form != "whole" for one in resources) else told


@dataclass(frozen=True)
class Pool:
    """Nodes that are alike to a pod: the same GPU, the same taints, the same GPU resources."""

    gpu: Gpu | None
    taints: frozenset[Taint]
    nodes: tuple[Node, ...]

    @property
    def gpus(self) -> dict[str, int]:
        """Allocatable units of each GPU resource, over all nodes."""
        names = {name for node in self.nodes for name in node.gpus}
        return {name: sum(node.gpus.get(name, 0) for node in self.nodes) for name in sorted(names)}

    def unfit(self) -> dict[Use, str]:
        """What it cannot be used for, and why."""
        if self.gpu is None:
            return {}
        found = {use: self.gpu.obstacle(use) for use in USES}
        if self.gpu.rt_cores is None and not found["rtx"]:
            found["rtx"] = "is not known to have RT cores"
        return {use: reason for use, reason in found.items() if reason}


def pools(nodes: Iterable[Mapping[str, Any]]) -> list[Pool]:
    """The pools of a cluster, those with the most GPUs first.

    nodes: Node objects as the Kubernetes API gives them.
    """
    groups: dict[tuple[Gpu | None, frozenset[Taint], frozenset[str]], list[Node]] = {}
    for node in map(_node, nodes):
        groups.setdefault((node.gpu, node.taints, frozenset(node.gpus)), []).append(node)
    found = [Pool(gpu, taints, tuple(members)) for (gpu, taints, _), members in groups.items()]
    return sorted(found, key=lambda pool: (-sum(pool.gpus.values()), -len(pool.nodes), pool.nodes[0].name))


def misfit(pool: Pool, placement: Placement, gpus: int = 1) -> str:
    """Why no node of the pool takes a pod with this placement; empty: one does.

    gpus: that the pod asks for; not counted where the placement has no GPU resource.
    """
    reasons = [_node_misfit(node, placement, gpus) for node in pool.nodes]
    return "" if "" in reasons else reasons[0]


def fitting(pool: Pool) -> list[str]:
    """The shipped placements that a node of the pool takes; that without GPUs only where there is none to waste."""
    return [name for name, one in shipped().items() if not misfit(pool, one) and (one.gpu_resource or not pool.gpu)]


def shortfalls(cluster: ClusterConfig, found: Iterable[Pool]) -> list[str]:
    """One line for each kind of pod of which the nodes cannot hold all, were they empty and the others not there.

    Only a warning: an autoscaler may add nodes. Raises UserError for a placement that does not exist.
    """
    nodes = [node for pool in found for node in pool.nodes]
    lines = []
    for field, pods in pods_of(cluster).items():
        wanted, gpus = (pods.replicas, pods.gpus) if isinstance(pods, PolicyGroup | EnvGroup) else (1, 0)
        place = placement(pods.placement, where=f"cluster.{field}.placement")
        reasons = [_node_misfit(node, place, gpus) for node in nodes]
        takers = [node for node, reason in zip(nodes, reasons, strict=True) if not reason]
        room = sum(node.gpus.get(place.gpu_resource, 0) // gpus for node in takers) if gpus else wanted * bool(takers)
        if room < wanted:
            why = "" if takers else f" ({_most_common(reasons)})"
            lines.append(f"cluster.{field}: {wanted} pods of placement {place.name!r}, room for {room} now{why}")
    return lines


def _node(node: Mapping[str, Any]) -> Node:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    taints = {(taint["key"], taint.get("value") or "", taint["effect"]) for taint in spec.get("taints") or ()}
    if spec.get("unschedulable"):
        taints.add(UNSCHEDULABLE)
    allocatable = status.get("allocatable") or {}
    gpus = {name: int(count) for name, count in allocatable.items() if name.startswith(GPU_VENDORS)}
    return Node(
        name=node["metadata"]["name"],
        labels=node["metadata"].get("labels") or {},
        taints=frozenset(taint for taint in taints if taint[2] in ("NoSchedule", "NoExecute")),
        gpus={name: count for name, count in gpus.items() if count > 0},
    )


def _node_misfit(node: Node, placement: Placement, gpus: int) -> str:
    for requirement in placement.node_affinity:
        if not _satisfied(node, requirement):
            return f"label {requirement.label} is {node.labels.get(requirement.label, 'not set')}"
    for taint in sorted(node.taints):
        if not any(_tolerates(toleration, taint) for toleration in placement.tolerations):
            return f"taint {told(taint)} is not tolerated"
    resource = placement.gpu_resource
    if resource and gpus:
        count = node.gpus.get(resource, 0)
        if count < gpus:
            return f"offers {count or 'no'} {resource}"
    return ""


def told(taint: Taint) -> str:
    """As kubectl writes it."""
    key, value, effect = taint
    return f"{key}={value}:{effect}" if value else f"{key}:{effect}"


def _satisfied(node: Node, requirement: Requirement) -> bool:
    return requirement.label in node.labels and node.labels[requirement.label] in requirement.values


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    key, value, effect = taint
    return toleration.key == key and toleration.value in ("", value) and toleration.effect in ("", effect)


def _most_common(reasons: list[str]) -> str:
    return max(sorted(set(reasons)), key=reasons.count) if reasons else "the cluster has no nodes"

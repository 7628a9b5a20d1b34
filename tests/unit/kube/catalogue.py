"""Nodes as clusters have them: labels, taints and GPU counts of the pools of GKE, EKS, AKS and one's own machines."""

from collections.abc import Mapping
from typing import Any

PRESENT = ("nvidia.com/gpu", "present")
GFD = "nvidia.com/gpu.product"
GKE = "cloud.google.com/gke-accelerator"
KARPENTER = "karpenter.k8s.aws/instance-gpu-name"
AUTO = "eks.amazonaws.com/instance-gpu-name"
INSTANCE = "node.kubernetes.io/instance-type"


def node(
    name: str, labels: Mapping[str, str], gpus: int | Mapping[str, int] = 0, taint: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """A Node object as the API gives it. gpus: number of nvidia.com/gpu, or {resource: number}."""
    resources = {"nvidia.com/gpu": gpus} if isinstance(gpus, int) else gpus
    allocatable = {"cpu": "96", "memory": "1000Gi", "pods": "110", "vpc.amazonaws.com/efa": "4"}
    spec: dict[str, Any] = {}
    if taint[0]:
        spec["taints"] = [{"key": taint[0], "value": taint[1], "effect": "NoSchedule"}]
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": spec,
        "status": {"allocatable": allocatable | {resource: str(count) for resource, count in resources.items()}},
    }


CATALOGUE = {
    "cpu": node("cpu-0", {INSTANCE: "m5.4xlarge"}),
    "l40s": node("rt-l40s-0", {GFD: "NVIDIA-L40S", "nvidia.com/gpu.count": "4"}, 4, PRESENT),
    "h200": node("train-h200-0", {GFD: "NVIDIA-H200", "nvidia.com/gpu.sharing-strategy": "none"}, 8, PRESENT),
    "a100-mig": node("train-a100-mig-0", {GFD: "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, 7, PRESENT),
    "l4-shared": node("rt-l4-shared-0", {GFD: "NVIDIA-L4-SHARED", "nvidia.com/gpu.replicas": "8"}, 8, PRESENT),
    "gke-l4": node("gke-l4-0", {GKE: "nvidia-l4", "cloud.google.com/gke-nodepool": "rt"}, 1, PRESENT),
    "gke-l4-shared": node(
        "gke-l4-1", {GKE: "nvidia-l4", "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}, 4, PRESENT
    ),
    "gke-rtx-pro-6000": node("gke-g4-0", {GKE: "nvidia-rtx-pro-6000"}, 1, PRESENT),
    "gke-a100": node("gke-a2-0", {GKE: "nvidia-tesla-a100"}, 8, PRESENT),
    "gke-h100": node("gke-a3-0", {GKE: "nvidia-h100-80gb"}, 8, PRESENT),
    "gke-h100-mig": node(
        "gke-a3-1", {GKE: "nvidia-h100-80gb", "cloud.google.com/gke-gpu-partition-size": "1g.10gb"}, 56, PRESENT
    ),
    "gke-h200": node("gke-a3u-0", {GKE: "nvidia-h200-141gb"}, 8, PRESENT),
    "karpenter-l40s": node("eks-g6e-0", {KARPENTER: "l40s", INSTANCE: "m0.none"}, 4, ("nvidia.com/gpu", "true")),
    "karpenter-h100": node("eks-p5-0", {KARPENTER: "h100", INSTANCE: "m0.none"}, 8, ("nvidia.com/gpu", "true")),
    "auto-l4": node("auto-g6-0", {AUTO: "l4"}, 1, ("nvidia.com/gpu", "")),
    "auto-b200": node("auto-p6-0", {AUTO: "b200"}, 8, ("nvidia.com/gpu", "")),
    "eks-g6e": node("eks-g6e-9", {INSTANCE: "g6e.12xlarge"}, 4),
    "eks-p5": node("eks-p5-9", {INSTANCE: "p5.48xlarge"}, 8),
    "aks-a10": node("aks-nv36-0", {INSTANCE: "Standard_NV36ads_A10_v5"}, 1, ("sku", "gpu")),
    "aks-a10-part": node("aks-nv12-0", {INSTANCE: "Standard_NV12ads_A10_v5"}, 1, ("sku", "gpu")),
    "aks-rtx-pro": node("aks-rtx-0", {INSTANCE: "Standard_NC144ds_xl_RTXPRO6000BSE_v6"}, 1, ("sku", "gpu")),
    "aks-a100": node("aks-nc24-0", {INSTANCE: "Standard_NC24ads_A100_v4"}, 1, ("sku", "gpu")),
    "aks-h100": node("aks-nc40-0", {INSTANCE: "Standard_NC40ads_H100_v5"}, 1, ("sku", "gpu")),
    "mig-mixed": node(
        "mig-0", {GFD: "NVIDIA-A100-SXM4-80GB"}, {"nvidia.com/gpu": 0, "nvidia.com/mig-1g.10gb": 7}, PRESENT
    ),
    "unlabelled": node("bare-0", {}, 2),
}

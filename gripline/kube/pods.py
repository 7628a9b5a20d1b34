"""Pod templates of a RayJob: where a pod runs, what its container may do, and which folders it can write.

They pass pod-security `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards), and so does what
KubeRay adds: its init container `wait-gcs-ready` has the first container's security context, environment and mounts.

No probes: given a Ray version of 2.53 or later, KubeRay asks Ray's own agent over HTTP, and its liveness probe gives a
busy node ten minutes before it restarts the container. A probe of ours would only replace those.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from gripline import threads
from gripline.cluster_config import ClusterConfig, EnvGroup, Placement, PodConfig, Requirement, Toleration
from gripline.kube import names

Json = dict[str, Any]

HOME = "/home/gripline"
CACHE = "/cache"
WORKER_GRACE_S = 15
HEAD_GRACE_S = 30
"""From SIGTERM to SIGKILL. Workers hold nothing that a checkpoint would need."""
REPLICA_VARIABLE = "GRIPLINE_REPLICA"
REPLICA_LABEL = "ray.io/worker-group-replica-index"
"""Counts a group's pods from 0; KubeRay gives the number of a lost pod to the one that replaces it."""
HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265}
"""What the head's service offers; KubeRay adds its metrics port."""
ISAAC_FOLDERS = {
    "kit-cache": "/isaac-sim/kit/cache",
    "kit-data": "/isaac-sim/kit/data",
    "kit-logs": "/isaac-sim/kit/logs",
}
"""Folder of the cache volume -> where Isaac Sim's Kit writes, besides its user's home. Never tried on a GPU."""

ENVIRONMENT = {
    "HOME": HOME,
    "USER": "gripline",  # a user id that the image does not know has no name, and Ray and torch ask for one
    "LOGNAME": "gripline",
    "XDG_CACHE_HOME": CACHE,
    "CUDA_CACHE_PATH": f"{CACHE}/cuda",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "__GL_SHADER_DISK_CACHE_PATH": f"{CACHE}/gl",
    "GRIPLINE_FETCHED": "/tmp/gripline-fetched",  # a checkpoint is downloaded once per pod, not per process
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    **threads.DEFAULTS,
}
"""Of every container; a placement's and the user's variables win."""
DRAWING = {"MUJOCO_GL": "egl"}
"""Of env pods. Without a GPU, EGL is Mesa's software renderer, as on a laptop; the images hold no OSMesa."""
NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""Where a node's default runtime is NVIDIA's, an image that says `all` would see every GPU, asked for or not."""


@dataclass(frozen=True)
class Pod:
    """One kind of pod of a job."""

    role: str
    """Section of `cluster` that it is rendered from: head, policy or env."""
    config: PodConfig
    placement: Placement
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    """Not secret; the same for every pod of the job."""


def worker(pod: Pod, cluster: ClusterConfig, rayjob: str) -> Json:
    """The template of a worker group. rayjob: its name, which the folders in a shared cache begin with."""
    template = _template(pod, cluster, rayjob)
    return template | {"spec": template["spec"] | {"terminationGracePeriodSeconds": WORKER_GRACE_S}}


def head(pod: Pod, cluster: ClusterConfig, rayjob: str) -> Json:
    """The template of the driver's pod, with the container that prints the driver's log.

    A head that dies is replaced by a new pod (restartPolicy Never), so that no new Ray meets the files of an old one.
    """
    template = _template(pod, cluster, rayjob)
    ray = template["spec"]["containers"][0]
    ray["ports"] = [{"name": name, "containerPort": port} for name, port in HEAD_PORTS.items()]
    log = {
        "name": names.LOG_CONTAINER,
        "image": ray["image"],
        "imagePullPolicy": ray["imagePullPolicy"],
        "restartPolicy": "Always",  # an init container that stays: starts before Ray, and ends after it
        "command": ["python", "-m", "gripline.kube.driver_log"],
        "resources": {kind: {"cpu": "100m", "memory": "64Mi"} for kind in ("requests", "limits")},
        "securityContext": deepcopy(_CONTAINER_SECURITY),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "readOnly": True}],
    }
    spec = template["spec"] | {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": HEAD_GRACE_S,
        "initContainers": [log],
    }
    return template | {"spec": spec}


def cpu_quantity(cpus: float) -> str:
    """2.0 → '2', 0.5 → '500m'."""
    millis = round(cpus * 1000)
    return f"{millis}m" if millis % 1000 else str(millis // 1000)


def memory_quantity(gib: float) -> str:
    """4.0 → '4Gi', 0.5 → '512Mi'."""
    mebi = round(gib * 1024)
    return f"{mebi}Mi" if mebi % 1024 else f"{mebi // 1024}Gi"


_CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _template(pod: Pod, cluster: ClusterConfig, rayjob: str) -> Json:
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.run_as_user,
            "runAsGroup": cluster.run_as_user,
            "fsGroup": cluster.run_as_user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_where(pod),
        **_named({"serviceAccountName": cluster.service_account, "priorityClassName": cluster.priority_class}),
        "containers": [_container(pod, cluster, rayjob)],
        "volumes": _volumes(pod, cluster),
    }
    if cluster.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    return {"metadata": {"labels": {**pod.labels, names.ROLE_LABEL: pod.role}}, "spec": spec}


def _container(pod: Pod, cluster: ClusterConfig, rayjob: str) -> Json:
    amounts = {"cpu": cpu_quantity(pod.config.cpus), "memory": memory_quantity(pod.config.memory_gb)}
    if pod.gpus:
        amounts[pod.placement.gpu_resource] = str(pod.gpus)
    container: Json = {
        "name": names.RAY_CONTAINER,
        "image": pod.config.image,
        "imagePullPolicy": cluster.pull_policy,
        "workingDir": HOME,  # where libraries drop their logs, such as MuJoCo's
        "env": _environment(pod, cluster),
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": deepcopy(_CONTAINER_SECURITY),
        "volumeMounts": _mounts(pod, cluster, rayjob),
    }
    if cluster.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in cluster.secrets]
    return container


def _environment(pod: Pod, cluster: ClusterConfig) -> list[Json]:
    drawing = DRAWING if isinstance(pod.config, EnvGroup) else {}
    devices = {} if pod.gpus else NO_GPU
    own = pod.placement.container_env | pod.config.container_env
    values = ENVIRONMENT | drawing | devices | dict(pod.env) | own
    variables: list[Json] = [{"name": name, "value": values[name]} for name in sorted(values)]
    if _claims_cache(pod, cluster):
        source = {"fieldRef": {"fieldPath": f"metadata.labels['{REPLICA_LABEL}']"}}
        variables.append({"name": REPLICA_VARIABLE, "valueFrom": source})
    return variables


def _where(pod: Pod) -> Json:
    """The part of a pod's spec that says on which nodes it may run."""
    where = _named({"runtimeClassName": pod.placement.runtime_class})
    if pod.placement.node_affinity:
        terms = [{"matchExpressions": [_requirement(each) for each in pod.placement.node_affinity]}]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        where["affinity"] = {"nodeAffinity": required}
    if pod.placement.tolerations:
        where["tolerations"] = [_toleration(each) for each in pod.placement.tolerations]
    return where


def _requirement(requirement: Requirement) -> Json:
    return {"key": requirement.label, "operator": "In", "values": list(requirement.values)}


def _toleration(toleration: Toleration) -> Json:
    operator = "Equal" if toleration.value else "Exists"
    return {"key": toleration.key, "operator": operator} | _named(
        {"value": toleration.value, "effect": toleration.effect}
    )


def _volumes(pod: Pod, cluster: ClusterConfig) -> list[Json]:
    claimed = {"persistentVolumeClaim": {"claimName": cluster.cache_claim}}
    cache: Json = claimed if _claims_cache(pod, cluster) else {"emptyDir": {}}
    shared_memory = {"medium": "Memory", "sizeLimit": memory_quantity(pod.config.shm_gb)}
    return [
        {"name": "tmp", "emptyDir": {}},  # Ray's sessions and logs, and what libraries unpack
        {"name": "home", "emptyDir": {}},
        {"name": "cache", **cache},
        {"name": "shm", "emptyDir": shared_memory},  # Ray's object store
    ]


def _mounts(pod: Pod, cluster: ClusterConfig, rayjob: str) -> list[Json]:
    mounts = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": HOME},
        _cache_mount(pod, cluster, rayjob, "", CACHE),
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if isinstance(pod.config, EnvGroup) and pod.config.rendering == "rtx":
        folders = ISAAC_FOLDERS | {"home": f"{HOME}/.cache"}  # Omniverse's does not heed XDG_CACHE_HOME
        mounts += [_cache_mount(pod, cluster, rayjob, folder, path) for folder, path in folders.items()]
    return mounts


def _cache_mount(pod: Pod, cluster: ClusterConfig, rayjob: str, folder: str, path: str) -> Json:
    """A folder of the cache volume. In a claim that pods share each has its own: two writers ruin a cache."""
    mount: Json = {"name": "cache", "mountPath": path}
    if _claims_cache(pod, cluster):
        return mount | {"subPathExpr": "/".join(part for part in (rayjob, f"$({REPLICA_VARIABLE})", folder) if part)}
    return mount | _named({"subPath": folder})


def _claims_cache(pod: Pod, cluster: ClusterConfig) -> bool:
    return bool(cluster.cache_claim) and isinstance(pod.config, EnvGroup)


def _named(values: Mapping[str, str]) -> Json:
    """Without what is empty: Kubernetes reads an absent name as its default, and refuses an empty one."""
    return {key: value for key, value in values.items() if value}

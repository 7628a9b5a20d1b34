"""The RayJob of a stage: KubeRay's object, rendered from the profile's `cluster` section and checked before it is sent.

API: ray.io/v1 of KubeRay 1.7. How a job is submitted, and why so: docs/decisions/0024.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gripline.cluster_config import ClusterConfig, PodConfig
from gripline.kube import names, pods, rules
from gripline.kube.placement import check_placements, placement, pods_of
from gripline.kube.pods import Json, Pod

RAY_VERSION = "2.60.0"
"""Of the images, as constraints.txt pins it."""
GIB = 2**30
OBJECT_STORE_SHARE = 0.9
"""Of /dev/shm. Asked for more than it holds, Ray keeps its objects in files in /tmp instead, and is slow."""
ONE_POD_JOBS = ("sft",)
"""Jobs without rollouts. Their driver is the learner, so it runs in the policy group's pod, and there are no others."""
VOLATILE = ("MLFLOW_RUN_ID", "KFP_MLFLOW_CONFIG")
"""Variables that differ between two launches of one job."""


@dataclass(frozen=True)
class Job:
    """What is to run: one stage of one run."""

    run_name: str
    run_dir: str
    job: str
    """'sft', 'rl', 'eval-sft' or 'eval-rl'."""
    cluster: ClusterConfig
    """Every image named."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every pod, such as MLFLOW_TRACKING_URI without its password. No secrets."""
    owner: Mapping[str, str] | None = None
    """apiVersion, kind, name and uid of the object in the same namespace with which the RayJob goes."""


def render(job: Job) -> Json:
    """The RayJob's manifest: equal jobs give equal manifests, and `spec_hash` in its annotations tells others apart.

    Raises UserError, naming the profile's field, for what Kubernetes, KubeRay, Kueue or a GPU would refuse.
    """
    cluster, name = job.cluster, names.rayjob_name(job.run_dir, job.run_name, job.job)
    check_placements(cluster)
    labels = names.labels(job.run_name, job.job)
    manifest: Json = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "labels": labels | ({names.QUEUE_LABEL: cluster.queue} if cluster.queue else {}),
            "annotations": {
                names.RUN_DIR_ANNOTATION: job.run_dir,
                names.ORPHAN_ANNOTATION: f"{cluster.orphan_after_s:g}",
            },
        },
        "spec": {
            "submissionMode": "HTTPMode",
            "entrypoint": shlex.join(["python", "-m", "gripline.kube.driver", job.run_dir, job.job]),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": cluster.ttl_after_finished_s,
            "backoffLimit": cluster.retries,
            "activeDeadlineSeconds": cluster.attempt_timeout_s,
            "preRunningDeadlineSeconds": cluster.start_timeout_s,
            "rayClusterSpec": {"rayVersion": RAY_VERSION, **_groups(job, name)},
        },
    }
    if cluster.namespace:
        manifest["metadata"]["namespace"] = cluster.namespace
    if job.owner is not None:
        manifest["metadata"]["ownerReferences"] = [dict(job.owner)]
    manifest["metadata"]["annotations"][names.SPEC_HASH_ANNOTATION] = spec_hash(manifest)
    rules.check(manifest)
    return manifest


def spec_hash(manifest: Json) -> str:
    """SHA-256 of what a rendered manifest asks for; not of one that a cluster gave back, with defaults filled in."""
    return hashlib.sha256(json.dumps(_lasting(manifest["spec"]), sort_keys=True).encode()).hexdigest()


def with_images(cluster: ClusterConfig, image: str) -> ClusterConfig:
    """Pods that name no image have this one."""
    named = {name: pod.model_copy(update={"image": pod.image or image}) for name, pod in pods_of(cluster).items()}
    return cluster.model_copy(update=named)


def _groups(job: Job, name: str) -> Json:
    cluster = job.cluster
    policy = _pod(job, "policy", cluster.policy, cluster.policy.gpus)
    if job.job in ONE_POD_JOBS:
        start = _ray_start(policy, {})
        return {"headGroupSpec": {"rayStartParams": start, "template": pods.head(policy, cluster, name)}}
    env = _pod(job, "env", cluster.env, cluster.env.gpus)
    head = _pod(job, "head", cluster.head, 0)
    # Every actor of gripline asks for one of these, and for no CPU, so that none runs on the head.
    of_policy, of_env = {"learner": 1, "policy": cluster.policy.servers_per_pod}, {"env": cluster.env.workers_per_pod}
    return {
        "headGroupSpec": {
            "rayStartParams": _ray_start(head, {}) | {"num-cpus": "0"},
            "template": pods.head(head, cluster, name),
        },
        "workerGroupSpecs": [
            _worker_group(policy, cluster, name, cluster.policy.replicas, of_policy),
            _worker_group(env, cluster, name, cluster.env.replicas, of_env),
        ],
    }


def _worker_group(pod: Pod, cluster: ClusterConfig, name: str, replicas: int, resources: Mapping[str, int]) -> Json:
    return {
        "groupName": pod.role,
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rayStartParams": _ray_start(pod, resources),
        "template": pods.worker(pod, cluster, name),
    }


def _ray_start(pod: Pod, resources: Mapping[str, int]) -> dict[str, str]:
    """Options of `ray start`. GPUs are stated: KubeRay would guess them from the resource's name, Ray from devices."""
    options = {
        "num-cpus": str(math.ceil(pod.config.cpus)),
        "num-gpus": str(pod.gpus),
        "object-store-memory": str(int(pod.config.shm_gb * GIB * OBJECT_STORE_SHARE)),
    }
    if resources:
        options["resources"] = shlex.quote(json.dumps(dict(resources)))  # KubeRay puts it into a shell command as it is
    return options


def _pod(job: Job, role: str, config: PodConfig, gpus: int) -> Pod:
    labels = names.labels(job.run_name, job.job)
    env = {"GRIPLINE_RUN_DIR": job.run_dir, **job.env}
    return Pod(role, config, placement(config.placement), gpus, labels, env)


def _lasting(value: Any) -> Any:
    """Without the environment variables that are not part of what is asked for."""
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_lasting(each) for each in value if not (isinstance(each, dict) and each.get("name") in VOLATILE)]
    return value

"""What KubeRay, Kueue or Kubernetes would refuse, refused before it is sent, and told by the field of the profile.

KubeRay 1.7.0's rules are those of ray-operator/controllers/ray/utils/validation.go, where a refusal is a RayJob in
state ValidationFailed; Kueue 0.19's those of pkg/controller/jobs/{rayjob,raycluster}, where it is an error at creation.
Both have more rules, for fields that gripline does not render: here, any such field is refused.
What holds for pods, which KubeRay makes later and where nobody would see a refusal: `pod_rules`.
"""

import re
from collections.abc import Iterator
from typing import Any

from gripline.cluster_config import LABEL_VALUE
from gripline.errors import UserError
from gripline.kube import names, pod_rules
from gripline.kube.pod_rules import DNS_1123_LABEL, Refusal, section_of

Json = dict[str, Any]

DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
MAX_PODSETS = 18
"""Kueue: of a workload; the head is one."""
HEAD_PODSET = "head"
MAX_INT32 = 2**31 - 1
MIN_OBJECT_STORE_BYTES = 75 * 2**20
"""Below, `ray start` gives up (OBJECT_STORE_MINIMUM_MEMORY_BYTES in ray/_private/ray_constants.py)."""
NUMBERS = {
    "ttlSecondsAfterFinished": ("cluster.ttl_after_finished_s", 0),
    "backoffLimit": ("cluster.retries", 0),
    "activeDeadlineSeconds": ("cluster.attempt_timeout_s", 1),
    "preRunningDeadlineSeconds": ("cluster.start_timeout_s", 1),
}
"""Field of the RayJob -> (ours, smallest value). None may be absent: without deadlines an orphan lives for ever."""
JOB_FIELDS = {"submissionMode", "entrypoint", "shutdownAfterJobFinishes", "suspend", "rayClusterSpec", *NUMBERS}
CLUSTER_FIELDS = {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
HEAD_FIELDS = {"rayStartParams", "template"}
GROUP_FIELDS = HEAD_FIELDS | {"groupName", "replicas", "minReplicas", "maxReplicas"}
OWNER_FIELDS = ("apiVersion", "kind", "name", "uid")


def check(manifest: Json) -> None:
    """Raise UserError for the first thing that a cluster would refuse of a RayJob."""
    for refusal in refusals(manifest):
        raise UserError("profile", refusal.field, refusal.problem, refusal.next_step)


def refusals(manifest: Json) -> Iterator[Refusal]:
    """Everything that a cluster would refuse of a RayJob."""
    spec = manifest["spec"]
    yield from _metadata(manifest["metadata"])
    yield from _job(spec)
    yield from _kueue(manifest["metadata"]["labels"], spec)
    cluster = spec["rayClusterSpec"]
    groups = _worker_groups(cluster)
    yield from _cluster(cluster)
    yield from _unknown(cluster["headGroupSpec"], HEAD_FIELDS, "rayClusterSpec.headGroupSpec")
    for number, group in enumerate(groups):
        yield from _group(group, f"rayClusterSpec.workerGroupSpecs[{number}]")
    for group in (cluster["headGroupSpec"], *groups):
        yield from _ray_start(group)
        yield from pod_rules.refusals(group["template"])


def _metadata(metadata: Json) -> Iterator[Refusal]:
    name = metadata["name"]
    if len(name) > names.MAX_RAYJOB_NAME or not DNS_1035_LABEL.fullmatch(name):
        problem = f"makes the RayJob's name {name!r}, which is no DNS-1035 label of at most {names.MAX_RAYJOB_NAME}"
        yield Refusal("run_name", problem, "use lower-case letters, digits and dashes")
    namespace = metadata.get("namespace", "default")
    if not DNS_1123_LABEL.fullmatch(namespace):
        yield Refusal("cluster.namespace", f"{namespace!r} is no DNS-1123 label", "name an existing namespace")
    others = {key: value for key, value in metadata["labels"].items() if key != names.QUEUE_LABEL}
    yield from pod_rules.label_refusals(others, "run_name")
    for key in metadata["annotations"]:
        if not key.startswith("gripline.io/"):  # KubeRay's own switch features on that nothing here has checked
            yield Refusal("", f"annotation {key!r} is none of gripline's", "leave it out")
    for owner in metadata.get("ownerReferences", []):
        missing = [part for part in OWNER_FIELDS if not owner.get(part)]
        if missing:
            yield Refusal("", f"the owner of the RayJob has no {missing[0]}", "name an object of the same namespace")


def _job(spec: Json) -> Iterator[Refusal]:
    yield from _unknown(spec, JOB_FIELDS, "")
    mode = spec.get("submissionMode")
    if mode != "HTTPMode":
        problem = f"submissionMode {mode!r} adds a container that pod-security restricted refuses, or a pod to Kueue's"
        yield Refusal("", problem, "use HTTPMode")
    if not spec.get("entrypoint", "").strip():
        yield Refusal("", "the RayJob has no entrypoint", "name the driver's command")
    for key, (field, least) in NUMBERS.items():
        if not least <= spec.get(key, -1) <= MAX_INT32:
            yield Refusal(field, f"must be from {least} to {MAX_INT32}, got {spec.get(key)}", "set it within")
    if not spec.get("shutdownAfterJobFinishes"):
        problem = (
            "shutdownAfterJobFinishes is off, without which no job may be suspended or have a ttl_after_finished_s"
        )
        yield Refusal("cluster.ttl_after_finished_s", problem, "leave it on")


def _kueue(labels: Json, spec: Json) -> Iterator[Refusal]:
    """Held even without a queue: Kueue may be set up to manage jobs without one as well."""
    queue = labels.get(names.QUEUE_LABEL, "queue")
    if not pod_rules.DNS_1123_SUBDOMAIN.fullmatch(queue) or not re.fullmatch(LABEL_VALUE, queue):
        problem = f"{queue!r} is no name of a LocalQueue: at most 63 lower-case letters, digits, dashes and dots"
        yield Refusal("cluster.queue", problem, "name a LocalQueue of the namespace")
    groups = _worker_groups(spec["rayClusterSpec"])
    if len(groups) + 1 > MAX_PODSETS:
        problem = f"{len(groups) + 1} kinds of pods, where Kueue takes {MAX_PODSETS}"
        yield Refusal("cluster", problem, "use fewer worker groups")
    if any(group["groupName"] == HEAD_PODSET for group in groups):
        yield Refusal("cluster", f"no worker group may be called {HEAD_PODSET!r}", "give it another name")
    if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
        yield Refusal("cluster", "Kueue takes no autoscaling, nor does a synchronous job need it", "leave it off")


def _cluster(cluster: Json) -> Iterator[Refusal]:
    yield from _unknown(cluster, CLUSTER_FIELDS, "rayClusterSpec")
    version = cluster.get("rayVersion", "")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        problem = f"rayVersion {version!r} is no version, by which KubeRay chooses how to ask Ray for its health"
        yield Refusal("", problem, "give the version in the images, such as 2.60.0")
    seen = [group["groupName"] for group in _worker_groups(cluster)]
    for name in seen:
        if not DNS_1123_LABEL.fullmatch(name) or seen.count(name) > 1:
            yield Refusal("cluster", f"worker group {name!r} is no DNS-1123 label, or is there twice", "rename it")


def _group(group: Json, where: str) -> Iterator[Refusal]:
    yield from _unknown(group, GROUP_FIELDS, where)
    field = f"{section_of(group['template'])}.replicas"
    bounds: list[Any] = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
    if not all(isinstance(bound, int) and 0 <= bound <= MAX_INT32 for bound in bounds) or bounds != sorted(bounds):
        problem = f"minReplicas ≤ replicas ≤ maxReplicas must hold, none below 0 and none absent, got {bounds}"
        yield Refusal(field, problem, "set the number of pods")


def _ray_start(group: Json) -> Iterator[Refusal]:
    start, section = group.get("rayStartParams"), section_of(group["template"])
    if start is None:
        yield Refusal(section, "rayStartParams is absent, on which KubeRay fails", "render it, if empty")
        return
    if "labels" in start:
        yield Refusal(section, "rayStartParams must not have labels", "leave them out")
    wrong = [key for key, value in start.items() if not isinstance(value, str)]
    if wrong:
        yield Refusal(section, f"rayStartParams.{wrong[0]} is no text", "quote it")
        return
    if int(start.get("object-store-memory", MIN_OBJECT_STORE_BYTES)) < MIN_OBJECT_STORE_BYTES:
        problem = "leaves Ray's object store less than 75 MiB, its minimum"
        yield Refusal(f"{section}.shm_gb", problem, "set it to 0.1 or more")


def _worker_groups(cluster: Json) -> list[Json]:
    groups: list[Json] = cluster.get("workerGroupSpecs", [])
    return groups


def _unknown(body: Json, known: set[str], where: str) -> Iterator[Refusal]:
    for key in sorted(set(body) - known):
        path = f"spec.{where}.{key}" if where else f"spec.{key}"
        yield Refusal("", f"{path} is not rendered by gripline, so no rule here has checked it", "leave it out")

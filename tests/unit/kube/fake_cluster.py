"""A cluster in memory, with a clock that moves when somebody sleeps: what happens when is written down beforehand."""

import copy
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from gripline.kube.api import (
    ApiError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    Object,
    UnavailableError,
)

START_WALL_S = 1_800_000_000.0
CREATED = "2027-01-15T08:00:00Z"
"""START_WALL_S, as the API server writes it."""


class FakeClock:
    """Seconds that pass only in `sleep`. Actions planned for a time happen on the way."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return START_WALL_S + self.now_s

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._planned, (time_s, next(self._number), action))

    def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._planned and self._planned[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._planned)
            action()
        self.now_s = max(self.now_s, until_s)


class FakeCluster:
    """RayJobs, pods and events of one namespace. Whoever plays the operator calls `status`."""

    def __init__(self, namespace: str = "robots") -> None:
        self.namespace = namespace
        self.objects: dict[str, Object] = {}
        self.clusters: dict[str, Object] = {}
        self.workflows: dict[str, Object] = {}
        self.pod_list: list[Object] = []
        self.events: list[Object] = []
        self.logs: dict[str, list[list[str]]] = {}
        """Pod -> the lines that each call of `follow_log` gives."""
        self.followed: list[tuple[str, str, str]] = []
        self.created: list[Object] = []
        self.deleted: list[str] = []
        self.has_operator = True
        """Without one nobody removes the finalizer of what is deleted."""
        self.is_down = False
        self.errors: dict[tuple[str, str], ApiError] = {}
        """(verb, resource) -> what it raises."""
        self.loses_next_answer = False
        """The next creation happens, and its answer does not arrive."""
        self.on_create: Callable[[], None] = lambda: None
        self._uids = itertools.count(1)

    def within(self, namespace: str) -> "FakeCluster":
        assert namespace == self.namespace
        return self

    def separate(self, timeout_s: float) -> "FakeCluster":
        return self

    def status(self, name: str, **fields: object) -> None:
        """What the operator writes; the job may be gone by then."""
        if name in self.objects:
            self.objects[name]["status"] = fields

    def forbid(self, verb: str, resource: str) -> None:
        self.errors[verb, resource] = ForbiddenError("denied", verb, resource, self.namespace)

    def add_rayjob(self, manifest: Object, *, created: str = CREATED) -> Object:
        stored = copy.deepcopy(manifest)
        stored["metadata"] |= {"uid": f"uid-{next(self._uids)}", "creationTimestamp": created}
        self.objects[stored["metadata"]["name"]] = stored
        return copy.deepcopy(stored)

    def rayjob(self, name: str) -> Object:
        self._check("get", "rayjobs")
        return copy.deepcopy(self._found(self.objects, name))

    def rayjobs(self, label_selector: str) -> list[Object]:
        self._check("list", "rayjobs")
        return [copy.deepcopy(each) for each in self.objects.values() if _fits(each, label_selector)]

    def create_rayjob(self, manifest: Object) -> Object:
        self._check("create", "rayjobs")
        if manifest["metadata"]["name"] in self.objects:
            raise ConflictError("already exists")
        self.created.append(copy.deepcopy(manifest))
        stored = self.add_rayjob(manifest)
        self.on_create()
        if self.loses_next_answer:
            self.loses_next_answer = False
            raise UnavailableError("connection reset")
        return stored

    def patch_rayjob(self, name: str, patch: Object) -> Object:
        self._check("patch", "rayjobs")
        metadata = self._found(self.objects, name)["metadata"]
        new = dict(patch["metadata"])
        if new.pop("uid") != metadata["uid"]:
            raise ConflictError("uid")
        metadata.setdefault("annotations", {}).update(new.pop("annotations", {}))
        metadata |= new
        return copy.deepcopy(self.objects[name])

    def delete_rayjob(self, name: str, uid: str = "") -> None:
        self._check("delete", "rayjobs")
        stored = self._found(self.objects, name)
        if uid and stored["metadata"]["uid"] != uid:
            raise ConflictError("uid")
        self.deleted.append(stored["metadata"]["uid"])
        if self.has_operator:
            del self.objects[name]
        else:
            stored["metadata"]["deletionTimestamp"] = CREATED

    def rayclusters(self, label_selector: str) -> list[Object]:
        self._check("list", "rayclusters")
        return [copy.deepcopy(each) for each in self.clusters.values() if _fits(each, label_selector)]

    def delete_raycluster(self, name: str, uid: str = "") -> None:
        self._check("delete", "rayclusters")
        self.deleted.append(self._found(self.clusters, name)["metadata"]["uid"])
        del self.clusters[name]

    def workflow(self, name: str) -> Object:
        self._check("get", "workflows")
        return copy.deepcopy(self._found(self.workflows, name))

    def pod(self, name: str) -> Object:
        self._check("get", "pods")
        return copy.deepcopy(self._found({each["metadata"]["name"]: each for each in self.pod_list}, name))

    def pods(self, label_selector: str) -> list[Object]:
        self._check("list", "pods")
        return [copy.deepcopy(each) for each in self.pod_list if _fits(each, label_selector)]

    def warnings(self) -> list[Object]:
        self._check("list", "events")
        return copy.deepcopy(self.events)

    def follow_log(self, pod: str, container: str, since: str) -> Iterator[str]:
        self._check("get", "pods/log")
        self.followed.append((pod, container, since))
        streams = self.logs.get(pod, [])
        yield from streams.pop(0) if streams else []

    def _check(self, verb: str, resource: str) -> None:
        if self.is_down:
            raise UnavailableError("connection refused")
        if (verb, resource) in self.errors:
            raise self.errors[verb, resource]

    def _found(self, objects: dict[str, Object], name: str) -> Object:
        if name not in objects:
            raise NotFoundError(f'"{name}" not found')
        return objects[name]


def make_pod(name: str, *, role: str = "env", ray_cluster: str = "rc-1", node_type: str = "worker") -> Object:
    """A pod that runs."""
    labels = {"ray.io/cluster": ray_cluster, "ray.io/node-type": node_type, "gripline.io/role": role}
    metadata: dict[str, Any] = {"name": name, "uid": f"uid-of-{name}", "labels": labels, "creationTimestamp": CREATED}
    return {"metadata": metadata, "status": {"containerStatuses": [{"name": "ray", "state": {"running": {}}}]}}


def waiting(pod: Object, reason: str, message: str) -> Object:
    """The same, whose container does not start."""
    state = {"waiting": {"reason": reason, "message": message}}
    return pod | {"status": {"containerStatuses": [{"name": "ray", "state": state}]}}


def unschedulable(pod: Object, message: str) -> Object:
    """The same, without a node."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod | {"status": {"conditions": [condition]}}


def _fits(stored: Object, label_selector: str) -> bool:
    labels = stored["metadata"].get("labels", {})
    wanted = [part.partition("=") for part in label_selector.split(",")]
    return all(labels.get(key) == value if equals else key in labels for key, equals, value in wanted)

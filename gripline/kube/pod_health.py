"""What keeps a job's pods from running, read from their status: a state machine without clock or API.

A pod whose image cannot be pulled, or that names a Secret which is not there, waits for ever; Ray and KubeRay say
nothing of it. One that finds no node is told of, with the scheduler's reason, and may get one later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gripline.kube.names import ROLE_LABEL

GRACE_S = 15.0
"""A pull that failed once is tried again after 10 s (kubelet's first back-off)."""
TELL_AGAIN_S = 300.0
USUAL_PROBES = 12
"""So often the readiness probe may fail, every 5 s, while Ray starts."""
CANNOT_START = {
    "ErrImagePull": "image",
    "ImagePullBackOff": "image",
    "InvalidImageName": "image",
    "ErrImageNeverPull": "image",
    "ImageInspectError": "image",
    "RegistryUnavailable": "image",
    "CreateContainerConfigError": "config",
    "CreateContainerError": "config",
    "RunContainerError": "config",
}
"""Reason of a waiting container -> what is wrong."""
NEXT_STEPS = {
    "image": "correct cluster.{role}.image, or name the registry's credentials in cluster.pull_secrets",
    "config": "make what is missing, such as a Secret of cluster.secrets, in the job's namespace",
}


@dataclass(frozen=True)
class Trouble:
    """One thing to tell."""

    fatal: bool
    """Waiting does not help."""
    where: str
    reason: str
    message: str
    next_step: str = ""

    @property
    def line(self) -> str:
        return f"{self.where}: {self.reason}: {self.message}"


class PodHealth:
    """Feed it every look at the pods of one job, with the time in seconds of any steady clock."""

    def __init__(self) -> None:
        self._roles_that_ran: set[str] = set()
        self._since_s: dict[tuple[str, str], float] = {}
        self._messages: dict[tuple[str, str], str] = {}
        self._told_s: dict[tuple[str, str], float] = {}

    def see(self, pods: Sequence[dict[str, Any]], now_s: float) -> list[Trouble]:
        """What is new, or is so still after a while.

        A container that cannot start is fatal after a moment, unless others of its group have run: then it is a
        replacement in trouble, without which the job goes on.
        """
        self._roles_that_ran |= {_role(pod) for pod in pods if _runs(pod)}
        found = [*self._containers(pods, now_s), *_unschedulable(pods)]
        return [trouble for trouble in found if trouble.fatal or self._is_due(trouble, now_s)]

    def warn_of(self, events: Sequence[dict[str, Any]], names: frozenset[str], now_s: float) -> list[Trouble]:
        """Of Warning events, those about objects with these names that the pods' status does not tell."""
        found = []
        for event in events:
            about = event["involvedObject"]
            if about.get("name", "") in names and not _is_usual(event):
                message = " ".join(str(event.get("message", "")).split())
                found.append(Trouble(False, f"{about['kind']} {about['name']}", str(event["reason"]), message))
        return [trouble for trouble in found if self._is_due(trouble, now_s)]

    def _containers(self, pods: Sequence[dict[str, Any]], now_s: float) -> Iterator[Trouble]:
        still: dict[tuple[str, str], float] = {}
        for pod in pods:
            for name, reason, message in _waiting(pod):
                if reason not in CANNOT_START:
                    continue
                key = (pod["metadata"]["uid"], name)
                still[key] = self._since_s.get(key, now_s)
                if key not in self._messages or len(message) > len(self._messages[key]):
                    self._messages[key] = message  # a later ImagePullBackOff says less than the first ErrImagePull
                fatal = now_s - still[key] >= GRACE_S and _role(pod) not in self._roles_that_ran
                if fatal or _role(pod) in self._roles_that_ran:
                    yield _cannot_start(pod, reason, self._messages[key], fatal=fatal)
        self._since_s = still

    def _is_due(self, trouble: Trouble, now_s: float) -> bool:
        key = (trouble.where.partition(" ")[0], trouble.reason)
        if key in self._told_s and now_s - self._told_s[key] < TELL_AGAIN_S:
            return False
        self._told_s[key] = now_s
        return True


def _is_usual(event: dict[str, Any]) -> bool:
    """Told by the pods' status, or a pod that is just starting."""
    if event["reason"] == "Unhealthy":
        return str(event.get("message", "")).startswith("Readiness") and int(event.get("count", 1)) < USUAL_PROBES
    return event["reason"] in ("FailedScheduling", "Failed", "BackOff")


def _cannot_start(pod: dict[str, Any], reason: str, message: str, *, fatal: bool) -> Trouble:
    next_step = NEXT_STEPS[CANNOT_START[reason]].format(role=_role(pod))
    return Trouble(fatal, _place(pod), reason, message, next_step)


def _unschedulable(pods: Sequence[dict[str, Any]]) -> Iterator[Trouble]:
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions", []):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                message = " ".join(str(condition.get("message", "")).split())
                yield Trouble(False, _place(pod), "Unschedulable", message)


def _waiting(pod: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(container, reason, message) of each that waits."""
    for status in _statuses(pod):
        waiting = status.get("state", {}).get("waiting")
        if waiting:
            message = " ".join(str(waiting.get("message", "")).split())
            yield status["name"], str(waiting.get("reason", "")), message


def _runs(pod: dict[str, Any]) -> bool:
    """Whether its containers have come as far as to run, so that image and configuration are good."""
    states = [status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses", [])]
    return bool(states) and all("running" in state for state in states)


def _statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def _place(pod: dict[str, Any]) -> str:
    return f"{_role(pod)} pod {pod['metadata']['name']}"


def _role(pod: dict[str, Any]) -> str:
    """'head', 'policy' or 'env'."""
    return str(pod["metadata"].get("labels", {}).get(ROLE_LABEL, "a"))

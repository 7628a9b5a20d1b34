"""From the creation of a RayJob to its first environment step: what the API server, the store and the log say of it."""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from cluster.kube import Json

from gripline.kube.jobfiles import Attempt, JobFiles
from gripline.kube.names import RAY_CONTAINER, ROLE_LABEL

LINES = {
    "driver begins with its actors": "starting Ray actors",
    "env workers and policy servers are ready": "env workers and policy servers are ready",
    "first episodes are over": "validation success before RL",
}
"""Milestone -> what the driver prints then."""


def milestones(rayjob: Json, pods: Iterable[Json], run_dir: str, stamped_log: str) -> dict[str, float]:
    """Seconds after the RayJob's creation. Kubernetes' own times, the creation among them, are whole seconds.

    pods: of its Ray cluster. stamped_log: the driver's log, with the API server's time before each line.
    """
    created_s = _unix_s(rayjob["metadata"]["creationTimestamp"])
    found: dict[str, float] = {}
    pods = sorted(pods, key=lambda pod: ("head", "policy", "env").index(pod["metadata"]["labels"][ROLE_LABEL]))
    for pod in pods:
        role = pod["metadata"]["labels"][ROLE_LABEL]
        for what, time_s in _of_pod(pod).items():  # the last one of each role counts
            found[f"{role}: {what}"] = max(found.get(f"{role}: {what}", 0.0), time_s - created_s)
    attempt = JobFiles(run_dir, "rl").read(Attempt)
    assert attempt is not None
    found["driver started"] = attempt.time_s - created_s
    for milestone, text in LINES.items():
        [stamp] = re.findall(rf"^(\S+) .*{re.escape(text)}", stamped_log, re.MULTILINE)
        found[milestone] = _unix_s(stamp) - created_s
    return {milestone: round(seconds, 1) for milestone, seconds in found.items()}


def _of_pod(pod: Json) -> dict[str, float]:
    status: dict[str, Any] = pod["status"]
    conditions = {each["type"]: each["lastTransitionTime"] for each in status["conditions"]}
    [ray] = [each for each in status["containerStatuses"] if each["name"] == RAY_CONTAINER]
    times = {
        "pod created": pod["metadata"]["creationTimestamp"],
        "on its node": conditions["PodScheduled"],
        "Ray's container started": ray["state"]["running"]["startedAt"],
        "ready": conditions["Ready"],
    }
    return {what: _unix_s(text) for what, text in times.items()}


def _unix_s(stamp: str) -> float:
    """Of RFC 3339, with as many digits as the API server likes."""
    whole, fraction = re.fullmatch(r"([^.Z]+)(\.\d+)?Z", stamp).groups()  # type: ignore[union-attr]
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(fraction or 0)

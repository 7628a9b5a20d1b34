"""What a RayJob's status means for whoever waits for it: a state machine without clock, thread or API.

KubeRay's status has traps (v1.7, `rayjob_controller.go`): `Complete` is also the end of a stopped job; the job's own
`FAILED` is final only when no attempt is left, and then the deployment says `Failed`; `ValidationFailed` is final and
in no list of final states; during a retry or after a suspension the whole status is empty again.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from gripline.kube.api import ApiError, ForbiddenError, NotFoundError

OPERATOR_TIMEOUT_S = 30.0
"""A new RayJob whose status stays empty for so long has no operator."""
FORBIDDEN_BUDGET_S = 10.0
"""Rights that are just being changed may be missing for a moment."""
UNAVAILABLE_BUDGET_S = 900.0
"""Of an API server that does not answer. The job goes on meanwhile: its driver needs the store only."""
LAUNCHER_ANNOTATION = "gripline.io/launcher"
"""On a RayJob: the id of the launcher that waits for it now."""
JOB_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")

Phase = Literal["new", "queued", "starting", "running", "ending", "retrying", "unreachable", "ended"]


class Outcome(Enum):
    """How waiting ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    INVALID = "invalid"
    DELETED = "deleted"
    REPLACED = "replaced"
    TAKEN_OVER = "taken over"
    NO_OPERATOR = "no operator"
    QUEUED_TOO_LONG = "queued too long"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Seen:
    """What one look at the RayJob says."""

    phase: Phase
    outcome: Outcome | None = None
    """None: keep waiting."""
    reason: str = ""
    """KubeRay's, of a failure."""
    message: str = ""
    ray_cluster: str = ""
    """Name of the attempt's RayCluster; empty between attempts."""
    failures: int = 0
    """Attempts that failed so far."""
    attempt_failed: bool = False
    """The present attempt has failed, whether another follows or not."""


class Watch:
    """Feed it every look at the RayJob with the time in seconds of any steady clock."""

    def __init__(self, uid: str, *, launcher: str, queue_timeout_s: float) -> None:
        self._uid, self._launcher, self._queue_timeout_s = uid, launcher, queue_timeout_s
        self._operator_was_seen = False
        self._empty_since_s: float | None = None
        self._queued_since_s: float | None = None
        self._missing: tuple[type[ApiError], float] | None = None

    def see(self, rayjob: dict[str, Any], now_s: float) -> Seen:
        """A look that found the RayJob."""
        self._missing = None
        metadata = rayjob["metadata"]
        if metadata["uid"] != self._uid:
            return Seen("ended", Outcome.REPLACED)
        if "deletionTimestamp" in metadata:
            return Seen("ended", Outcome.DELETED)
        if metadata.get("annotations", {}).get(LAUNCHER_ANNOTATION, self._launcher) != self._launcher:
            return Seen("ended", Outcome.TAKEN_OVER)
        return self._judge(rayjob, now_s)

    def miss(self, error: ApiError, now_s: float) -> Seen:
        """A look that did not."""
        self._empty_since_s = None  # nobody saw whether the operator came meanwhile
        if isinstance(error, NotFoundError):
            return Seen("ended", Outcome.DELETED)
        forbidden = isinstance(error, ForbiddenError)
        if self._missing is None or self._missing[0] is not type(error):  # an API server that returns first forbids
            self._missing = type(error), now_s
        budget_s = FORBIDDEN_BUDGET_S if forbidden else UNAVAILABLE_BUDGET_S
        if now_s - self._missing[1] < budget_s:
            return Seen("unreachable", message=str(error))
        return Seen("ended", Outcome.FORBIDDEN if forbidden else Outcome.UNREACHABLE, message=str(error))

    def _judge(self, rayjob: dict[str, Any], now_s: float) -> Seen:
        status = rayjob.get("status", {})
        deployment, job, reason, message, ray_cluster = (
            str(status.get(name, ""))
            for name in ("jobDeploymentStatus", "jobStatus", "reason", "message", "rayClusterName")
        )
        self._operator_was_seen |= bool(deployment)
        phase = _phase(deployment, job, suspended=bool(rayjob["spec"].get("suspend", False)))
        outcome = _outcome(deployment, job) or self._timed_out(phase, deployment, now_s)
        return Seen(
            phase="ended" if outcome else phase,
            outcome=outcome,
            reason=reason,
            message=message,
            ray_cluster=ray_cluster,
            failures=int(status.get("failed", 0)),
            attempt_failed=job == "FAILED" or deployment in ("Failed", "Retrying"),
        )

    def _timed_out(self, phase: Phase, deployment: str, now_s: float) -> Outcome | None:
        if deployment or self._operator_was_seen:
            self._empty_since_s = None
        elif self._empty_since_s is None:
            self._empty_since_s = now_s
        elif now_s - self._empty_since_s >= OPERATOR_TIMEOUT_S:
            return Outcome.NO_OPERATOR
        if phase != "queued":
            self._queued_since_s = None
        elif self._queued_since_s is None:
            self._queued_since_s = now_s
        elif now_s - self._queued_since_s > self._queue_timeout_s:
            return Outcome.QUEUED_TOO_LONG
        return None


def _outcome(deployment: str, job: str) -> Outcome | None:
    match deployment, job:
        case "Complete", "SUCCEEDED":
            return Outcome.SUCCEEDED
        case "Complete", "STOPPED":
            return Outcome.STOPPED
        case (("Complete" | "Failed"), _):
            return Outcome.FAILED
        case "ValidationFailed", _:
            return Outcome.INVALID
    return None


def _phase(deployment: str, job: str, *, suspended: bool) -> Phase:
    match deployment:
        case "Suspending" | "Suspended":
            return "queued"
        case "" | "Initializing" if suspended:
            return "queued"
        case "":
            return "new"
        case "Retrying":
            return "retrying"
        case "Running" if job in JOB_ENDED:
            return "ending"
        case "Running" if job == "RUNNING":
            return "running"
    return "starting"

"""A stage as a RayJob: created or adopted, waited for, and gone at the end whatever the end is.

The launcher needs the Kubernetes API, the job's files in the store, and no Ray. What ends a wait: `watch`; what is left
running when this process dies: docs/decisions/0025.
"""

import hashlib
from datetime import datetime

from gripline import progress
from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.kube import verdicts
from gripline.kube.api import ApiError, ConflictError, NotFoundError, Object, UnavailableError
from gripline.kube.creation import REQUEST_ANNOTATION, Creation
from gripline.kube.heartbeat import Heart
from gripline.kube.jobfiles import Abandoned, Attempt, Refusal, Request, Result
from gripline.kube.logs import DriverLog
from gripline.kube.pod_health import PodHealth, Trouble
from gripline.kube.surroundings import Surroundings
from gripline.kube.termination import Termination
from gripline.kube.verdicts import StageFailedError
from gripline.kube.watch import FORBIDDEN_BUDGET_S, LAUNCHER_ANNOTATION, Outcome, Seen, Watch
from gripline.object_store import StoreOutageError

POLL_S = 2.0
EVENTS_EVERY_S = 10.0
DRAIN_S = 5.0
CLEAN_UP_S = 15.0
MOST_LAUNCHES = 3
"""Of one step. A job that was given up for want of heartbeats is launched again."""


def request_hash(request: Request) -> str:
    """Of what the driver is asked to compute: the names of input files hold the hash of their content."""
    asked = request.model_dump_json(include={"function", "arguments", "files", "outputs"})
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


class Launcher:
    """One launch of one job. `run` may be called once."""

    def __init__(
        self, config: ClusterConfig, job: str, manifest: Object, request: Request, around: Surroundings
    ) -> None:
        """manifest: as rendered. It gets the annotations of this launch."""
        self._config, self._job, self._request, self._around = config, job, request, around
        self._cluster, self._files, self._clock = around.cluster, around.files, around.clock
        self._id = request.launch
        annotations = manifest["metadata"]["annotations"]
        annotations |= {LAUNCHER_ANNOTATION: self._id, REQUEST_ANNOTATION: request_hash(request)}
        self._manifest, self._name = manifest, str(manifest["metadata"]["name"])
        self._where = f"RayJob {self._cluster.namespace}/{self._name}"
        self._deadline_s = self._clock() + config.overall_timeout_s
        self._phase: tuple[str, int] = ("", 0)
        self._failures_read = 0
        self._events_due_s = 0.0

    def run(self) -> Result:
        """The result, after it was checked. Raises UserError, or StageFailedError where the driver broke."""
        kept = self._kept_result()
        self._check_rights()
        own_pod, emergency = self._around.own_pod, self._around.emergency
        with (
            Termination(emergency, lambda: own_pod.is_replaced(emergency)) as termination,
            Heart(self._around.hasty_files, self._id, self._config.heartbeat_every_s, self._around.warn) as heart,
        ):
            for _ in range(MOST_LAUNCHES):
                try:
                    result = self._launch(termination, heart, kept)
                finally:
                    self._clean_up()
                    termination.covers("")
                if result is not None:
                    return result
                self._around.warn("the driver had found no heartbeat for too long and had ended; launching it again")
        problem = f"its driver found no heartbeat in {self._files.uri} for orphan_after_s, {MOST_LAUNCHES} times"
        raise UserError(self._where, "", problem, "see why this step cannot write to the store")

    def _kept_result(self) -> Result | None:
        """That of an earlier launch of just the same, whose step ended before it could hand it on."""
        former, result = self._files.read(Request), self._files.read(Result)
        if former is None or result is None or request_hash(former) != request_hash(self._request):
            return None
        try:
            verdicts.check_checkpoint(result.outputs)
        except (UserError, StageFailedError):
            return None
        return result

    def _check_rights(self) -> None:
        """Those that are needed only later are tried before anything is made."""
        self._around.patiently(lambda: self._cluster.pods("gripline.io/none"))
        self._around.patiently(self._cluster.warnings)

    def _launch(self, termination: Termination, heart: Heart, kept: Result | None) -> Result | None:
        """None: the driver had given up, launch again."""
        creation = Creation(self._manifest, self._request, self._around, termination)
        rayjob, adopted = creation.create_or_adopt(result_is_there=kept is not None)
        if rayjob is None:
            progress.emit(self._job, "note", text="the result of an earlier launch is there, kept")
            return kept
        uid = rayjob["metadata"]["uid"]
        progress.emit(self._job, "note", text=f"{self._where} {'is there already: adopted' if adopted else 'created'}")
        if adopted:
            created_s = datetime.fromisoformat(rayjob["metadata"]["creationTimestamp"]).timestamp()
            self._deadline_s -= max(self._around.wall() - created_s, 0.0)
        heart.names(self._name, uid)
        with DriverLog(self._cluster, self._around.log_line, clock=self._clock, sleep=self._around.sleep) as log:
            seen = self._wait(uid, log)
            if seen.outcome not in (Outcome.DELETED, Outcome.REPLACED, Outcome.UNREACHABLE):
                log.drain(DRAIN_S)
        return self._result_of(seen)

    def _wait(self, uid: str, log: DriverLog) -> Seen:
        watch = Watch(uid, launcher=self._id, queue_timeout_s=self._config.queue_timeout_s)
        health = PodHealth()
        self._failures_read = 0
        while True:
            seen = self._look(watch, health)
            self._tell(seen)
            if seen.phase != "unreachable":
                log.follow(seen.ray_cluster)
            if seen.outcome is not None:
                return seen
            self._check_refusal(seen)
            if log.forbidden is not None and self._clock() - log.forbidden[1] >= FORBIDDEN_BUDGET_S:
                raise log.forbidden[0].for_user()
            if self._clock() >= self._deadline_s:
                problem = f"did not end within {self._config.overall_timeout_s} s"
                next_step = "raise it, and start the same run again: it continues from its last checkpoint"
                raise UserError(self._where, "cluster.overall_timeout_s", problem, next_step)
            self._around.sleep(POLL_S)

    def _look(self, watch: Watch, health: PodHealth) -> Seen:
        """One round of questions. Raises UserError for a pod that cannot start."""
        events_are_due = self._phase[0] == "starting" and self._clock() >= self._events_due_s
        try:
            rayjob = self._cluster.rayjob(self._name)
            ray_cluster = rayjob.get("status", {}).get("rayClusterName", "")
            pods = self._cluster.pods(f"ray.io/cluster={ray_cluster}") if ray_cluster else []
            events = self._cluster.warnings() if events_are_due else []
        except ApiError as error:
            return watch.miss(error, self._clock())
        now_s = self._clock()
        if events_are_due:
            self._events_due_s = now_s + EVENTS_EVERY_S
        seen = watch.see(rayjob, now_s)
        if seen.outcome is None:
            names = frozenset([ray_cluster, *(pod["metadata"]["name"] for pod in pods)])
            for trouble in (*health.see(pods, now_s), *health.warn_of(events, names, now_s)):
                self._tell_trouble(trouble)
        return seen

    def _tell_trouble(self, trouble: Trouble) -> None:
        if trouble.fatal:
            raise UserError(trouble.where, trouble.reason, trouble.message, trouble.next_step)
        self._around.warn(trouble.line)

    def _tell(self, seen: Seen) -> None:
        text = verdicts.phase_text(seen, self._config)
        if text and (seen.phase, seen.failures) != self._phase:
            progress.emit(self._job, "warn" if seen.phase in ("unreachable", "retrying") else "note", text=text)
        self._phase = (seen.phase, seen.failures)

    def _check_refusal(self, seen: Seen) -> None:
        """A stage that refused its input refuses it in the next attempt too: raise its UserError at once."""
        if not seen.attempt_failed and seen.failures == self._failures_read:
            return
        try:
            refusal = self._around.hasty_files.read(Refusal)
        except StoreOutageError:
            return  # asked again at the next look
        self._failures_read = seen.failures
        if refusal is not None:
            raise refusal.error

    def _result_of(self, seen: Seen) -> Result | None:
        """None: the driver had given up. Raises UserError or StageFailedError for every failure."""
        if seen.outcome is Outcome.FAILED and (refusal := self._files.read(Refusal)) is not None:
            raise refusal.error
        if seen.outcome is not Outcome.SUCCEEDED:
            raise verdicts.failure(seen, self._where, self._config, self._cluster.namespace)
        result, attempt = self._files.read(Result), self._files.read(Attempt)
        if result is None:
            if self._files.read(Abandoned) is not None:
                return None
            raise StageFailedError(f"{self._where}: ended well, but left no result in {self._files.uri}")
        if attempt is None or attempt.attempt != result.attempt:
            raise StageFailedError(f"{self._where}: the result in {self._files.uri} is not of its newest attempt")
        verdicts.check_checkpoint(result.outputs)
        return result

    def _clean_up(self) -> None:
        """Delete the RayJob, unless another launcher has it; says so where it could not."""
        give_up_s = self._clock() + CLEAN_UP_S
        while True:
            try:
                metadata = self._cluster.rayjob(self._name)["metadata"]
                if metadata.get("annotations", {}).get(LAUNCHER_ANNOTATION) == self._id:
                    self._cluster.delete_rayjob(self._name, metadata["uid"])
                return
            except (NotFoundError, ConflictError):
                return
            except ApiError as error:
                if not isinstance(error, UnavailableError) or self._clock() >= give_up_s:
                    command = f"gripline reap --namespace {self._cluster.namespace} --yes"
                    self._around.warn(
                        f"{self._where} could not be deleted ({error}); it ends by itself, or with `{command}`"
                    )
                    return
            self._around.sleep(1.0)

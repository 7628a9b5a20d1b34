"""One launch of one job, against a cluster in memory whose operator follows a script."""

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import START_WALL_S, FakeClock, FakeCluster, make_pod, unschedulable, waiting
from http_api import wait_for

from gripline.cluster_config import ClusterConfig, Section
from gripline.errors import UserError
from gripline.kube.api import NoSuchKindError, Object, RefusedError, UnavailableError
from gripline.kube.creation import GONE_TIMEOUT_S, REQUEST_ANNOTATION
from gripline.kube.jobfiles import Abandoned, Attempt, Entry, Heartbeat, JobFiles, Refusal, Request, Result
from gripline.kube.launcher import MOST_LAUNCHES, Launcher, request_hash
from gripline.kube.names import SPEC_HASH_ANNOTATION
from gripline.kube.own_pod import OwnPod
from gripline.kube.surroundings import Surroundings
from gripline.kube.verdicts import StageFailedError
from gripline.kube.watch import LAUNCHER_ANNOTATION, UNAVAILABLE_BUDGET_S
from gripline.object_store import StoreOutageError

NAME = "laptop-1-rl-0a1b2c3d"


class World:
    """A launcher with all that it touches."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock, self.cluster = FakeClock(), FakeCluster()
        self.files = JobFiles(str(folder / "run"), "rl")
        self.checkpoint = folder / "run" / "rl" / "checkpoint"
        self.warnings: list[str] = []
        self.config = ClusterConfig(stages=("rl",), heartbeat_every_s=20, **settings)
        self.request = Request(
            launch="this-launch",
            function="components.rl.train:run",
            arguments={"config": "{}"},
            heartbeat_every_s=20,
            orphan_after_s=600,
        )

    def manifest(self) -> Object:
        annotations = {SPEC_HASH_ANNOTATION: "hash-1"}
        owner = {"apiVersion": "v1", "kind": "Pod", "name": "me", "uid": "my-uid"}
        metadata = {"name": NAME, "labels": {}, "annotations": annotations, "ownerReferences": [owner]}
        return {"metadata": metadata, "spec": {"backoffLimit": 2}}

    def launcher(self) -> Launcher:
        around = Surroundings(
            cluster=self.cluster,
            emergency=self.cluster,
            files=self.files,
            hasty_files=self.files,
            own_pod=OwnPod(),
            log_line=print,
            warn=self.warnings.append,
            clock=self.clock,
            sleep=self.clock.sleep,
            wall=self.clock.wall,
        )
        return Launcher(self.config, "rl", self.manifest(), self.request, around)

    def existing(self, *, launch: str = "former", age_s: float = 0.0, request: Request | None = None) -> Object:
        """A RayJob that an earlier launcher left."""
        manifest = self.manifest()
        manifest["metadata"]["annotations"] |= {
            LAUNCHER_ANNOTATION: launch,
            REQUEST_ANNOTATION: request_hash(request or self.request),
        }
        self.clock.now_s = age_s
        return self.cluster.add_rayjob(manifest)

    def operator(self, *script: tuple[float, dict[str, Any]]) -> None:
        """What the status is from each time on, counted from now."""
        for time_s, fields in script:
            self.clock.at(self.clock.now_s + time_s, lambda fields=fields: self.cluster.status(NAME, **fields))

    def at(self, time_s: float, *actions: Callable[[], Any]) -> None:
        for action in actions:
            self.clock.at(self.clock.now_s + time_s, action)

    def finish(self, attempt: str = "a1") -> None:
        """What the driver leaves at a good end."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        (self.checkpoint / "manifest.json").write_text("{}")
        hash_ = hashlib.sha256(b"{}").hexdigest()
        self.files.write(Attempt(attempt=attempt, time_s=0))
        self.files.write(Result(attempt=attempt, outputs={"uri": str(self.checkpoint), "hash": hash_, "success": 0.5}))

    def write(self, entry: Entry) -> Callable[[], None]:
        return lambda: self.files.write(entry)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def status(deployment: str, job: str = "", **more: Any) -> dict[str, Any]:
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "rayClusterName": "rc-1"} | more


STARTING, RUNNING = status("Initializing"), status("Running", "RUNNING")
DONE = status("Complete", "SUCCEEDED", succeeded=1)
GOOD = ((1, STARTING), (10, RUNNING), (60, DONE))


def test_success(world: World) -> None:
    def heart_beats_for(uid: str) -> bool:
        beat = world.files.read(Heartbeat)
        return beat is not None and (beat.launcher, beat.rayjob, beat.rayjob_uid) == ("this-launch", NAME, uid)

    world.operator(*GOOD)
    world.at(30, lambda: wait_for(lambda: heart_beats_for("uid-1")))  # on a thread, which knows no fake clock
    world.at(59, world.finish)
    result = world.launcher().run()
    assert result.outputs["success"] == 0.5
    created = world.cluster.created[0]["metadata"]
    assert created["annotations"] == {
        SPEC_HASH_ANNOTATION: "hash-1",
        LAUNCHER_ANNOTATION: "this-launch",
        REQUEST_ANNOTATION: request_hash(world.request),
    }
    assert world.cluster.objects == {}, "what has ended well is not left for a TTL"
    assert world.files.read(Request) == world.request
    assert world.warnings == []


def test_attempts_that_fail_before_one_that_succeeds(world: World) -> None:
    """Catches: `jobStatus: FAILED` taken for the end."""
    failed = {"reason": "AppFailed", "message": "exit code 1, last available logs (truncated): secrets", "failed": 1}
    world.operator(
        (1, STARTING), (10, RUNNING), (20, status("Running", "FAILED")), (22, status("Retrying", "FAILED", **failed)),
        (30, {"failed": 1}), (33, status("Initializing", failed=1)), (40, status("Running", "RUNNING", failed=1)),
        (60, DONE | {"failed": 1}),
    )  # fmt: skip
    world.at(59, world.finish)
    assert world.launcher().run().attempt == "a1"


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        (status("Failed", "FAILED", reason="AppFailed", message="exit 1", failed=3), StageFailedError, "AppFailed: e"),
        (status("Failed", "FAILED", reason="SubmissionFailed", failed=3), StageFailedError, "SubmissionFailed"),
        (status("Failed", "RUNNING", reason="DeadlineExceeded"), UserError, "cluster.attempt_timeout_s: an att"),
        (status("Failed", "", reason="PreRunningDeadlineExceeded"), UserError, "cluster.start_timeout_s: its po"),
        (status("Failed", "RUNNING", reason="JobStatusCheckTimeoutExceeded"), UserError, "cannot reach the head pod"),
        (status("Complete", "STOPPED"), UserError, "was stopped, as by `ray job stop`"),
        (status("ValidationFailed", message="bad spec"), UserError, "was refused by KubeRay: bad spec"),
    ],
)  # fmt: skip
def test_every_other_end(world: World, last: dict[str, Any], kind: type[Exception], told: str) -> None:
    world.operator((1, STARTING), (10, RUNNING), (30, last))
    world.at(29, world.finish)  # a result beside a job that did not succeed counts for nothing
    with pytest.raises(kind, match=told):
        world.launcher().run()
    assert world.cluster.objects == {}


def test_no_operator(world: World) -> None:
    with pytest.raises(UserError, match="no KubeRay operator is running"):
        world.launcher().run()
    assert 30 <= world.clock.now_s < 40
    assert world.cluster.objects == {}


def test_stuck_finalizer_does_not_hold_the_step(world: World) -> None:
    """Catches: a clean-up that waits for an operator that is not there."""
    world.cluster.has_operator = False
    with pytest.raises(UserError, match="no KubeRay operator"):
        world.launcher().run()
    assert world.clock.now_s < 40 and world.cluster.deleted == ["uid-1"]


def test_deleted_by_someone(world: World) -> None:
    world.operator((1, RUNNING))
    world.at(30, world.cluster.objects.clear)
    with pytest.raises(UserError, match="was deleted by someone else; start the same run again"):
        world.launcher().run()


def test_replaced_by_someone(world: World) -> None:
    def replace() -> None:
        world.cluster.objects.clear()
        world.cluster.add_rayjob(world.manifest())

    world.operator((1, RUNNING))
    world.at(30, replace)
    with pytest.raises(UserError, match="made anew by someone else"):
        world.launcher().run()
    assert NAME in world.cluster.objects, "somebody else's is not ours to delete"


def test_queue(tmp_path: Path) -> None:
    world = World(tmp_path, queue="robots", queue_timeout_s=300)
    world.operator((1, status("Suspended")), (250, STARTING), (260, RUNNING), (300, DONE))
    world.at(299, world.finish)
    world.launcher().run()
    late = World(tmp_path / "late", queue="robots", queue_timeout_s=300)
    late.operator((1, status("Suspended")))
    with pytest.raises(UserError, match=r"cluster.queue_timeout_s: was not admitted within 300 s"):
        late.launcher().run()
    assert late.cluster.objects == {}


def test_overall_timeout_counts_from_the_first_launch(tmp_path: Path) -> None:
    """Catches: a step that is started again and again, and so never ends."""
    settings = {"overall_timeout_s": 1000, "attempt_timeout_s": 1000, "start_timeout_s": 900}
    world = World(tmp_path, **settings)
    world.operator((1, RUNNING))
    with pytest.raises(UserError, match=r"cluster.overall_timeout_s: did not end within 1000 s"):
        world.launcher().run()
    assert 1000 <= world.clock.now_s < 1010
    adopting = World(tmp_path / "adopting", **settings)
    adopting.existing(age_s=900.0)
    adopting.operator((0, RUNNING))
    with pytest.raises(UserError, match=r"cluster.overall_timeout_s"):
        adopting.launcher().run()
    assert 1000 <= adopting.clock.now_s < 1010
    assert world.cluster.objects == adopting.cluster.objects == {}


# --- what was there before


def test_running_one_is_adopted(world: World) -> None:
    """Catches: two jobs for one stage after a pod was replaced; a result deleted under its reader."""
    world.existing()
    world.operator((0, RUNNING), (30, DONE))
    world.finish()
    seen: list[Object] = []
    world.at(10, lambda: seen.append(world.cluster.rayjob(NAME)["metadata"]))
    assert world.launcher().run().attempt == "a1"
    assert world.cluster.created == []
    assert seen[0]["annotations"][LAUNCHER_ANNOTATION] == "this-launch"
    assert seen[0]["ownerReferences"][0]["uid"] == "my-uid"
    assert world.files.read(Request) == world.request
    assert world.cluster.objects == {}


def test_adopted_in_the_moment_of_giving_up(world: World) -> None:
    """Catches: the driver's last word removed by the launcher that came too late, and a failure without a reason."""
    world.existing()
    world.files.write(Abandoned(attempt="a1", reason="no heartbeat", time_s=0))
    world.cluster.status(NAME, **RUNNING)
    world.operator((3, DONE))
    world.cluster.on_create = lambda: (world.operator((1, RUNNING), (20, DONE)), world.at(19, world.finish))
    assert world.launcher().run().attempt == "a1"
    assert len(world.cluster.created) == 1


@pytest.mark.parametrize("what", ["spec", "request"])
def test_another_one_at_work_is_left_alone(world: World, what: str) -> None:
    other = world.request.model_copy(update={"arguments": {"config": "{1}"}}) if what == "request" else None
    stored = world.existing(request=other)
    if what == "spec":
        world.cluster.objects[NAME]["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = "hash-2"
    world.cluster.status(NAME, **RUNNING)
    theirs = (other or world.request).model_copy(update={"launch": "theirs"})
    world.files.write(theirs)
    with pytest.raises(UserError, match=f"kubectl -n robots delete rayjob {NAME}"):
        world.launcher().run()
    assert world.cluster.objects[NAME]["metadata"]["uid"] == stored["metadata"]["uid"]
    assert world.files.read(Request) == theirs, "its next attempt must not find another request"


@pytest.mark.parametrize(
    "last", [status("Failed", "FAILED"), status("ValidationFailed"), status("Complete", "STOPPED")]
)
def test_finished_one_without_result_is_replaced(world: World, last: dict[str, Any]) -> None:
    world.existing()
    world.cluster.status(NAME, **last)
    world.operator((2, STARTING), (10, RUNNING), (30, DONE))
    world.at(29, world.finish)
    world.launcher().run()
    assert world.cluster.deleted == ["uid-1", "uid-2"] and len(world.cluster.created) == 1


def test_finished_one_with_its_result_is_taken(world: World) -> None:
    world.existing()
    world.cluster.status(NAME, **DONE)
    world.files.write(world.request.model_copy(update={"launch": "former"}))
    world.finish()
    assert world.launcher().run().attempt == "a1"
    assert world.cluster.created == [] and world.cluster.objects == {}


def test_result_of_an_earlier_launch_is_taken_without_a_job(world: World) -> None:
    """Catches: pods started for a stage that is finished, because the step died between the result and its end."""
    world.files.write(world.request.model_copy(update={"launch": "former"}))
    world.finish()
    assert world.launcher().run().attempt == "a1"
    assert world.cluster.created == []


@pytest.mark.parametrize("why", ["other request", "checkpoint gone"])
def test_result_of_something_else_is_not_taken(world: World, why: str) -> None:
    former = world.request.model_copy(update={"launch": "former"})
    if why == "other request":
        former = former.model_copy(update={"files": {"splits_path": "in/splits_path-00000000"}})
    world.files.write(former)
    world.finish("old")
    if why == "checkpoint gone":
        (world.checkpoint / "manifest.json").unlink()
    world.operator(*GOOD)
    world.at(59, lambda: world.finish("new"))
    assert world.launcher().run().attempt == "new"


def test_stale_result_is_no_result_of_a_new_job(world: World) -> None:
    """Catches: the former result handed on for a driver that ended well and wrote nothing."""
    world.files.write(world.request.model_copy(update={"function": "other:run"}))
    world.finish("old")
    world.operator(*GOOD)
    with pytest.raises(StageFailedError, match="left no result"):
        world.launcher().run()


def test_one_that_is_being_deleted_is_waited_for(world: World) -> None:
    stored = world.existing()
    world.cluster.objects[NAME]["metadata"]["deletionTimestamp"] = "now"
    world.at(20, world.cluster.objects.clear)
    world.operator((25, RUNNING), (40, DONE))
    world.at(39, world.finish)
    world.launcher().run()
    assert world.cluster.created and stored["metadata"]["uid"] not in world.cluster.deleted


def test_one_that_cannot_be_deleted_is_told(world: World) -> None:
    world.existing()
    world.cluster.objects[NAME]["metadata"]["deletionTimestamp"] = "now"
    with pytest.raises(UserError, match="still being deleted"):
        world.launcher().run()
    assert world.clock.now_s < GONE_TIMEOUT_S + 10


def test_answer_to_the_creation_is_lost(world: World) -> None:
    """Catches: a job that exists, and a launcher that does not know it."""
    world.cluster.loses_next_answer = True
    world.operator(*GOOD)
    world.at(59, world.finish)
    world.launcher().run()
    assert len(world.cluster.created) == 1 and world.cluster.objects == {}


def test_later_launcher_takes_over(world: World) -> None:
    """Catches: a launcher that was believed dead deletes the job that its successor waits for."""

    def take_over() -> None:
        world.cluster.objects[NAME]["metadata"]["annotations"][LAUNCHER_ANNOTATION] = "successor"

    world.operator((1, RUNNING))
    world.at(30, take_over)
    with pytest.raises(UserError, match="another launcher"):
        world.launcher().run()
    assert NAME in world.cluster.objects and world.cluster.deleted == []


# --- what the driver says


def test_stages_own_user_error_ends_it_at_once(world: World) -> None:
    """Catches: two more attempts, each with minutes of start, for a mistake that each finds again."""
    world.operator((1, STARTING), (10, RUNNING), (20, status("Retrying", "FAILED", failed=1)))
    refusal = Refusal(attempt="a1", where="s3://b/x", field="contract.suite", problem="is odd", next_step="mend it")
    world.at(19, world.write(refusal))
    with pytest.raises(UserError, match=r"^s3://b/x: contract.suite: is odd; mend it$"):
        world.launcher().run()
    assert world.clock.now_s < 30 and world.cluster.objects == {}


def test_user_error_of_the_last_attempt(world: World) -> None:
    world.operator((1, RUNNING), (20, status("Failed", "FAILED", reason="AppFailed", failed=3)))
    world.at(19, world.write(Refusal(attempt="a1", where="x", field="", problem="is odd", next_step="mend it")))
    with pytest.raises(UserError, match="x: is odd"):
        world.launcher().run()


def test_user_error_is_found_after_a_store_outage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a refusal missed for good because the store was away when it was looked for."""
    real_read, outage = world.files.read, [True]

    def read(kind: type[Any]) -> Any:
        if kind is Refusal and outage[0]:
            raise StoreOutageError("s3://b", "", "does not answer", "wait")
        return real_read(kind)

    monkeypatch.setattr(world.files, "read", read)
    refusal = Refusal(attempt="a1", where="x", field="", problem="is odd", next_step="mend it")
    world.operator((1, RUNNING), (20, status("Retrying", "FAILED", failed=1)), (30, status("Initializing", failed=1)))
    world.at(19, world.write(refusal))
    world.at(60, outage.clear, lambda: outage.append(False))
    with pytest.raises(UserError, match="x: is odd"):
        world.launcher().run()
    assert 60 <= world.clock.now_s < 70


def test_abandoned_job_is_launched_again(world: World) -> None:
    world.operator((1, RUNNING), (20, DONE), (40, RUNNING), (60, DONE))
    world.at(19, world.write(Abandoned(attempt="a1", reason="no heartbeat", time_s=0)))
    world.at(59, lambda: world.finish("a2"))
    assert world.launcher().run().attempt == "a2"
    assert world.cluster.deleted == ["uid-1", "uid-2"]
    assert "no heartbeat" in world.warnings[0]


def test_job_that_is_always_abandoned_ends(world: World) -> None:
    def play() -> None:
        world.operator((1, RUNNING), (15, DONE))
        world.at(14, world.write(Abandoned(attempt="a", reason="", time_s=0)))

    world.cluster.on_create = play
    with pytest.raises(UserError, match="found no heartbeat"):
        world.launcher().run()
    assert len(world.cluster.created) == MOST_LAUNCHES and world.cluster.objects == {}


def test_result_of_a_superseded_attempt_is_refused(world: World) -> None:
    world.operator(*GOOD)
    world.at(58, lambda: world.finish("old"))
    world.at(59, world.write(Attempt(attempt="new", time_s=1)))
    with pytest.raises(StageFailedError, match="not of its newest attempt"):
        world.launcher().run()


def test_checkpoint_must_be_the_one_that_was_reported(world: World) -> None:
    world.operator(*GOOD)
    world.at(59, world.finish, lambda: (world.checkpoint / "manifest.json").write_text("{ }"))
    with pytest.raises(StageFailedError, match="not the one that the driver reported"):
        world.launcher().run()
    assert world.cluster.objects == {}


def test_checkpoint_must_be_there(world: World) -> None:
    world.operator(*GOOD)
    world.at(59, world.finish, (world.checkpoint / "manifest.json").unlink)
    with pytest.raises(StageFailedError, match=r"reported a checkpoint, but .*manifest.json: does not exist"):
        world.launcher().run()


# --- pods


def test_image_that_cannot_be_pulled_ends_within_30_s(world: World) -> None:
    world.operator((1, STARTING))
    message = 'failed to pull "registry/env:9": not found'
    pod = waiting(make_pod("env-1"), "ErrImagePull", message)
    world.at(3, lambda: world.cluster.pod_list.append(pod))
    with pytest.raises(UserError, match="env pod env-1: ErrImagePull: failed to pull") as refused:
        world.launcher().run()
    assert "cluster.env.image" in refused.value.next_step
    assert world.clock.now_s < 3 + 30 and world.cluster.objects == {}


def test_pods_without_a_node_are_told_with_the_schedulers_reason(world: World) -> None:
    world.operator((1, STARTING), (600, RUNNING), (620, DONE))
    world.cluster.pod_list = [unschedulable(make_pod("env-1"), "0/9 nodes are available: 9 Insufficient gpu")]
    world.at(590, world.cluster.pod_list.clear)
    world.at(619, world.finish)
    world.launcher().run()
    assert world.warnings[0] == "env pod env-1: Unschedulable: 0/9 nodes are available: 9 Insufficient gpu"
    assert len(world.warnings) == 2, "said again after five minutes, not every two seconds"


# --- the API server


def test_api_server_away_for_a_minute(world: World) -> None:
    world.operator((1, RUNNING), (120, DONE))
    world.at(30, lambda: setattr(world.cluster, "is_down", True))
    world.at(90, lambda: setattr(world.cluster, "is_down", False))
    world.at(119, world.finish)
    world.launcher().run()
    assert world.cluster.objects == {}


def test_api_server_away_at_the_start_and_at_the_end(world: World) -> None:
    world.cluster.is_down = True
    world.at(60, lambda: setattr(world.cluster, "is_down", False))
    world.operator((70, RUNNING), (100, DONE))
    world.at(99, world.finish)
    world.at(101, lambda: world.cluster.errors.update({("delete", "rayjobs"): UnavailableError("503")}))
    assert world.launcher().run().attempt == "a1", "a result is a result"
    assert "trying for" in world.warnings[0]
    assert "gripline reap --namespace robots --yes" in world.warnings[-1]


def test_api_server_away_for_good(world: World) -> None:
    world.operator((1, RUNNING))
    world.at(30, lambda: setattr(world.cluster, "is_down", True))
    with pytest.raises(UserError, match="cannot be watched: the Kubernetes API does not answer"):
        world.launcher().run()
    assert world.clock.now_s >= UNAVAILABLE_BUDGET_S


@pytest.mark.parametrize(
    ("verb", "resource", "creates"),
    [
        ("get", "rayjobs", False),
        ("create", "rayjobs", False),
        ("list", "pods", False),
        ("list", "events", False),
    ],
)
def test_missing_right_is_named_before_anything_is_made(world: World, verb: str, resource: str, creates: bool) -> None:
    world.cluster.forbid(verb, resource)
    with pytest.raises(UserError, match=f"namespace robots: no permission to {verb} {resource}"):
        world.launcher().run()
    assert world.cluster.objects == {}


def test_missing_right_to_adopt(world: World) -> None:
    world.existing()
    world.cluster.status(NAME, **RUNNING)
    world.cluster.forbid("patch", "rayjobs")
    with pytest.raises(UserError, match="no permission to patch rayjobs"):
        world.launcher().run()


def test_missing_right_to_delete_is_told_and_hides_nothing(world: World) -> None:
    world.cluster.forbid("delete", "rayjobs")
    world.operator((1, RUNNING), (20, status("Complete", "STOPPED")))
    with pytest.raises(UserError, match="was stopped"):
        world.launcher().run()
    assert "could not be deleted" in world.warnings[-1]


def test_right_that_is_lost_on_the_way(world: World) -> None:
    world.operator((1, RUNNING))
    world.at(30, lambda: world.cluster.forbid("get", "rayjobs"))
    with pytest.raises(UserError, match="may not be watched any more"):
        world.launcher().run()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RefusedError("spec.rayClusterSpec: Invalid value"), "was refused: spec.rayClusterSpec: Invalid value"),
        (NoSuchKindError("the server could not find the requested resource"), "knows no RayJobs"),
    ],
)
def test_refused_creation(world: World, error: Exception, told: str) -> None:
    world.cluster.errors["create", "rayjobs"] = error
    with pytest.raises(UserError, match=told):
        world.launcher().run()


# --- the end of this process


def test_interrupt_deletes_the_job(world: World) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    world.operator((1, RUNNING))
    world.at(30, interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.launcher().run()
    assert world.cluster.deleted == ["uid-1"]


def test_any_other_error_deletes_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.operator((1, RUNNING))
    world.at(30, lambda: world.cluster.objects[NAME].pop("spec"))  # an answer that nobody expects
    with pytest.raises(KeyError):
        world.launcher().run()
    assert world.cluster.deleted == ["uid-1"]


def test_former_sigterm_handler_is_put_back(world: World) -> None:
    before = signal.getsignal(signal.SIGTERM)
    world.operator(*GOOD)
    world.at(59, world.finish)
    world.launcher().run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_created_when_the_store_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(entry: Entry) -> None:
        raise UserError("s3://b", "", "access denied", "see its policy")

    monkeypatch.setattr(world.files, "write", write)
    with pytest.raises(UserError, match="access denied"):
        world.launcher().run()
    assert world.cluster.created == []


def test_clock_of_the_tests() -> None:
    """The fake's time of creation is its clock's zero."""
    from datetime import datetime

    from fake_cluster import CREATED

    assert datetime.fromisoformat(CREATED).timestamp() == START_WALL_S
    assert issubclass(Request, Section)

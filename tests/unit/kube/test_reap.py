"""Who is left over, who is not, and what `gripline reap` does about it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import START_WALL_S, FakeCluster, make_pod
from http_api import HttpApi, http_api

from gripline.errors import UserError
from gripline.kube.api import NoSuchKindError, Object, RefusedError, UnavailableError
from gripline.kube.jobfiles import Heartbeat, JobFiles
from gripline.kube.names import ORPHAN_ANNOTATION, RUN_DIR_ANNOTATION, labels
from gripline.kube.reap import GRACE_S, reap

ORPHAN_AFTER_S = 600.0
NOW_S = START_WALL_S + 100_000


def stamp(seconds_ago: float) -> str:
    return datetime.fromtimestamp(NOW_S - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class World:
    """A namespace with one RayJob at work, whose launcher's heartbeat is as old as told."""

    def __init__(self, folder: Path) -> None:
        self.cluster = FakeCluster()
        self.run_dir = folder / "run"
        self.files = JobFiles(str(self.run_dir), "rl")
        self.slept_s: list[float] = []
        manifest = {
            "metadata": {
                "name": "a-rl",
                "labels": labels("a", "rl"),
                "annotations": {RUN_DIR_ANNOTATION: str(self.run_dir), ORPHAN_ANNOTATION: f"{ORPHAN_AFTER_S:g}"},
            },
            "spec": {"activeDeadlineSeconds": 43_200},
        }
        self.cluster.add_rayjob(manifest, created=stamp(20_000))
        self.cluster.status("a-rl", jobDeploymentStatus="Running", startTime=stamp(19_000))
        self.beat(age_s=ORPHAN_AFTER_S + 100)

    @property
    def rayjob(self) -> Object:
        return self.cluster.objects["a-rl"]

    def beat(self, age_s: float, count: int = 1) -> None:
        self.files.write(Heartbeat(launcher="l", count=count, time_s=NOW_S - age_s))

    def owned_by(self, kind: str) -> None:
        self.rayjob["metadata"]["ownerReferences"] = [{"kind": kind, "name": "owner", "uid": "owner-uid"}]

    def reap(self, *, delete: bool = True) -> int:
        return reap(self.cluster, delete=delete, wall=lambda: NOW_S, sleep=self.slept_s.append)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_orphan_is_listed_and_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.reap(delete=False) == 1
    shown = told(capsys)
    assert "✗  RayJob  a-rl  Running  5h33m  no heartbeat for 11m" in shown
    assert shown.endswith("1 to reap in namespace robots; --yes deletes them\n")
    assert world.cluster.deleted == [] and world.slept_s == []


def test_orphan_is_deleted_when_its_heartbeat_stands_still(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.reap() == 0
    assert world.cluster.deleted == ["uid-1"]
    assert world.slept_s == [ORPHAN_AFTER_S / 5], "as long as one beat may take"
    assert told(capsys).endswith("RayJob a-rl: deleted\n")


def test_heartbeat_that_moves_saves_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a run deleted because this machine's clock is ten minutes ahead."""
    result = reap(
        world.cluster,
        delete=True,
        wall=lambda: NOW_S,
        sleep=lambda _: world.beat(age_s=ORPHAN_AFTER_S + 50, count=2),
    )
    assert result == 0 and world.cluster.deleted == []
    assert "a-rl: left, it has a new heartbeat" in told(capsys)


def test_live_one_is_none(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.beat(age_s=30)
    world.cluster.status("a-rl", jobDeploymentStatus="Running", startTime=stamp(99_000))
    world.owned_by("Workflow")  # which is gone; its step is still cleaning up
    assert world.reap() == 0
    assert "at work, heartbeat 30s ago" in told(capsys)
    assert world.cluster.deleted == []


@pytest.mark.parametrize(
    ("kind", "phase", "uid", "verdict"),
    [
        ("Workflow", "Failed", "owner-uid", "its Workflow owner has ended"),
        ("Workflow", "Running", "another", "its Workflow owner has ended"),
        ("Workflow", None, "", "its Workflow owner is gone"),
        ("Workflow", "Running", "owner-uid", None),
        ("Pod", "Succeeded", "owner-uid", "its Pod owner has ended"),
        ("Pod", None, "", "its Pod owner is gone"),
        ("Pod", "Running", "owner-uid", None),
    ],
)
def test_owner(
    world: World,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    phase: str | None,
    uid: str,
    verdict: str | None,
) -> None:
    """With a store that cannot be read, the owner alone decides."""
    world.rayjob["metadata"]["annotations"][RUN_DIR_ANNOTATION] = "/not/on/this/machine"
    world.owned_by(kind)
    if phase is not None:
        owner: Object = make_pod("owner")
        owner["metadata"]["uid"], owner["status"] = uid, {"phase": phase}
        if kind == "Workflow":
            world.cluster.workflows["owner"] = owner
        else:
            world.cluster.pod_list = [owner]
    assert world.reap(delete=False) == (0 if verdict is None else 1)
    shown = told(capsys)
    assert (verdict or "not known: /not/on/this/machine is a folder of another machine") in shown


def test_owner_that_may_not_be_read_leaves_it_to_the_heartbeat(world: World) -> None:
    world.owned_by("Workflow")
    world.cluster.forbid("get", "workflows")
    assert world.reap() == 0 and world.cluster.deleted == ["uid-1"]


def test_store_that_cannot_be_read_is_no_stale_heartbeat(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def read(run_dir: str, job: str) -> Heartbeat | None:
        raise UserError(run_dir, "", "access denied", "")

    assert reap(world.cluster, delete=True, read=read, wall=lambda: NOW_S) == 0
    assert "–  RayJob" in told(capsys) and world.cluster.deleted == []


def test_past_its_deadline(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rayjob["metadata"]["annotations"][RUN_DIR_ANNOTATION] = "/not/on/this/machine"
    started = stamp(43_200 + GRACE_S + 60)
    world.cluster.status("a-rl", jobDeploymentStatus="Running", startTime=started)
    assert world.reap() == 0
    assert "past its deadline" in told(capsys) and world.cluster.deleted == ["uid-1"]


@pytest.mark.parametrize(("ended_s", "orphan"), [(GRACE_S - 60, False), (GRACE_S + 60, True)])
def test_finished_one(world: World, ended_s: float, orphan: bool) -> None:
    """What a launcher that died left: it holds no pods any more, but its name."""
    world.cluster.status("a-rl", jobDeploymentStatus="Complete", endTime=stamp(ended_s))
    assert world.reap() == 0
    assert bool(world.cluster.deleted) == orphan


def test_one_that_is_new_or_going_is_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.files.remove(Heartbeat)
    world.rayjob["metadata"]["creationTimestamp"] = stamp(10)
    assert world.reap() == 0
    assert "new, no heartbeat yet" in told(capsys)
    world.rayjob["metadata"]["deletionTimestamp"] = stamp(2 * GRACE_S)
    assert world.reap() == 0
    assert "being deleted for 10m; does KubeRay's operator run?" in told(capsys)
    assert world.cluster.deleted == []


def test_raycluster_without_a_rayjob(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def raycluster(name: str, owner: str) -> Object:
        metadata: dict[str, Any] = {"name": name, "uid": f"uid-{name}", "labels": labels("a", "rl")}
        metadata |= {"creationTimestamp": stamp(100), "ownerReferences": [{"kind": "RayJob", "uid": owner}]}
        return {"metadata": metadata}

    world.beat(age_s=1)
    world.cluster.clusters = {"kept": raycluster("kept", "uid-1"), "lost": raycluster("lost", "uid-0")}
    assert world.reap() == 0
    assert world.cluster.deleted == ["uid-lost"] and world.slept_s == []
    assert "RayCluster  lost" in told(capsys)


def test_what_cannot_be_deleted_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.cluster.forbid("delete", "rayjobs")
    assert world.reap() == 1
    assert "RayJob a-rl: cannot be deleted: denied" in told(capsys)


def test_other_peoples_rayjobs_are_not_looked_at(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rayjob["metadata"]["labels"] = {}
    assert world.reap() == 0
    assert told(capsys) == "nothing to reap in namespace robots\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NoSuchKindError("no such resource"), "cluster: knows no RayJobs"),
        (UnavailableError("connection refused"), "cluster: does not answer: connection refused"),
        (RefusedError("bad selector"), "cluster: does not answer: bad selector"),
    ],
)
def test_cluster_that_cannot_be_asked(world: World, error: Exception, line: str) -> None:
    world.cluster.errors["list", "rayjobs"] = error
    with pytest.raises(UserError, match=line):
        world.reap()
    world.cluster.forbid("list", "rayjobs")
    with pytest.raises(UserError, match="namespace robots: no permission to list rayjobs"):
        world.reap()


def test_command_line(tmp_path: Path) -> None:
    """The whole way, in a process of its own."""
    import subprocess
    import sys

    server: HttpApi
    with http_api() as server:
        config = server.kubeconfig(tmp_path / "config")
        path = "/apis/ray.io/v1/namespaces/robots/rayclusters"
        server.answers["GET", path] = 200, {"items": []}
        command = [sys.executable, "-m", "pipelines.cli", "reap"]
        variables = {"KUBECONFIG": str(config), "PATH": ""}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "nothing to reap in namespace robots\n"), done.stderr
        server.answers["GET", path] = 403, {"message": "denied"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.startswith("gripline: namespace robots: no permission to list")

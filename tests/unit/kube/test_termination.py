"""SIGTERM: half a second, one DELETE, no output; and none at all where the pod is being replaced."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cluster import FakeClock, FakeCluster, make_pod
from http_api import PODS, RAYJOBS, HttpApi, http_api, wait_for

from gripline.kube.api import UnavailableError
from gripline.kube.own_pod import OwnPod
from gripline.kube.termination import Termination

MANIFEST = {"metadata": {"name": "a", "annotations": {}}, "spec": {}}


class Ended(Exception):  # noqa: N818  stands for the end of the process
    """Raised in place of it."""


def make_termination(cluster: FakeCluster, clock: FakeClock, pod: OwnPod | None = None) -> Termination:
    def end(code: int) -> None:
        raise Ended(code)

    own = pod or OwnPod()
    return Termination(cluster, lambda: own.is_replaced(cluster), end=end, clock=clock, sleep=clock.sleep)


def terminate(termination: Termination) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Ended, match="143"):
            termination.handle(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_deletes_what_it_covers(capsys: pytest.CaptureFixture[str]) -> None:
    cluster, clock = FakeCluster(), FakeClock()
    cluster.add_rayjob(MANIFEST)
    termination = make_termination(cluster, clock)
    terminate(termination)
    assert cluster.deleted == [], "nothing was launched yet"
    termination.covers("a")
    terminate(termination)
    assert cluster.deleted == ["uid-1"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("state", "leaves"), [("deleted", True), ("gone", True), ("lives", False), ("down", False)])
def test_leaves_it_to_the_next_pod(state: str, leaves: bool) -> None:
    cluster, clock = FakeCluster(), FakeClock()
    cluster.add_rayjob(MANIFEST)
    pod = make_pod("me")
    cluster.pod_list = [] if state == "gone" else [pod]
    if state == "deleted":
        pod["metadata"]["deletionTimestamp"] = "now"
    if state == "down":
        cluster.errors["get", "pods"] = UnavailableError("timeout")
    termination = make_termination(cluster, clock, OwnPod("me", "robots", "uid-of-me"))
    termination.covers("a")
    terminate(termination)
    assert (cluster.deleted == []) == leaves


def test_creation_under_way_is_waited_for() -> None:
    """Catches: a job that appears a moment after nothing was found to delete."""
    cluster, clock = FakeCluster(), FakeClock()
    termination = make_termination(cluster, clock)
    termination.covers("a")
    terminate(termination)
    assert clock.now_s == 0.0
    termination.creating = True
    clock.at(0.2, lambda: cluster.add_rayjob(MANIFEST))
    terminate(termination)
    assert cluster.deleted == ["uid-1"] and clock.now_s < 0.5


@pytest.mark.parametrize("error", [UnavailableError("connection closed"), None])
def test_gives_up_in_time(error: UnavailableError | None) -> None:
    cluster, clock = FakeCluster(), FakeClock()
    if error is None:
        cluster.forbid("delete", "rayjobs")
    else:
        cluster.errors["delete", "rayjobs"] = error
    termination = make_termination(cluster, clock)
    termination.covers("a")
    termination.creating = True
    terminate(termination)
    assert clock.now_s < 1.0


def test_outside_of_the_main_thread_there_is_no_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def enter() -> None:
        with make_termination(FakeCluster(), FakeClock()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]


STEP = """
import sys
from gripline.kube.stage import run_stage
from gripline.cluster_config import ClusterConfig, EnvGroup, PodConfig, PolicyGroup
from gripline.stages import RunContext

context = RunContext(
    run_name="kill", run_dir=sys.argv[1], tracking_uri="http://mlflow", experiment="e", parent_run_id="p",
    profile_name="x", seed=1, split_hashes={},
)
cluster = ClusterConfig(
    stages=("rl",), head=PodConfig(image="i"), policy=PolicyGroup(image="i"), env=EnvGroup(image="i")
)
run_stage(
    "rl", "components.rl.train:run", cluster=cluster.model_dump_json(), context=context.model_dump_json(), arguments={}
)
"""


@pytest.fixture
def server() -> Iterator[HttpApi]:
    with http_api() as api:
        yield api


def start_step(server: HttpApi, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A step that launches a job and waits for it."""
    variables = os.environ | {"KUBECONFIG": str(server.kubeconfig(folder / "config"))} | environment
    command = [sys.executable, "-c", STEP, str(folder / "run")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def stop_step(step: subprocess.Popen[str]) -> tuple[int, float, str]:
    """(exit status, seconds that it took, what it said after the signal)."""
    assert step.stdout is not None
    step.stdout.close()  # as Kubeflow does: whoever prints now fails
    started = time.monotonic()
    step.terminate()
    _, errors = step.communicate(timeout=10)
    return step.returncode, time.monotonic() - started, errors


def test_real_process_deletes_within_half_a_second(server: HttpApi, tmp_path: Path) -> None:
    step = start_step(server, tmp_path)
    wait_for(lambda: bool(server.times_of("POST")) and len(server.times_of("GET")) > 8)
    code, seconds, errors = stop_step(step)
    assert (code, errors) == (128 + signal.SIGTERM, "")
    assert seconds < 0.5
    assert not [path for path in server.objects if path.startswith(RAYJOBS)]


def test_real_process_in_a_pod_that_is_replaced(server: HttpApi, tmp_path: Path) -> None:
    metadata = {"name": "me", "uid": "u", "labels": {}}
    server.objects[f"{PODS}/me"] = {"metadata": metadata}
    step = start_step(server, tmp_path, KFP_POD_NAME="me")
    wait_for(lambda: bool(server.times_of("POST")))
    created = next(each for path, each in server.objects.items() if path.startswith(RAYJOBS))
    assert created["metadata"]["ownerReferences"][0]["name"] == "me"
    metadata["deletionTimestamp"] = "2026-11-21T14:00:00Z"
    code, seconds, _ = stop_step(step)
    assert code == 128 + signal.SIGTERM and seconds < 0.5
    assert [path for path in server.objects if path.startswith(RAYJOBS)], "left to the pod that comes next"


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_real_process_killed_around_the_creation(server: HttpApi, tmp_path: Path, delay_s: float) -> None:
    """Catches: a creation that is on its way when the signal comes, and stays."""
    step = start_step(server, tmp_path)
    wait_for(lambda: len(server.times_of("GET")) >= 3)  # its rights are being tried
    server.slow_s = 0.1
    wait_for(lambda: bool(server.times_of("POST")))
    time.sleep(delay_s)
    stop_step(step)
    time.sleep(0.2)
    assert not [path for path in server.objects if path.startswith(RAYJOBS)]

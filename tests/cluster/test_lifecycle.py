"""A step, its RayJob and its end, on a real API server: the right outcome, the right exit code, and nothing left.

The step is a process with the launcher's own account, its driver the real one as a process, the pods' nodes simulated.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import kube as paths
from cluster.gateway import PASS, REFUSE, STALL, Gateway
from cluster.kube import Json
from cluster.site import SMALL, Site, Step, World, eventually, nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CRASHED, USER_ERROR = 1, 2
LONG = ["wait", 600]
QUICK = ["wait", 1]
NO_KUBELET = "gripline.io/no-kubelet"


@contextmanager
def absent(world: World) -> Iterator[None]:
    """There is no operator."""
    world.operator.pause()
    try:
        yield
    finally:
        world.operator.resume()


def ends_clean(site: Site, timeout_s: float = 20.0) -> None:
    """Nothing is left, and it stays so: what is created late shows within a second."""
    nothing(site.left, "what belongs to the job", timeout_s)
    time.sleep(1)
    assert site.left() == []


def said(step: Step, pattern: str) -> str:
    """The one line that tells the user why."""
    errors = [line.text for line in step.lines if line.text.startswith("gripline: ")]
    assert len(errors) == 1, step.log
    assert re.search(pattern, errors[0]), errors[0]
    return errors[0]


def stop_job(site: Site, step: Step) -> None:
    """As `ray job stop` does."""
    status = site.status(step)
    pod = site.world.heads.named(site.namespace, status["rayClusterStatus"]["head"]["podName"])
    assert pod is not None
    assert site.world.heads.stop(pod, status["jobId"])


def test_success(site: Site) -> None:
    step = site.launch([["say", "the driver's line"], QUICK], note="a note")
    assert step.wait() == 0, step.log
    returned = json.loads(step.returned.read_text())
    assert returned["attempts"] == 1 and Path(returned["uri"], "manifest.json").exists()
    assert step.results.read_text() == "A NOTE"
    assert [line.text for line in step.lines if "the driver's line" in line.text] == ["the driver's line"]
    ends_clean(site)


def test_failure_then_retry(site: Site) -> None:
    step = site.launch([["say", "first try"], ["fail", 1]], [["say", "second try"], QUICK], cluster={"retries": 1})
    assert step.wait() == 0, step.log
    assert json.loads(step.returned.read_text())["attempts"] == 2
    assert [line.text for line in step.lines if line.text.endswith(" try")] == ["first try", "second try"]
    ends_clean(site)


def test_failure_of_every_attempt(site: Site) -> None:
    step = site.launch([["say", "the reason"], ["fail", 1]], cluster={"retries": 1})
    assert step.wait() == CRASHED, step.log
    assert step.attempts() == 2 and not step.returned.exists()
    assert step.log.count("the reason") == 2
    ends_clean(site)


def test_a_mistake_of_the_user_is_told_and_not_tried_again(site: Site) -> None:
    step = site.launch([["refuse", "does not fit"]], cluster={"retries": 5})
    assert step.wait() == USER_ERROR, step.log
    assert said(step, "") == "gripline: played.yaml: script: does not fit; play another script"
    assert step.attempts() == 1
    ends_clean(site)


def test_a_checkpoint_that_is_not_there_is_no_success(site: Site) -> None:
    """Catches: success judged by the RayJob's status."""
    step = site.launch([["damage", True]])
    assert step.wait() == CRASHED, step.log
    assert not step.returned.exists()
    ends_clean(site)


def test_a_stopped_job_is_no_success(site: Site) -> None:
    """Catches: `Complete`, which KubeRay also writes for a job that somebody stopped."""
    step = site.launch([LONG])
    step.until_running()
    stop_job(site, step)
    assert step.wait() == USER_ERROR, step.log
    said(step, "was stopped")
    ends_clean(site)


def test_validation_failed_is_told_and_cleaned_up(site: Site) -> None:
    """The operator leaves the pods of such a job where they are."""
    step = site.launch([LONG])
    step.until_running()
    site.kube.patch(paths.rayjobs(site.namespace, step.rayjob_name), {"spec": {"activeDeadlineSeconds": 0}})
    assert step.wait() == USER_ERROR, step.log
    said(step, "activeDeadlineSeconds must be a positive integer")
    ends_clean(site)


def test_a_suspended_job_goes_on_when_it_is_let(site: Site) -> None:
    """As Kueue preempts: the whole Ray cluster goes, without a signal to the job."""
    step = site.launch([LONG], [QUICK])
    step.until_running()
    path = paths.rayjobs(site.namespace, step.rayjob_name)
    site.kube.patch(path, {"spec": {"suspend": True}})
    eventually(lambda: site.status(step).get("jobDeploymentStatus") == "Suspended", "suspension")
    step.until("queue|suspend")
    nothing(lambda: [each for each in site.running() if not each.startswith("RayJob")], "what a suspended job holds")
    site.kube.patch(path, {"spec": {"suspend": False}})
    assert step.wait() == 0, step.log
    assert step.attempts() == 2
    ends_clean(site)


def test_a_job_that_is_queued_for_too_long_ends(site: Site) -> None:
    step = site.launch([LONG], cluster={"queue_timeout_s": 3})
    step.until_running()
    site.kube.patch(paths.rayjobs(site.namespace, step.rayjob_name), {"spec": {"suspend": True}})
    assert step.wait() == USER_ERROR, step.log
    said(step, "cluster.queue_timeout_s")
    ends_clean(site)


def test_terminate(site: Site) -> None:
    """Kubeflow's *terminate*: SIGTERM, and half a second later the container is gone."""
    step = site.launch([LONG])
    step.until_running()
    step.terminate(then_kill_after_s=0.5)
    ends_clean(site)
    assert step.process.returncode not in (0, None)


def test_a_replaced_step_of_a_pipeline_adopts(site: Site) -> None:
    """A pod of a pipeline that is deleted or evicted is started again, and adopts. The run owns the RayJob."""
    workflow = site.workflow("run-1")
    site.pod("step-0", owner=workflow)
    step = site.launch([["wait", 8]], environment={"KFP_POD_NAME": "step-0"})
    step.until_running()
    job = site.rayjob(step)
    assert job is not None and [owner["kind"] for owner in job["metadata"]["ownerReferences"]] == ["Workflow"]
    site.kube.delete(paths.pods(site.namespace, "step-0"))
    step.terminate(then_kill_after_s=0.5)
    site.pod("step-1", owner=workflow)
    second = site.launch([["wait", 8]], environment={"KFP_POD_NAME": "step-1"})
    assert second.wait() == 0, second.log
    assert second.attempts() == 1 and "of the played stage" in second.log
    ends_clean(site)


def test_outside_of_a_pipeline_the_job_goes_with_its_pod(site: Site) -> None:
    site.pod("launcher")
    step = site.launch([LONG], environment={"POD_NAME": "launcher"})
    step.until_running()
    step.kill()
    site.kube.delete(paths.pods(site.namespace, "launcher"))
    ends_clean(site)


def test_what_a_deleted_run_started_goes_with_it(site: Site) -> None:
    """Deleting a run of a pipeline runs no code of ours at all."""
    workflow = site.workflow("run-1")
    site.pod("step-0", owner=workflow)
    step = site.launch([LONG], environment={"KFP_POD_NAME": "step-0"})
    step.until_running()
    step.kill()
    site.kube.delete(f"/apis/argoproj.io/v1alpha1/namespaces/{site.namespace}/workflows/run-1")
    ends_clean(site)


def test_a_killed_launcher_is_followed_by_one_that_adopts(site: Site) -> None:
    """Before the driver gives up; it goes on for longer than that."""
    script, cluster = [["wait", 30], ["say", "the end"]], {"orphan_after_s": 20.0}
    step = site.launch(script, cluster=cluster)
    step.until_running()
    uid = site.uid(step)
    step.kill()
    second = site.launch(script, cluster=cluster)
    second.until_running()
    assert site.uid(second) == uid
    assert second.wait() == 0, second.log
    assert second.attempts() == 1 and "the end" in second.log
    ends_clean(site)


def test_two_launchers_of_one_stage_share_one_job(site: Site) -> None:
    """KFP may start a step twice. The later one has it; the earlier one leaves the job alone."""
    step = site.launch([["wait", 8]])
    step.until_running()
    second = site.launch([["wait", 8]])
    assert step.wait() == USER_ERROR, step.log
    said(step, "another launcher")
    assert second.wait() == 0, second.log
    assert second.attempts() == 1
    ends_clean(site)


def test_a_rayjob_that_is_deleted_midway_is_no_success(site: Site) -> None:
    step = site.launch([LONG])
    step.until_running()
    site.kube.delete(paths.rayjobs(site.namespace, step.rayjob_name))
    assert step.wait() == USER_ERROR, step.log
    said(step, "was deleted")
    ends_clean(site)


def test_lost_pods_are_replaced_and_the_job_goes_on(site: Site) -> None:
    """Of a worker the stage may not even notice; a lost head is a new attempt of the same RayJob, and no failure."""
    step = site.launch([LONG], [["say", "said by the second head"], QUICK])
    step.until_running()
    uid = site.uid(step)
    for role in ("env", "head"):
        (before,) = site.pods_of(step, role)
        site.kube.delete(paths.pods(site.namespace, before["metadata"]["name"]))
        eventually(
            lambda role=role, old=before: [
                pod for pod in site.pods_of(step, role) if pod["metadata"]["uid"] != old["metadata"]["uid"]
            ],
            f"another {role} pod",
        )
    step.until("said by the second head")
    assert site.uid(step) == uid
    assert step.wait() == 0, step.log
    assert step.attempts() == 2
    ends_clean(site)


def test_what_the_operator_cannot_create_is_told(site: Site) -> None:
    """Only an event of the RayCluster says it."""
    step = site.launch([QUICK], cluster={"priority_class": "nobody-made-it"})
    step.until("warn .*nobody-made-it")
    step.terminate()
    ends_clean(site)


def test_an_unknown_kind_of_store(site: Site) -> None:
    """Nothing is created before the store takes the job's files."""
    step = site.launch([QUICK], run_dir="floppy://disk/runs/run")
    assert step.wait() == USER_ERROR, step.log
    said(step, "floppy")
    assert site.left() == []


@pytest.mark.slow
def test_the_api_server_is_away_for_a_minute(site: Site) -> None:
    """First it hangs, then it is gone. The job knows nothing of it."""
    gateway = Gateway(site.kube.server)
    kubeconfig = site.kube.kubeconfig(site.folder / "through", site.namespace, token=site.token, server=gateway.address)
    step = site.launch([["wait", 70], ["say", "said at the end"]], kubeconfig=kubeconfig)
    step.until_running()
    for mode in (STALL, REFUSE):
        gateway.set(mode)
        time.sleep(30)
    gateway.set(PASS)
    assert step.wait() == 0, step.log
    assert "said at the end" in step.log and step.attempts() == 1
    gateway.close()
    ends_clean(site)


def test_without_an_operator_the_step_says_so(site: Site, world: World) -> None:
    with absent(world):
        step = site.launch([QUICK])
        assert step.wait() == USER_ERROR, step.log
        said(step, "operator")
        ends_clean(site)


def test_an_operator_that_goes_away_does_not_hold_the_step(site: Site, world: World) -> None:
    """The finalizer keeps the RayJob until the operator is back; the step does not wait for that."""
    step = site.launch([LONG])
    step.until_running()
    with absent(world):
        step.terminate()
        begun = time.monotonic()
        step.wait(5)
        assert time.monotonic() - begun < 2
        job = site.rayjob(step)
        assert job is not None and "deletionTimestamp" in job["metadata"]
    ends_clean(site)


def test_an_image_that_cannot_be_pulled(site: Site, node_without_kubelet: str) -> None:
    """Reported within 30 s with the kubelet's message, not after the deadline."""
    here = {
        "name": "bare",
        "node_affinity": [{"label": NO_KUBELET, "values": ["yes"]}],
        "tolerations": [{"key": NO_KUBELET}],
    }
    step = site.launch([QUICK], cluster={"env": SMALL | {"replicas": 1, "placement": here}})
    pod = eventually(lambda: site.pod_on(node_without_kubelet), "pod on the bare node")
    message = 'failed to pull and unpack image "gripline-test:1": not found'
    waiting = {"name": "ray", "image": "gripline-test:1", "imageID": "", "ready": False, "restartCount": 0}
    waiting |= {"state": {"waiting": {"reason": "ErrImagePull", "message": message}}}
    path = paths.pods(site.namespace, pod["metadata"]["name"])
    site.kube.patch(f"{path}/status", {"status": {"phase": "Pending", "containerStatuses": [waiting]}})
    begun = time.monotonic()
    assert step.wait() == USER_ERROR, step.log
    assert time.monotonic() - begun < 30
    said(step, re.escape(message))
    eventually(lambda: "deletionTimestamp" in (site.kube.get(path) or {"metadata": {}})["metadata"], "end of the pod")
    site.kube.delete(path, grace_s=0)  # as its kubelet would
    ends_clean(site)


@pytest.fixture
def node_without_kubelet(site: Site) -> Iterator[str]:
    """The name of a node that nothing plays: pods on it are bound and never start."""
    name = f"bare-{site.namespace}"
    meta: Json = {"name": name, "labels": {NO_KUBELET: "yes"}}
    taints = [{"key": NO_KUBELET, "value": "yes", "effect": "NoSchedule"}]
    site.kube.create("/api/v1/nodes", {"metadata": meta, "spec": {"taints": taints}})
    amounts = {"cpu": "8", "memory": "32Gi", "pods": "20"}
    ready = {"type": "Ready", "status": "True", "reason": "Played", "message": ""}
    status: Any = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    site.kube.patch(f"/api/v1/nodes/{name}/status", {"status": status})
    yield name
    site.kube.delete(f"/api/v1/nodes/{name}")


def test_a_missing_right_is_named(site: Site) -> None:
    """One line, exit 2, nothing left behind. The other rights: test_manifests."""
    site.without_right("rayjobs", "create")
    step = site.launch([QUICK])
    assert step.wait() == USER_ERROR, step.log
    said(step, "no permission to create rayjobs")
    ends_clean(site)


def test_the_shipped_rights_are_no_more_than_needed(site: Site) -> None:
    """With the account's own token: what a launcher has no business with is refused."""
    own = site.as_launcher()
    assert own.get(paths.rayjobs(site.namespace, "none")) is None
    for path in ("secrets", "configmaps", "services"):
        with pytest.raises(Exception, match="403"):
            own.items(f"/api/v1/namespaces/{site.namespace}/{path}")
    with pytest.raises(Exception, match="403"):
        own.create(paths.pods(site.namespace), {"metadata": {"name": "p"}, "spec": {"containers": []}})
    with pytest.raises(Exception, match="403"):
        own.items(paths.rayjobs("default"))

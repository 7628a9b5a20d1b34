"""What of a pod's status is told, when, and what ends a launch."""

from typing import Any

from fake_cluster import make_pod, unschedulable, waiting

from gripline.kube.pod_health import GRACE_S, TELL_AGAIN_S, PodHealth

PULL = "failed to resolve reference registry/env:9: not found"


def test_image_that_cannot_be_pulled_is_fatal_after_a_second_try() -> None:
    health = PodHealth()
    pod = make_pod("env-1")
    assert health.see([waiting(pod, "ErrImagePull", PULL)], 0.0) == []
    assert health.see([waiting(pod, "ImagePullBackOff", "Back-off")], GRACE_S - 1) == []
    trouble = health.see([waiting(pod, "ImagePullBackOff", "Back-off")], GRACE_S)[0]
    assert trouble.fatal
    assert trouble.message == PULL, "the first error says more than the back-off"
    assert trouble.where == "env pod env-1" and "cluster.env.image" in trouble.next_step


def test_a_pull_that_worked_at_the_second_try_is_none() -> None:
    health = PodHealth()
    pod = make_pod("env-1")
    health.see([waiting(pod, "ErrImagePull", PULL)], 0.0)
    assert health.see([waiting(pod, "ContainerCreating", "")], 10.0) == []
    assert health.see([waiting(pod, "ErrImagePull", PULL)], GRACE_S + 1) == [], "counted anew"


def test_missing_secret_names_what_is_missing() -> None:
    health = PodHealth()
    pod = waiting(make_pod("head", role="head"), "CreateContainerConfigError", 'secret "store" not found')
    health.see([pod], 0.0)
    trouble = health.see([pod], GRACE_S)[0]
    assert trouble.fatal and trouble.message == 'secret "store" not found' and "Secret" in trouble.next_step


def test_replacement_that_cannot_start_ends_nothing() -> None:
    """Catches: a run of many hours ended because one lost env pod came back on a node that cannot pull."""
    health = PodHealth()
    assert health.see([make_pod("env-1"), make_pod("env-2")], 0.0) == []
    broken = [make_pod("env-1"), waiting(make_pod("env-3"), "ErrImagePull", PULL)]
    told = [trouble for time_s in range(1, 100, 2) for trouble in health.see(broken, float(time_s))]
    assert [trouble.fatal for trouble in told] == [False]
    assert PULL in told[0].line


def test_another_groups_pods_prove_nothing() -> None:
    health = PodHealth()
    pods = [make_pod("policy-1", role="policy"), waiting(make_pod("env-1"), "ErrImagePull", PULL)]
    health.see(pods, 0.0)
    assert health.see(pods, GRACE_S)[0].fatal


def test_init_containers_count() -> None:
    pod: dict[str, Any] = make_pod("env-1")
    state = {"waiting": {"reason": "ErrImagePull", "message": PULL}}
    pod["status"] = {"initContainerStatuses": [{"name": "wait-gcs-ready", "state": state}]}
    health = PodHealth()
    health.see([pod], 0.0)
    assert health.see([pod], GRACE_S)[0].fatal


def test_scheduler_is_quoted_once_in_a_while() -> None:
    """Catches: a line every two seconds for hours."""
    health = PodHealth()
    pods = [unschedulable(make_pod(f"env-{number}"), "0/9 nodes are available") for number in range(5)]
    told = [trouble for time_s in range(0, 1200, 2) for trouble in health.see(pods, float(time_s))]
    assert len(told) == 1200 / TELL_AGAIN_S
    assert not any(trouble.fatal for trouble in told)
    assert told[0].line == "env pod env-0: Unschedulable: 0/9 nodes are available"


def test_events_of_the_jobs_own_objects_are_told() -> None:
    def event(name: str, reason: str, message: str) -> dict[str, Any]:
        return {"involvedObject": {"kind": "Pod", "name": name}, "reason": reason, "message": message}

    health = PodHealth()
    events = [
        event("env-1", "FailedCreatePodSandBox", "no runtime for\n nvidia is configured"),
        event("env-1", "FailedScheduling", "told from its status"),
        event("somebody-elses", "FailedMount", "not ours"),
    ]
    told = health.warn_of(events, frozenset({"env-1"}), 0.0)
    assert [trouble.line for trouble in told] == [
        "Pod env-1: FailedCreatePodSandBox: no runtime for nvidia is configured"
    ]
    assert health.warn_of(events, frozenset({"env-1"}), 10.0) == []


def test_a_pod_that_is_just_starting_is_no_trouble() -> None:
    """Ray takes seconds to answer the readiness probe: seen with KubeRay 1.7 in every single start."""

    def unhealthy(probe: str, count: int) -> dict[str, Any]:
        about = {"kind": "Pod", "name": "env-1"}
        return {"involvedObject": about, "reason": "Unhealthy", "message": f"{probe} probe failed: …", "count": count}

    ours = frozenset({"env-1"})
    assert PodHealth().warn_of([unhealthy("Readiness", 3)], ours, 0.0) == []
    assert PodHealth().warn_of([unhealthy("Readiness", 12)], ours, 0.0) != []
    assert PodHealth().warn_of([unhealthy("Liveness", 1)], ours, 0.0) != []

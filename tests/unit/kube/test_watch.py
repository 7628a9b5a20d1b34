"""The status table: every row, every trap, and what holds for any sequence of looks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.kube.api import ApiError, ForbiddenError, NoSuchKindError, NotFoundError, UnavailableError
from gripline.kube.watch import (
    FORBIDDEN_BUDGET_S,
    LAUNCHER_ANNOTATION,
    OPERATOR_TIMEOUT_S,
    UNAVAILABLE_BUDGET_S,
    Outcome,
    Watch,
)

DEPLOYMENTS = (
    "", "Initializing", "Waiting", "Running", "Suspending", "Suspended", "Retrying", "Complete", "Failed",
    "ValidationFailed",
)  # fmt: skip
JOBS = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
FORBIDDEN = ForbiddenError("denied", "get", "rayjobs", "robots")
DOWN = UnavailableError("connection refused")


def make_watch(*, queue_timeout_s: float = 100.0) -> Watch:
    return Watch("uid-1", launcher="me", queue_timeout_s=queue_timeout_s)


def rayjob(deployment: str = "", job: str = "", *, suspend: bool = False, **status: Any) -> dict[str, Any]:
    fields = {"jobDeploymentStatus": deployment, "jobStatus": job} | status
    return {
        "metadata": {"uid": "uid-1", "annotations": {LAUNCHER_ANNOTATION: "me"}},
        "spec": {"suspend": suspend},
        "status": {name: value for name, value in fields.items() if value != ""},
    }


@pytest.mark.parametrize(
    ("deployment", "job", "phase", "outcome"),
    [
        ("", "", "new", None),
        ("Initializing", "", "starting", None),
        ("Waiting", "", "starting", None),
        ("Running", "", "starting", None),
        ("Running", "PENDING", "starting", None),
        ("Running", "RUNNING", "running", None),
        ("Running", "SUCCEEDED", "ending", None),  # until the submitter has ended too, at most 300 s
        ("Running", "FAILED", "ending", None),  # attempts may be left
        ("Running", "STOPPED", "ending", None),
        ("Suspending", "RUNNING", "queued", None),
        ("Suspended", "", "queued", None),
        ("Retrying", "FAILED", "retrying", None),
        ("Complete", "SUCCEEDED", "ended", Outcome.SUCCEEDED),
        ("Complete", "STOPPED", "ended", Outcome.STOPPED),  # looks like success
        ("Complete", "FAILED", "ended", Outcome.FAILED),
        ("Complete", "", "ended", Outcome.FAILED),
        ("Failed", "FAILED", "ended", Outcome.FAILED),
        ("Failed", "RUNNING", "ended", Outcome.FAILED),  # a deadline
        ("ValidationFailed", "", "ended", Outcome.INVALID),
        ("OfALaterVersion", "RUNNING", "starting", None),
    ],
)
def test_every_row_of_the_table(deployment: str, job: str, phase: str, outcome: Outcome | None) -> None:
    seen = make_watch().see(rayjob(deployment, job), 0.0)
    assert (seen.phase, seen.outcome) == (phase, outcome)


def test_success_is_nothing_but_complete_and_succeeded() -> None:
    """Catches: the one wrong entry that lets a stopped or failed run pass for a good one."""
    successes = [
        (deployment, job)
        for deployment in DEPLOYMENTS
        for job in JOBS
        if make_watch().see(rayjob(deployment, job), 0.0).outcome is Outcome.SUCCEEDED
    ]
    assert successes == [("Complete", "SUCCEEDED")]


def test_what_kuberay_says_is_handed_on() -> None:
    status = {"reason": "AppFailed", "message": "exit 1", "rayClusterName": "rc-2", "failed": 1}
    seen = make_watch().see(rayjob("Retrying", "FAILED", **status), 0.0)
    assert (seen.reason, seen.message, seen.ray_cluster, seen.failures) == ("AppFailed", "exit 1", "rc-2", 1)
    assert seen.attempt_failed
    assert not make_watch().see(rayjob("Running", "RUNNING", failed=1), 0.0).attempt_failed


def test_gone_or_another() -> None:
    watch = make_watch()
    watch.see(rayjob("Running", "RUNNING"), 0.0)
    assert watch.miss(NotFoundError("not found"), 1.0).outcome is Outcome.DELETED
    other = rayjob("Complete", "SUCCEEDED")
    other["metadata"]["uid"] = "uid-2"
    assert watch.see(other, 2.0).outcome is Outcome.REPLACED
    going = rayjob("Complete", "SUCCEEDED")
    going["metadata"]["deletionTimestamp"] = "now"
    assert watch.see(going, 3.0).outcome is Outcome.DELETED
    taken = rayjob("Running", "RUNNING")
    taken["metadata"]["annotations"][LAUNCHER_ANNOTATION] = "another"
    assert watch.see(taken, 4.0).outcome is Outcome.TAKEN_OVER


def test_absent_operator() -> None:
    watch = make_watch()
    assert watch.see(rayjob(), 0.0).outcome is None
    assert watch.see(rayjob(), OPERATOR_TIMEOUT_S - 1).outcome is None
    assert watch.see(rayjob(), OPERATOR_TIMEOUT_S).outcome is Outcome.NO_OPERATOR


def test_empty_status_between_attempts_is_no_absent_operator() -> None:
    """Catches: a retry or an un-suspended job, whose status is emptied, taken for an operator that never was."""
    watch = make_watch()
    watch.see(rayjob("Retrying", "FAILED"), 0.0)
    assert all(watch.see(rayjob(), time_s).outcome is None for time_s in range(1, 200, 10))


def test_time_without_an_api_server_is_not_held_against_the_operator() -> None:
    watch = make_watch()
    watch.see(rayjob(), 0.0)
    watch.miss(DOWN, 1.0)
    assert watch.see(rayjob(), 60.0).outcome is None
    assert watch.see(rayjob(), 60.0 + OPERATOR_TIMEOUT_S).outcome is Outcome.NO_OPERATOR


def test_queue_has_a_timeout_of_its_own() -> None:
    watch = make_watch(queue_timeout_s=50)
    assert watch.see(rayjob("Initializing", suspend=True), 0.0).phase == "queued"
    assert watch.see(rayjob("Suspended", suspend=True), 50.0).outcome is None
    assert watch.see(rayjob("Running", "RUNNING"), 51.0).phase == "running"
    assert watch.see(rayjob("Suspended", suspend=True), 1000.0).outcome is None, "preempted: counted anew"
    assert watch.see(rayjob("Suspended", suspend=True), 1051.0).outcome is Outcome.QUEUED_TOO_LONG


@pytest.mark.parametrize(
    ("error", "budget_s", "outcome"),
    [
        (DOWN, UNAVAILABLE_BUDGET_S, Outcome.UNREACHABLE),
        (NoSuchKindError("could not find the requested resource"), UNAVAILABLE_BUDGET_S, Outcome.UNREACHABLE),
        (FORBIDDEN, FORBIDDEN_BUDGET_S, Outcome.FORBIDDEN),
    ],
)  # fmt: skip
def test_errors_have_budgets(error: ApiError, budget_s: float, outcome: Outcome) -> None:
    watch = make_watch()
    assert watch.miss(error, 0.0).phase == "unreachable"
    assert watch.miss(error, budget_s - 1).outcome is None
    watch.see(rayjob("Running", "RUNNING"), budget_s)
    assert watch.miss(error, budget_s + 1).outcome is None, "an answer in between starts the count again"
    assert watch.miss(error, 2 * budget_s + 1).outcome is outcome


def test_an_api_server_that_comes_back_may_forbid_for_a_moment() -> None:
    """Catches: minutes of outage counted as minutes of missing rights. RBAC is loaded after the server answers."""
    watch = make_watch()
    watch.miss(DOWN, 0.0)
    assert watch.miss(FORBIDDEN, 60.0).outcome is None
    assert watch.see(rayjob("Running", "RUNNING"), 62.0).outcome is None


looks = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(DEPLOYMENTS), st.sampled_from(JOBS), st.booleans()),
        st.sampled_from([DOWN, FORBIDDEN]),
    ),
    min_size=1,
    max_size=30,
)


@given(looks, st.integers(1, 50).map(lambda tenths: tenths / 10))
def test_any_sequence(sequence: list[Any], step_s: float) -> None:
    """Ends exactly where the last look alone says so, or where a budget was used up; never else."""
    watch = make_watch(queue_timeout_s=20.0)
    operator_seen, since_s = False, dict.fromkeys(("empty", "queued", "forbidden"))
    for number, look in enumerate(sequence):
        now_s = number * step_s
        if isinstance(look, ApiError):
            seen = watch.miss(look, now_s)
            since_s["empty"] = None
            _count(since_s, "forbidden", look is FORBIDDEN, now_s)
            allowed = {Outcome.FORBIDDEN} if _over(since_s, "forbidden", now_s, FORBIDDEN_BUDGET_S) else set()
        else:
            deployment, job, suspend = look
            operator_seen |= bool(deployment)
            seen = watch.see(rayjob(deployment, job, suspend=suspend), now_s)
            since_s["forbidden"] = None
            _count(since_s, "empty", not operator_seen, now_s)
            _count(since_s, "queued", seen.phase == "queued" or seen.outcome is Outcome.QUEUED_TOO_LONG, now_s)
            allowed = {Outcome.NO_OPERATOR} if _over(since_s, "empty", now_s, OPERATOR_TIMEOUT_S) else set()
            allowed |= {Outcome.QUEUED_TOO_LONG} if _over(since_s, "queued", now_s, 20.0001) else set()
            if deployment in ("Complete", "Failed", "ValidationFailed"):
                allowed = {make_watch().see(rayjob(deployment, job), 0.0).outcome}
        assert seen.outcome in allowed if allowed else seen.outcome is None
        assert (seen.phase == "ended") == (seen.outcome is not None)
        if seen.outcome is not None:
            return


def _count(since_s: dict[str, Any], name: str, goes_on: bool, now_s: float) -> None:
    since_s[name] = (now_s if since_s[name] is None else since_s[name]) if goes_on else None


def _over(since_s: dict[str, Any], name: str, now_s: float, limit_s: float) -> bool:
    return since_s[name] is not None and now_s - since_s[name] >= limit_s

"""The driver's log: every line once and in order, whatever breaks in between."""

import json
from pathlib import Path

import pytest
from fake_cluster import FakeCluster, make_pod
from hypothesis import given
from hypothesis import strategies as st

from gripline import progress
from gripline.kube.api import NotFoundError, Object
from gripline.kube.logs import DriverLog
from gripline.kube.names import LOG_CONTAINER


def head(name: str = "head-1", ray_cluster: str = "rc-1", created: str = "2026-11-21T14:00:00Z") -> Object:
    pod = make_pod(name, role="head", ray_cluster=ray_cluster, node_type="head")
    pod["metadata"]["creationTimestamp"] = created
    return pod


def stamped(number: int, text: str, fraction: str = "") -> str:
    """A line as pods/log gives it: `number` seconds after ten."""
    return f"2026-11-21T10:{number // 60:02}:{number % 60:02}{fraction}Z {text}"


def make_log(cluster: FakeCluster) -> tuple[DriverLog, list[str]]:
    told: list[str] = []
    log = DriverLog(cluster, told.append)
    log.follow("rc-1")
    return log, told


def test_stream_that_broke_is_continued_without_repeating() -> None:
    cluster = FakeCluster()
    cluster.pod_list = [head()]
    first = [stamped(1, "one", ".100000000"), stamped(1, "two", ".900000000")]
    again = [*first, stamped(1, "three", ".950000000"), stamped(5, "four")]
    cluster.logs["head-1"] = [first, again]
    log, told = make_log(cluster)
    log.follow_once()
    log.follow_once()
    assert told == ["one", "two", "three", "four"]
    assert cluster.followed == [
        ("head-1", LOG_CONTAINER, ""),
        ("head-1", LOG_CONTAINER, "2026-11-21T10:00:01Z"),
    ]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20).map(sorted),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_any_cuts(times: list[int], cuts: list[int]) -> None:
    """Lines that share a timestamp, cut anywhere; the API server repeats the whole second of the last one."""
    lines = [stamped(time_s // 3, f"line {number}", f".{time_s % 3}") for number, time_s in enumerate(times)]
    cluster = FakeCluster()
    cluster.pod_list = [head()]
    log, told = make_log(cluster)
    for cut in [*sorted(cuts), len(lines)]:
        since = log._places["uid-of-head-1"].seconds[17:19] if log._places else ""
        begin = next((n for n, line in enumerate(lines) if line[17:19] >= since), len(lines)) if since else 0
        cluster.logs["head-1"] = [lines[begin : max(cut, len(told))]]
        log.follow_once()
    assert told == [f"line {number}" for number in range(len(lines))]


def test_a_clock_that_is_set_back_loses_no_line() -> None:
    """Catches: lines passed over because the node's clock was corrected in the middle of a stream."""
    cluster = FakeCluster()
    cluster.pod_list = [head()]
    cluster.logs["head-1"] = [[stamped(50, "before"), stamped(10, "after"), stamped(11, "later")]]
    log, told = make_log(cluster)
    log.follow_once()
    assert told == ["before", "after", "later"]


def test_next_attempt_and_replaced_head_begin_anew() -> None:
    cluster = FakeCluster()
    cluster.pod_list = [head(), head("head-2", created="2026-11-21T15:00:00Z")]
    cluster.logs = {"head-1": [[]], "head-2": [[stamped(1, "of the replacement")]], "head-3": [[stamped(1, "again")]]}
    log, told = make_log(cluster)
    log.follow_once()
    log.follow("")
    log.follow_once()
    cluster.pod_list = [head("head-3", ray_cluster="rc-2")]
    log.follow("rc-2")
    log.follow_once()
    assert told == ["of the replacement", "again"]


def test_head_that_is_not_there_yet() -> None:
    cluster = FakeCluster()
    log, _ = make_log(cluster)
    with pytest.raises(NotFoundError):
        log.follow_once()


def test_thread_survives_errors_and_drains() -> None:
    cluster = FakeCluster()
    cluster.pod_list = [head()]
    cluster.is_down = True
    told: list[str] = []
    with DriverLog(cluster, told.append) as log:
        log.follow("rc-1")
        log.drain(0.3)
        assert told == [] and log.forbidden is None
        cluster.forbid("get", "pods/log")
        cluster.is_down = False
        log.drain(1.5)
        assert log.forbidden is not None
        cluster.logs["head-1"] = [[stamped(1, "hello")]]
        cluster.errors = {}
        log.drain(5.0)
    assert told == ["hello"]
    assert log.forbidden is None


def test_progress_events_become_this_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a front end that sees nothing of a stage that runs on a cluster."""
    lines = []
    progress.emit("rl", "advance", text="of the first half", done=3, total=24, metrics={"val": 0.25, "loss": -1e-7})
    progress.emit("rl", "warn", text="2 of 9 workers are gone: x=1, ok")
    progress.emit("rl", "note")
    progress.emit("rl", "end")
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setenv(progress.FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    for line in [*lines, "Traceback: [rl] is no event", "[rl] dances"]:
        progress.relay(line)
    assert capsys.readouterr().out.splitlines()[: len(lines)] == lines
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["advance", "warn", "note"], "the step frames the stage itself"
    assert events[0]["metrics"] == {"val": 0.25, "loss": -1e-7}
    assert (events[0]["done"], events[0]["total"], events[0]["text"]) == (3, 24, "of the first half")
    assert events[1]["text"] == "2 of 9 workers are gone: x=1, ok"


@given(
    text=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"], exclude_characters="="), max_size=40),
    done=st.integers(0, 9),
    metrics=st.dictionaries(st.sampled_from(["val", "steps_per_s", "a/b"]), st.floats(width=16), max_size=3),
)
def test_any_event_survives_the_way(text: str, done: int, metrics: dict[str, float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[dict[str, object]] = []
        printed: list[str] = []
        patch.setattr(progress, "_append", written.append)
        patch.setattr("builtins.print", lambda line, **_: printed.append(line))
        progress.emit("eval-sft", "advance", text=text, done=done, total=done and 9, metrics=metrics)
        progress.relay(printed[0])
    sent, came = written
    assert came["text"] == text.strip() and came["done"] == (done or 0)
    assert {name: f"{value:.4g}" for name, value in sent["metrics"].items()} == {
        name: f"{value:.4g}" for name, value in came["metrics"].items()
    }

"""The timeline of a rollout: its Chrome trace file, its picture, and `gripline trace`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gripline.errors import UserError
from gripline.rollout import timeline
from gripline.rollout.trace import TraceEvent, draw, file_name, read, save
from pipelines.cli import main

T0_S = 1.7e9
lanes = st.sampled_from(["worker 0/slot 0", "worker 0/slot 10", "worker 0/slot 9", "worker 11/slot 0", "policy 0"])


@st.composite
def event(draw: st.DrawFn) -> TraceEvent:
    lane = draw(lanes)
    kind = "batch" if lane == "policy 0" else draw(st.sampled_from(["reset", "step", "wait", "parked"]))
    start_us, length_us = draw(st.integers(0, 10**8)), draw(st.integers(0, 10**6))
    label = str(draw(st.integers(1, 64)))
    return TraceEvent(kind, lane, T0_S + start_us / 1e6, T0_S + (start_us + length_us) / 1e6, label)


def rollout(workers: int, slots: int, *, at_once: bool) -> list[TraceEvent]:
    """Every slot resets for 0.2 s and steps for 0.1 s of every 0.2 s; the policy serves in between."""
    events = []
    for worker in range(workers):
        for slot in range(slots):
            lane, start_s = f"worker {worker}/slot {slot}", T0_S + (0.0 if at_once else 0.2 * slot)
            events.append(TraceEvent("reset", lane, start_s, start_s + 0.2, "e"))
            for chunk in range(4 if at_once else 0):
                end_s = start_s + 0.4 + 0.2 * chunk
                events.append(TraceEvent("wait", lane, end_s - 0.2, end_s - 0.1, "e"))
                events.append(TraceEvent("step", lane, end_s - 0.1, end_s, "e"))
    batches = [
        TraceEvent("batch", "policy 0", T0_S + 0.2 + 0.2 * n, T0_S + 0.3 + 0.2 * n, str(1 + n % 8)) for n in range(4)
    ]
    return events + batches


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(event(), min_size=1, max_size=30))
def test_what_is_saved_is_read_back(tmp_path: Path, events: list[TraceEvent]) -> None:
    """Catches: lanes that are mixed up, times in other units, events that get lost."""
    first_s = min(event.start_s for event in events)
    path = save(tmp_path, 16, events)
    expected = sorted(events, key=lambda event: (event.start_s, event.lane))
    loaded = read(path)
    assert [event[:2] + event[4:] for event in loaded] == [event[:2] + event[4:] for event in expected]
    for mine, other in zip(expected, loaded, strict=True):
        assert other.start_s == pytest.approx(mine.start_s - first_s, abs=2e-6)
        assert other.end_s == pytest.approx(mine.end_s - first_s, abs=2e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["iteration-000016.json"]  # nothing half written beside it


def test_file_is_what_trace_viewers_read(tmp_path: Path) -> None:
    """A process for each worker and policy server, a thread for each slot, microseconds, slot 10 after slot 9."""
    events = [
        TraceEvent("step", "worker 0/slot 10", T0_S + 1, T0_S + 1.5, "e7"),
        TraceEvent("reset", "worker 0/slot 9", T0_S, T0_S + 1, "e8"),
        TraceEvent("batch", "policy 0", T0_S + 1, T0_S + 1.25, "7"),
    ]
    entries = json.loads(save(tmp_path, 0, events).read_text())
    named = [(entry["name"], entry["args"]["name"]) for entry in entries if entry["ph"] == "M"]
    assert named == [
        ("process_name", "worker 0"),
        ("thread_name", "slot 9"),
        ("thread_name", "slot 10"),
        ("process_name", "policy 0"),
        ("thread_name", "policy 0"),
    ]
    intervals = [entry for entry in entries if entry["ph"] == "X"]
    step = next(entry for entry in intervals if entry["cat"] == "step")
    assert (step["ts"], step["dur"], step["name"]) == (1_000_000, 500_000, "step e7")
    assert len({(entry["pid"], entry["tid"]) for entry in intervals}) == 3
    assert len({entry["pid"] for entry in intervals}) == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"ph": "X", "pid": 1, "tid": 1}]', "[]"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "iteration-000001.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"is no trace file of gripline|holds no events"):
        draw(path, tmp_path)


@pytest.mark.parametrize(("workers", "slots"), [(1, 4), (4, 16), (8, 16)])
def test_every_size_is_drawn_legibly(tmp_path: Path, workers: int, slots: int) -> None:
    """Catches: rows of no height, a picture of any length, slots that are left out and not mentioned."""
    events = rollout(workers, slots, at_once=True)
    png, html = draw(save(tmp_path / "in", 3, events), tmp_path / "out")
    width, height = Image.open(png).size
    assert width >= 1200 and 300 <= height <= 1500
    drawn = timeline.figure(events, "iteration 3")
    title = drawn.get_suptitle()
    rows = min(workers * slots, timeline.MAX_ROWS)
    assert drawn.axes[0].get_window_extent().height / rows >= 8  # pixels
    assert ("are drawn" in title) == (workers * slots > timeline.MAX_ROWS)
    page = html.read_text()
    assert "iteration 3" in page and "<svg" in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)  # nothing is fetched from elsewhere


def test_colours_are_where_the_events_are(tmp_path: Path) -> None:
    """Catches: kinds that are swapped, rows that are upside down."""
    events = [
        TraceEvent("step", "worker 0/slot 0", T0_S, T0_S + 1, "e"),
        TraceEvent("reset", "worker 0/slot 1", T0_S + 1, T0_S + 2, "e"),
        TraceEvent("batch", "policy 0", T0_S, T0_S + 1, "3"),
    ]
    png, _ = draw(save(tmp_path, 0, events), tmp_path)
    pixels_HWC = np.asarray(Image.open(png).convert("RGB")).astype(int)

    def middle(colour: str) -> tuple[float, float]:
        """(x, y) of the largest area of this colour; legends lie above the area they explain."""
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        mask_HW = np.abs(pixels_HWC - rgb).sum(axis=-1) < 12
        rows_H = mask_HW.sum(axis=1)
        ys = np.flatnonzero(rows_H > 200)
        return float(np.flatnonzero(mask_HW[int(np.median(ys))]).mean()), float(np.median(ys))

    step, reset, batch = middle(timeline.COLOURS["step"]), middle(timeline.COLOURS["reset"]), middle(timeline.BATCH)
    assert step[0] < reset[0] and step[1] < reset[1] < batch[1]
    assert step[0] == pytest.approx(batch[0], abs=3)


@pytest.mark.parametrize(
    ("at_once", "shares"),
    [
        (True, "1.0 s · env busy 60% · policy busy 40%"),  # all slots together: 0.2 s reset, four steps of 0.1 s
        (False, "0.9 s · env busy 89% · policy busy 44%"),  # four resets one after the other, ready after 0.8 s
    ],
)
def test_busy_shares_in_the_title(at_once: bool, shares: str) -> None:
    """Catches: shares over 100 % where simulators run at the same time, a worker that steps in turn at a quarter."""
    assert shares in timeline.figure(rollout(1, 4, at_once=at_once), "x").get_suptitle()


def test_command_draws_the_newest_or_the_one_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = [save(tmp_path / "rl" / "trace", number, rollout(1, 2, at_once=True)) for number in (8, 16)]
    assert [path.name for path in recorded] == [file_name(8), file_name(16)]

    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["trace", str(tmp_path), *arguments])
        shown = capsys.readouterr()
        assert ended.value.code == (2 if shown.err else 0)
        return shown.out + shown.err

    newest = told()
    assert str(recorded[1]) in newest and str(tmp_path / "rl" / "trace" / "trace.png") in newest
    assert (tmp_path / "rl" / "trace" / "trace.html").stat().st_size > 1000
    assert str(recorded[0]) in told("--iteration", "8", "--out", str(tmp_path / "pictures"))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"trace.png", "trace.html"}
    assert "iteration 9 was not recorded; recorded: 8, 16" in told("--iteration", "9")
    (tmp_path / "file").touch()
    assert "cannot be written: " in told("--out", str(tmp_path / "file" / "below"))


def test_command_says_what_a_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, problem in ((tmp_path / "no", "is no folder"), (tmp_path, "holds no recorded iteration")):
        with pytest.raises(SystemExit) as ended:
            main(["trace", str(run)])
        errors = capsys.readouterr().err
        assert ended.value.code == 2 and problem in errors and errors.count("\n") == 1

"""Progress events: followed, added up, and drawn."""

import io
from pathlib import Path

from rich.console import Console

from pipelines.display import Display
from pipelines.events import Event, EventFile, append, read_all, stage_seconds


def event(time_s: float, stage: str, kind: str, **more: object) -> Event:
    return Event.model_validate({"time_s": time_s, "stage": stage, "event": kind} | more)


def test_file_is_followed_from_its_end_and_whole_lines_only(tmp_path: Path) -> None:
    """Catches: events of an earlier attempt shown again, an event lost because it was read half written."""
    path = tmp_path / "progress.jsonl"
    follower = EventFile(path)
    assert follower.read_new() == []
    append(path, event(1, "sft", "start"))
    assert [one.event for one in follower.read_new()] == ["start"]
    line = event(2, "sft", "end").model_dump_json()
    with open(path, "a", encoding="utf-8") as sink:
        sink.write(line[:20])
        sink.flush()
        assert follower.read_new() == []
        sink.write(line[20:] + "\n")
    assert [one.event for one in follower.read_new()] == ["end"]
    assert EventFile(path).read_new() == []


def test_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    append(path, event(1, "sft", "start"))
    with open(path, "a", encoding="utf-8") as sink:
        sink.write('{"time_s": 2, "sta')
    append(path, event(3, "sft", "end"))  # joins the torn line, and is lost with it
    append(path, event(4, "rl", "start"))
    assert [one.stage for one in read_all(path)] == ["sft", "rl"]


def test_seconds_add_up_over_attempts() -> None:
    """An attempt that was killed counts until its last sign of life, not until the next attempt."""
    history = [
        event(0, "run", "start"),
        event(1, "demos", "start"),
        event(4, "demos", "end"),
        event(4, "sft", "start"),
        event(9, "sft", "advance"),  # then killed, and continued an hour later
        event(3600, "run", "start"),
        event(3601, "sft", "start"),
        event(3611, "sft", "error"),
        event(3612, "run", "end"),
    ]
    assert stage_seconds(history) == {"demos": 3, "sft": 5 + 10, "run": 9 + 12}


def shown(*events: Event, terminal: bool) -> tuple[str, Display]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with Display(console, ("plan", "demos", "sft")) as display:
        display.feed(events)
        display.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), display


EVENTS = (
    event(10, "plan", "start"),
    event(11, "plan", "end"),
    event(11, "sft", "start"),
    event(12, "sft", "advance", done=5, total=10, metrics={"held_out": 0.25}),
    event(12, "sft", "warn", text="is [red]blind[/red]"),
    event(13, "sft", "crash", text="ValueError: x"),
)


def test_terminal_shows_a_row_per_stage() -> None:
    text, display = shown(*EVENTS, terminal=True)
    plan, demos, sft = text[text.rindex("plan") :].splitlines()[:3]
    assert "1 s" in plan
    assert "kept from before" in demos  # a later stage started: it had nothing to do
    assert "✗" in sft and "2 s" in sft and "held out 0.25" in sft and "ValueError: x" in sft
    assert "warning: sft: is [red]blind[/red]" in text  # a task's text is no markup
    assert display.failure is not None and display.failure.stage == "sft"


def test_plain_output_is_lines_and_not_too_many() -> None:
    """Catches: control characters in a log file, a line per training step."""
    many = [event(12, "sft", "advance", done=done, total=1000) for done in range(1, 1001)]
    text, _ = shown(*EVENTS[:3], *many, *EVENTS[4:], terminal=False)
    assert "\x1b" not in text
    assert text.count("advance") == 2  # the first and the last
    assert "[sft] crash after 2 s ValueError: x" in text

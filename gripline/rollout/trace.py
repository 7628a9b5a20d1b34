"""What slots and policy servers did and when: the record of one rollout, kept as a Chrome trace file, and its picture.

The file is a JSON array in the Trace Event Format, which https://ui.perfetto.dev and chrome://tracing open: complete
("X") events in microseconds since the first one, a process for each env worker and policy server, a thread for each
slot.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gripline.atomic import whole, write_whole
from gripline.errors import UserError


class TraceEvent(NamedTuple):
    """One interval on one lane.

    Attributes:
        kind: "reset", "step", "wait" (a slot waits for actions), "parked" (a spare slot holds an episode that is reset)
            or "batch".
        lane: who was busy: "worker 0/slot 3" or "policy 0".
        start_s: Unix time (`time.time()`).
        end_s: Unix time, not before `start_s`.
        label: what it was about: the episode of a slot, the number of rows of a batch ("7").
    """

    kind: str
    lane: str
    start_s: float
    end_s: float
    label: str


def file_name(iteration: int) -> str:
    """Of the trace of an RL iteration, counted from 0; sorts by iteration."""
    return f"iteration-{iteration:06d}.json"


def save(folder: Path, iteration: int, events: list[TraceEvent]) -> Path:
    """Write the Chrome trace file of an iteration into `folder`, whole or not at all; returns its path.

    Raises UserError when the disk does not take it.
    """
    path = folder / file_name(iteration)
    write_whole(path, json.dumps(_chrome_events(events), separators=(",", ":")) + "\n")
    return path


def read(path: Path) -> list[TraceEvent]:
    """The events of a trace file, their times in seconds since the first. Raises UserError on any other file."""
    try:
        names: dict[tuple[str, int, int], str] = {}
        events = []
        for entry in json.loads(path.read_text(encoding="utf-8")):
            place = (entry["pid"], entry["tid"])
            if entry["ph"] == "M":
                names[(entry["name"], *place)] = entry["args"]["name"]
            else:
                process, thread = names[("process_name", place[0], 0)], names[("thread_name", *place)]
                lane = process if thread == process else f"{process}/{thread}"
                start_s = entry["ts"] / 1e6
                end_s = (entry["ts"] + entry["dur"]) / 1e6
                events.append(TraceEvent(entry["cat"], lane, start_s, end_s, entry["args"]["label"]))
    except OSError as error:
        raise UserError(str(path), "", f"cannot be read: {error.strerror}", "") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), "", "is no trace file of gripline", "record the iteration again") from error
    return events


def draw(path: Path, out: Path) -> list[Path]:
    """Draw a trace file as `trace.png` and `trace.html`, a page that needs nothing else, into the folder `out`.

    Returns the two paths. Raises UserError when `path` is no trace file or holds nothing, or when the disk fails.
    """
    from gripline.rollout import timeline

    events = read(path)
    if not events:
        raise UserError(str(path), "", "holds no events", "choose another iteration")
    number = path.stem.removeprefix("iteration-")
    name = f"iteration {int(number)}" if number.isdecimal() else path.stem
    figure = timeline.figure(events, name)
    png, html = out / "trace.png", out / "trace.html"
    with whole(png) as temporary:
        temporary.write_bytes(timeline.png(figure))
    write_whole(html, timeline.html(figure, name))
    return [png, html]


def _chrome_events(events: list[TraceEvent]) -> list[dict[str, Any]]:
    """Names first, then the intervals in order of time. Thread 0 of a process only carries its name."""
    processes: dict[str, int] = {}
    threads: dict[str, tuple[int, int]] = {}
    out: list[dict[str, Any]] = []

    def name(kind: str, pid: int, tid: int, text: str) -> None:
        out.append({"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": text}})

    for lane in sorted({event.lane for event in events}, key=natural_order):
        process, _, thread = lane.partition("/")
        if process not in processes:
            processes[process] = len(processes) + 1
            name("process_name", processes[process], 0, process)
        threads[lane] = (processes[process], len(threads) + 1)
        name("thread_name", *threads[lane], thread or process)
    first_s = min((event.start_s for event in events), default=0.0)
    for event in sorted(events, key=lambda event: (event.start_s, event.lane)):
        start_us, end_us = (round(1e6 * (time_s - first_s)) for time_s in (event.start_s, event.end_s))
        pid, tid = threads[event.lane]
        shown = f"{event.kind} {event.label}".strip()
        interval = {"ph": "X", "name": shown, "cat": event.kind, "ts": start_us, "dur": end_us - start_us}
        out.append(interval | {"pid": pid, "tid": tid, "args": {"label": event.label}})
    return out


def natural_order(lane: str) -> tuple[bool, list[tuple[str, int]]]:
    """Sorting key of lanes: workers before policies, and "slot 10" after "slot 9"."""
    words = lane.replace("/", " ").split()
    pairs = [("", int(word)) if word.isdecimal() else (word, 0) for word in words]
    return lane.startswith("policy"), pairs

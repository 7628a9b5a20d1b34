"""Progress events as the front end sees them: followed while a run goes on, added up at its end."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

RUN = "run"
"""Pseudo stage: the front end marks its own beginning and end with it, once per attempt."""
ENDINGS = ("end", "error", "crash")


class Event(BaseModel):
    """One line of the progress file; see `gripline.progress.emit`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    time_s: float
    stage: str
    event: str
    text: str = ""
    done: int = 0
    total: int = 0
    metrics: dict[str, float] = {}


class EventFile:
    """Follows a progress file from where it ends now; it may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read_new(self) -> list[Event]:
        """The events that were completed since the last call."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as source:
            source.seek(self._offset)
            content = source.read()
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return list(_parse(lines))


def append(path: Path, event: Event) -> None:
    """Add an event of the front end's own."""
    with open(path, "a", encoding="utf-8") as sink:
        sink.write(event.model_dump_json() + "\n")


def read_all(path: Path) -> list[Event]:
    """Every event of every attempt."""
    return list(_parse(path.read_bytes().split(b"\n"))) if path.exists() else []


def stage_seconds(events: Iterable[Event]) -> dict[str, float]:
    """Seconds per stage, and of the whole run under 'run', over all attempts.

    A stage that was killed counts until the last event of its attempt.
    """
    seconds: dict[str, float] = {}
    running: dict[str, float] = {}
    last_s = 0.0

    def close(stage: str, time_s: float) -> None:
        started_s = running.pop(stage, None)
        if started_s is not None:
            seconds[stage] = seconds.get(stage, 0.0) + max(time_s - started_s, 0.0)

    for event in events:
        if event.stage == RUN and event.event == "start":
            for stage in list(running):
                close(stage, last_s)
        if event.event == "start":
            close(event.stage, last_s)
            running[event.stage] = event.time_s
        elif event.event in ENDINGS:
            close(event.stage, event.time_s)
        last_s = event.time_s
    for stage in list(running):
        close(stage, last_s)
    return seconds


def _parse(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield Event.model_validate_json(line)
        except ValidationError:
            continue  # torn: its writer was killed in the middle of it

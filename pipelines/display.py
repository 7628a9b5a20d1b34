"""What a person sees of a run: a live row per stage in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.events import RUN, Event

LINE_EVERY_S = 10.0
"""In plain output, how often a stage's progress is printed."""
_MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "kept": ("✓", "dim green"),
    "failed": ("✗", "red"),
}


@dataclass
class StageRow:
    """One stage: 'waiting', 'running', 'done', 'kept' (not needed again) or 'failed'."""

    state: str = "waiting"
    started_s: float = 0.0
    ended_s: float = 0.0
    done: int = 0
    total: int = 0
    text: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    printed_s: float = 0.0

    def apply(self, event: Event) -> None:
        """Take one event in."""
        if event.event == "start":
            self.state, self.started_s, self.ended_s = "running", event.time_s, 0.0
        elif event.event in ("end", "error", "crash"):
            self.state = "done" if event.event == "end" else "failed"
            self.ended_s = event.time_s
            self.text = "" if event.event == "end" else event.text
        elif event.event == "advance":
            self.done, self.total, self.metrics = event.done, event.total, event.metrics
            self.text = event.text
        elif event.event == "note":
            self.text = event.text

    @property
    def seconds(self) -> float:
        """Since the start, or what it took."""
        return (self.ended_s or time.time()) - self.started_s if self.started_s else 0.0


class Display:
    """Use as a context manager; feed it events; call `refresh` a few times a second."""

    def __init__(self, console: Console, stages: Iterable[str]) -> None:
        self._console = console
        self._rows = {stage: StageRow() for stage in stages}
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._render, transient=False)
        self.failure: Event | None = None
        """The last 'error' or 'crash' event."""
        self.running = ""
        """The stage that started last."""

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def feed(self, events: Iterable[Event]) -> None:
        """Take new events in; warnings are printed above the rows and stay."""
        for event in events:
            if event.stage == RUN:
                continue
            row = self._rows.setdefault(event.stage, StageRow())
            row.apply(event)
            if event.event == "start":
                self.running = event.stage
                self._mark_kept(before=event.stage)
            elif event.event in ("error", "crash"):
                self.failure = event
            if event.event == "warn":
                self._console.print(Text(f"warning: {event.stage}: {event.text}", style="yellow"))
            elif not self._console.is_terminal:
                self._print_line(event, row)

    def refresh(self) -> None:
        """Draw the rows anew."""
        if self._console.is_terminal:
            self._live.refresh()

    def _mark_kept(self, before: str) -> None:
        """A later stage starts: what is still waiting before it had nothing to do."""
        for stage, row in self._rows.items():
            if stage == before:
                return
            if row.state == "waiting":
                row.state = "kept"

    def _print_line(self, event: Event, row: StageRow) -> None:
        if event.event == "advance":
            if time.time() - row.printed_s < LINE_EVERY_S and event.done != event.total:
                return
            row.printed_s = time.time()
        count = f" {event.done}/{event.total}" if event.total else ""
        took = f" after {row.seconds:.0f} s" if row.ended_s else ""
        line = f"[{event.stage}] {event.event}{count}{took} {_numbers(event.metrics)} {event.text}"
        self._console.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for stage, row in self._rows.items():
            mark, style = _MARKS[row.state]
            elapsed = f"{row.seconds:.0f} s" if row.started_s else ""
            bar: RenderableType = ProgressBar(total=row.total, completed=row.done, width=20) if row.total else ""
            told = row.text if row.state != "waiting" else ""
            told = "kept from before" if row.state == "kept" else f"{_numbers(row.metrics)}  {told}".strip()
            table.add_row(Text(mark, style=style), Text(stage, style=style), elapsed, bar, Text(told, style="dim"))
        return Group(table, Text())


def _numbers(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())

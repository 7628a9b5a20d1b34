"""Curves of a stage: one JSON object per step in a file, and the same to the tracker."""

import json
from collections.abc import Callable
from pathlib import Path

from gripline.atomic import write_whole


class MetricsLog:
    """Appends `{"step": …, name: value…}` lines to `metrics.jsonl`; a resumed stage first drops what it will redo."""

    def __init__(self, path: Path, to_tracker: Callable[[dict[str, float], int], None]) -> None:
        self._path = path
        self._to_tracker = to_tracker
        path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Forget rows at `step` and later, and a half-written last line."""
        rows = [row for row in read_metrics(self._path) if row["step"] < step]
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row."""
        with open(self._path, "a", encoding="utf-8") as sink:
            sink.write(json.dumps({"step": step} | metrics) + "\n")
        self._to_tracker(metrics, step)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All complete rows; an absent file has none. A torn last line (the writer was killed) is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]

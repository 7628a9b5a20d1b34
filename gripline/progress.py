"""Progress events: what a stage tells whoever watches.

A pipeline step has no terminal. It appends one JSON object per event to the file that `GRIPLINE_PROGRESS` names (the
front end draws them), and prints the same as a plain line, which is what a pod's log shows.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gripline.errors import UserError

FILE_VARIABLE = "GRIPLINE_PROGRESS"


def emit(stage: str, event: str, *, text: str = "", done: int = 0, total: int = 0, **metrics: float) -> None:
    """Append one event. event: 'start', 'advance', 'note', 'warn', 'end' or 'error'; total 0 means unknown length."""
    record = {"time_s": time.time(), "stage": stage, "event": event, "text": text, "done": done, "total": total}
    record["metrics"] = {name: float(value) for name, value in metrics.items()}
    path = os.environ.get(FILE_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as sink:
            sink.write(json.dumps(record) + "\n")
    count = f" {done}/{total}" if total else ""
    numbers = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    print(f"[{stage}] {event}{count} {text} {numbers}".rstrip(), file=sys.stdout, flush=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Frame a stage with 'start' and 'end' events; a UserError is told in one line and becomes exit code 2."""
    emit(name, "start")
    try:
        yield
    except UserError as error:
        emit(name, "error", text=str(error))
        print(f"gripline: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Not handled here, only announced: the front end must know which stage broke before the process is gone.
        emit(name, "error", text=f"{type(error).__name__}: {error}")
        raise
    emit(name, "end")

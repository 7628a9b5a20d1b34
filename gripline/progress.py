"""Progress events: what a stage tells whoever watches.

A pipeline step has no terminal. It appends one JSON object per event to the file that `GRIPLINE_PROGRESS` names (the
front end draws them), and prints the same as a plain line, which is what a pod's log shows.
"""

import errno
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

from gripline.errors import UserError

FILE_VARIABLE = "GRIPLINE_PROGRESS"
_LINE = re.compile(
    r"\[(?P<stage>[\w-]+)\] (?P<event>advance|note|warn)(?: (?P<done>\d+)/(?P<total>\d+))?(?P<text> .*)?"
)
"""What `emit` prints."""
_NUMBER = re.compile(r" (?P<name>[^\s=]+)=(?P<value>nan|-?inf|-?\d+(?:\.\d+)?(?:e[-+]\d+)?)$")


def emit(
    stage: str, event: str, *, text: str = "", done: int = 0, total: int = 0, metrics: Mapping[str, float] | None = None
) -> None:
    """Append one event; total 0 means unknown length.

    event: 'start', 'advance', 'note', 'warn', 'end', 'error' (the user can mend it) or 'crash' (we must).
    """
    record = {"time_s": time.time(), "stage": stage, "event": event, "text": text, "done": done, "total": total}
    values = {name: float(value) for name, value in (metrics or {}).items()}
    _append(record | {"metrics": values})
    count = f" {done}/{total}" if total else ""
    numbers = " ".join(f"{name}={value:.4g}" for name, value in values.items())
    print(f"[{stage}] {event}{count} {text} {numbers}".rstrip(), file=sys.stdout, flush=True)


def relay(line: str) -> None:
    """Print a line of another process's output; what it reports of its progress is this process's progress too.

    Its beginning and end are not: this process frames the stage itself.
    """
    found = _LINE.fullmatch(line)
    if found is not None:
        text, metrics = found["text"] or "", {}
        while (number := _NUMBER.search(text)) is not None:
            text = text[: number.start()]
            metrics[number["name"]] = float(number["value"])
        record = {"time_s": time.time(), "stage": found["stage"], "event": found["event"], "text": text.strip()}
        counts = {"done": int(found["done"] or 0), "total": int(found["total"] or 0)}
        _append(record | counts | {"metrics": dict(reversed(metrics.items()))})
    print(line, file=sys.stdout, flush=True)


def _append(record: Mapping[str, object]) -> None:
    path = os.environ.get(FILE_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as sink:
            sink.write(json.dumps(record) + "\n")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Frame a stage with 'start' and 'end' events; a UserError is told in one line and becomes exit code 2."""
    emit(name, "start")
    try:
        yield
    except UserError as error:
        _give_up(name, error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = str(error.filename) if error.filename else name
            _give_up(name, UserError(where, "", "the disk is full", "free space and start the same run again"))
        _announce_crash(name, error)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Not handled here, only announced: the front end must know which stage broke before the process is gone.
        _announce_crash(name, error)
        raise
    emit(name, "end")


def _give_up(stage_name: str, error: UserError) -> NoReturn:
    with suppress(OSError):  # nor can this be written on a full disk
        emit(stage_name, "error", text=error.line)
        print(f"gripline: {error.line}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def _announce_crash(stage_name: str, error: BaseException) -> None:
    lines = f"{type(error).__name__}: {error}".splitlines()
    from_elsewhere = any(line.startswith("  File ") for line in lines)  # Ray's errors hold a remote traceback
    with suppress(OSError):
        emit(stage_name, "crash", text=lines[-1 if from_elsewhere else 0][:300])

"""A request to this process to stop where it can be continued later, and the right to write at all.

Stages ask at their boundaries: RL after an iteration, SFT after a step, evaluation after an episode. They write what a
later attempt continues from, then `check` ends them. Nobody asks a stage that runs in its pipeline step; the driver of
a RayJob (`gripline.kube.driver`) does, when its launcher is gone.
"""

import threading
from collections.abc import Callable

_lock = threading.Lock()
_reason = ""
_fence: Callable[[], None] | None = None


class StopRequestedError(Exception):
    """The stage stopped at a boundary because it was asked to; what it had is kept."""


class SupersededError(BaseException):
    """A newer attempt owns the run. Not an `Exception`: whoever tries again after any failure must not try this."""


def request(reason: str) -> None:
    """Ask the stage of this process to stop at its next boundary. Only the first reason counts."""
    global _reason
    with _lock:
        _reason = _reason or reason


def requested() -> str:
    """Why the stage is asked to stop; empty: it is not."""
    return _reason


def check() -> None:
    """Raise StopRequestedError if the stage was asked to stop. Call it where everything is written."""
    if _reason:
        raise StopRequestedError(_reason)


def set_fence(fence: Callable[[], None] | None) -> None:
    """From now on `fence()` calls this; it raises SupersededError where a newer attempt owns the run."""
    global _fence
    _fence = fence


def fence() -> None:
    """To be called before anything is written into the run's folder that others read."""
    if _fence is not None:
        _fence()


def clear() -> None:
    """Forget the request and the fence."""
    global _reason
    with _lock:
        _reason = ""
    set_fence(None)

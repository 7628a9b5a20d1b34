"""What the front end puts around work on this machine: variables, a scratch folder, signals that end it in order."""

import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gripline import threads

LONGEST_SCRATCH = 32
"""Characters. Ray puts sockets below it, whose paths may have 107."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENVIRONMENT = threads.DEFAULTS | {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour that Ray otherwise announces with a warning
    "RAY_COLOR_PREFIX": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PYTHONUNBUFFERED": "1",  # the log is complete when a step is killed
    "PYTHONSAFEPATH": "1",  # a folder called `components` where the user stands must not shadow ours
}


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop. Before and after the work, the command line's entry point handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """The first signal raises Interrupted; later ones are ignored, so that cleaning up is not cut short.

    A signal that our parent made us ignore (nohup) stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A short-named folder for what Ray and the steps leave lying about; removed with all that is in it."""
    parent = tempfile.gettempdir()
    if len(parent) + len("/gripline-12345678") > LONGEST_SCRATCH:
        parent = "/tmp"
    with tempfile.TemporaryDirectory(prefix="gripline-", dir=parent, ignore_cleanup_errors=True) as scratch:
        yield scratch


def reader_has_left() -> bool:
    """Whether whoever reads standard output has seen enough, such as `head`. If so, the rest goes nowhere."""
    try:
        output = sys.stdout.fileno()
        poll = select.poll()
        poll.register(output, 0)
        left = any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # it is no file
        return False
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return left

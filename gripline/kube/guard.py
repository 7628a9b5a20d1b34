"""What ends an attempt of the driver early: a newer attempt, or a launcher that is gone (a dead man's switch).

A thread looks at the job's files every few seconds. An attempt that is not the newest ends at once and writes nothing
more. A heartbeat that does not change for `orphan_after_s` means that nobody waits for the result: the stage is asked
to stop at its next boundary, where it writes a checkpoint; one that reaches none within as long again is ended.

How old a heartbeat is says this process's own clock, from the moment when it was first read as it is now; and only for
as long as it can be read. So neither clocks that differ nor an outage of the store make an orphan.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from gripline import stopping
from gripline.errors import UserError
from gripline.kube.jobfiles import Abandoned, Attempt, Heartbeat, JobFiles, Request

SLOW_READ_S = 10.0
"""A read that takes longer counts as one that failed."""
UNWIND_S = 20.0
"""For a superseded attempt to leave; then its process is ended."""
INTERRUPT = signal.SIGUSR1


class Freshness:
    """For how long something has been seen unchanged. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._last: object = None
        self._since_s: float | None = None

    def seen(self, content: object, now_s: float) -> float:
        """It was read; returns the seconds since it was first seen as it is, without a failure in between."""
        if self._since_s is None or content != self._last:
            self._last, self._since_s = content, now_s
        return now_s - self._since_s

    def unreadable(self) -> None:
        """It could not be read, so nobody knows whether it changed: the count starts again."""
        self._since_s = None


class Guard:
    """Watches as long as the block runs, and gives `stopping.fence` its meaning. For the main thread."""

    def __init__(self, run_dir: str, job: str, attempt: str, request: Request) -> None:
        self._files = JobFiles(run_dir, job)
        self._quick = JobFiles(run_dir, job, patience_s=0)
        self._attempt, self._request = attempt, request
        self._freshness = Freshness()
        self._asked_s: float | None = None
        """When the stage was asked to stop."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._handler: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Guard":
        self._handler = signal.signal(INTERRUPT, _superseded)
        stopping.set_fence(self._fence)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(SLOW_READ_S)
        signal.signal(INTERRUPT, self._handler or signal.SIG_DFL)
        stopping.clear()

    def _fence(self) -> None:
        newest = self._files.read(Attempt)
        if newest is not None and newest.attempt != self._attempt:
            raise stopping.SupersededError(f"attempt {newest.attempt} owns the run now")

    def _watch(self) -> None:
        while not self._over.wait(self._request.heartbeat_every_s / 2):
            started_s = time.monotonic()
            try:
                newest, heartbeat = self._quick.read(Attempt), self._quick.read(Heartbeat)
            except UserError:
                self._wait_anew()
                continue
            now_s = time.monotonic()
            if newest is not None and newest.attempt != self._attempt:
                self._leave()
            elif now_s - started_s > SLOW_READ_S:
                self._wait_anew()
            else:
                self._judge(self._freshness.seen(heartbeat, now_s), now_s)

    def _wait_anew(self) -> None:
        """The store is away: nobody can say whether the launcher lives, and no checkpoint can be written."""
        self._freshness.unreadable()
        if self._asked_s is not None:
            self._asked_s = time.monotonic()

    def _judge(self, age_s: float, now_s: float) -> None:
        limit_s = self._request.orphan_after_s
        if self._asked_s is None and age_s > limit_s:
            self._asked_s = now_s
            stopping.request(f"the launcher gave no sign of life for {age_s:.0f} s")
        elif self._asked_s is not None and now_s - self._asked_s > limit_s:
            reason = f"{stopping.requested()}; the stage reached no boundary within {limit_s:.0f} s"
            print(f"gripline: stopped: {reason}", flush=True)
            self._end_with(Abandoned(attempt=self._attempt, reason=reason, time_s=time.time()))

    def _leave(self) -> None:
        """End the stage wherever it is; `main` tells why."""
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, INTERRUPT)  # wakes it also from a wait
        if not self._over.wait(UNWIND_S):
            os._exit(0)
        raise SystemExit  # of this thread

    def _end_with(self, abandoned: Abandoned) -> NoReturn:
        try:
            self._files.write(abandoned)
        finally:
            os._exit(0)


def _superseded(signum: int, frame: FrameType | None) -> NoReturn:
    raise stopping.SupersededError("a newer attempt owns the run now")

"""The sign of life that a driver looks for: without one it ends by itself (`gripline.kube.driver`)."""

import threading
import time
from collections.abc import Callable

from gripline.kube.jobfiles import Heartbeat, JobFiles

TELL_AFTER = 3
"""Writes that failed in a row before it is told."""


class Heart:
    """Writes heartbeats on a thread until the end of the context.

    files: of the job, without patience. A write that fails is tried again at the next beat, and never ends anything.
    """

    def __init__(self, files: JobFiles, launcher: str, every_s: float, warn: Callable[[str], None]) -> None:
        self._files, self._launcher, self._every_s, self._warn = files, launcher, every_s, warn
        self._rayjob = self._uid = ""
        self._count = self._failed = 0
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Does not wait for a write that hangs."""
        self._stopped = True
        self._wake.set()

    def names(self, rayjob: str, uid: str) -> None:
        """Which RayJob it is for; the next beat, which says so, comes at once."""
        self._rayjob, self._uid = rayjob, uid
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            self._try()
            self._wake.wait(self._every_s)
            self._wake.clear()

    def _try(self) -> None:
        self._count += 1
        beat = {"launcher": self._launcher, "count": self._count, "time_s": time.time()}
        try:
            self._files.write(Heartbeat(**beat, rayjob=self._rayjob, rayjob_uid=self._uid))
            self._failed = 0
        except Exception as error:  # noqa: BLE001  every store has errors of its own, and none may end the heartbeat
            self._failed += 1
            if self._failed == TELL_AFTER:
                self._warn(f"the heartbeat cannot be written: {' '.join(str(error).split())[:200]}; still trying")

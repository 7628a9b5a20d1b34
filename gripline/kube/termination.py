"""What is left to do in the half second between SIGTERM and the end of a step: delete the RayJob, or leave it.

Kubeflow ends a step with SIGTERM when its run is terminated and when it ran into its time limit; then the RayJob must
go. It does so too when the pod is deleted or evicted, and then starts another, which adopts the RayJob. Only the pod's
deletion timestamp tells the cases apart. Standard output is closed by then: nothing is printed.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from gripline.kube.api import ApiError, Cluster, NotFoundError, UnavailableError

TIMEOUT_IN_POD_S = 0.4
"""Of one call: more is not left."""
TIMEOUT_S = 2.0
"""Elsewhere: there is more time, and the cluster may be far away."""
TRY_FOR_S = 0.5
"""For so long a creation that is under way may still arrive, and a connection that was closed is opened anew."""


class Termination:
    """Use as a context manager around everything from before the creation to after the clean-up.

    cluster: used by the handler alone, for no lock may be held that the interrupted code holds; with short timeouts.
    own_pod: a function that tells whether this process's pod is being replaced.
    """

    def __init__(
        self,
        cluster: Cluster,
        is_replaced: Callable[[], bool],
        *,
        end: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster, self._is_replaced = cluster, is_replaced
        self._end, self._clock, self._sleep = end, clock, sleep
        self._name = ""
        self.creating = False
        """A creation was sent and not yet answered."""

    def covers(self, name: str) -> None:
        """From now on there may be a RayJob of this name to delete; empty: there is none any more."""
        self._name = name

    def __enter__(self) -> "Termination":
        with contextlib.suppress(ApiError):  # opens the connection, before it could be interrupted by its own use
            self._cluster.pods("gripline.io/none")
        if threading.current_thread() is threading.main_thread():  # only there Python runs handlers
            self._before = signal.signal(signal.SIGTERM, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler. Ends the process, whatever it was doing."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if self._name and not self._is_replaced():
                self._delete()
        finally:
            self._end(128 + number)

    def _delete(self) -> None:
        deadline_s = self._clock() + TRY_FOR_S
        while True:
            try:
                self._cluster.delete_rayjob(self._name)
                return
            except NotFoundError:
                if not self.creating:
                    return
            except UnavailableError:
                pass
            except ApiError:
                return
            if self._clock() >= deadline_s:  # then the driver will find no new heartbeat
                return
            self._sleep(0.02)

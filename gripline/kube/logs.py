"""The driver's log, line by line into this step's log, over all attempts of a RayJob.

Every attempt has a RayCluster of its own, and a lost head pod is replaced within one; so the pod is looked up anew
whenever a stream ends. A stream that broke is continued: the API server knows whole seconds only, so what came already
is told by its timestamp and passed over.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gripline.kube.api import ApiError, Cluster, ForbiddenError, NotFoundError
from gripline.kube.names import LOG_CONTAINER

RETRY_S = 1.0
QUIET_S = 1.0
"""At the end: a stream without a new line for so long has told everything."""
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


@dataclass
class _Place:
    """How far a container's log has been told."""

    seconds: str = ""
    """RFC 3339; where to continue."""
    time_ns: int = 0
    lines_at_time: int = 0
    """Lines with that very timestamp that were told: several can share one."""


class _Told:
    """The lines at the beginning of a continued stream that came before."""

    def __init__(self, place: _Place) -> None:
        self._until_ns, self._at_time = place.time_ns, place.lines_at_time

    def has(self, time_ns: int) -> bool:
        """Asked once for each line, in order."""
        self._at_time -= time_ns == self._until_ns
        return time_ns < self._until_ns or (time_ns == self._until_ns and self._at_time >= 0)


class DriverLog:
    """Follows the log on a thread; use as a context manager."""

    def __init__(
        self,
        cluster: Cluster,
        tell: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster, self._tell, self._clock, self._sleep = cluster, tell, clock, sleep
        self._ray_cluster = ""
        self._places: dict[str, _Place] = {}
        self._changed = threading.Event()
        self._stop = False
        self._last_news_s = clock()
        self._is_connected = False
        self.forbidden: tuple[ForbiddenError, float] | None = None
        """Why the log may not be read, and since when."""
        self._thread = threading.Thread(target=self._run, name="driver-log", daemon=True)

    def __enter__(self) -> "DriverLog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Does not wait: the thread may hang in a silent stream, and ends with the process."""
        self._stop = True
        self._changed.set()

    def follow(self, ray_cluster: str) -> None:
        """Go on with the head pod of this RayCluster, once the present stream has ended; empty: there is none now."""
        if ray_cluster != self._ray_cluster:
            self._ray_cluster = ray_cluster
            self._changed.set()

    def drain(self, timeout_s: float) -> None:
        """Wait until everything is told, at most `timeout_s`. The job has ended, its pods still exist."""
        deadline = self._clock() + timeout_s
        while self._ray_cluster and self._clock() < deadline:
            if self._is_connected and self._clock() - self._last_news_s >= QUIET_S:
                return
            self._sleep(0.1)

    def _run(self) -> None:
        while not self._stop:
            self._changed.clear()
            try:
                self.follow_once()
            except ForbiddenError as error:
                self.forbidden = self.forbidden or (error, self._clock())
            except ApiError:
                self.forbidden = None  # not there yet, gone, or out of reach; the launcher itself tells of outages
            self._is_connected = False
            self._changed.wait(RETRY_S)

    def follow_once(self) -> None:
        """Tell what the present head pod's log has, until the stream ends. Raises ApiError."""
        if not self._ray_cluster:
            return
        pod = self._head_pod(self._ray_cluster)
        place = self._places.setdefault(pod["metadata"]["uid"], _Place())
        told = _Told(place) if place.seconds else None
        self._last_news_s = self._clock()
        for raw in self._cluster.follow_log(pod["metadata"]["name"], LOG_CONTAINER, place.seconds):
            self._is_connected, self._last_news_s, self.forbidden = True, self._clock(), None
            stamp = _STAMP.match(raw)
            if stamp is None:  # a further part of a line that was too long for one
                self._tell(raw)
                continue
            seconds, time_ns = _parsed(stamp)
            if told is not None and told.has(time_ns):
                continue
            told = None  # from here on the node's clock may do what it likes
            place.lines_at_time = place.lines_at_time + 1 if time_ns == place.time_ns else 1
            place.seconds, place.time_ns = seconds, time_ns
            self._tell(raw[stamp.end() :])

    def _head_pod(self, ray_cluster: str) -> dict[str, Any]:
        """The newest one: KubeRay replaces a head that was lost."""
        heads = self._cluster.pods(f"ray.io/cluster={ray_cluster},ray.io/node-type=head")
        if not heads:
            raise NotFoundError(f"no head pod of {ray_cluster} yet")
        return max(heads, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def _parsed(stamp: re.Match[str]) -> tuple[str, int]:
    """(RFC 3339 in whole seconds, nanoseconds since 1970)."""
    whole, fraction, zone = stamp.groups()
    moment = datetime.fromisoformat(whole + zone.replace("Z", "+00:00")).astimezone(UTC)
    nanoseconds = int((fraction or "").ljust(9, "0"))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ"), int(moment.timestamp()) * 10**9 + nanoseconds

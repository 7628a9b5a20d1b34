"""Which machines of the Ray cluster are still there."""

import socket
import time
from typing import Any

import ray

from gripline import progress

GRACE_S = 1.0
"""A machine that is shut down ends its processes a moment before it is known to be gone."""
CONNECT_S = 2.0


class Nodes:
    """Machines by their ids. One that is gone never comes back under its id."""

    def __init__(self) -> None:
        self._here: str = ray.get_runtime_context().get_node_id()
        self._gone: set[str] = set()

    def is_gone(self, node: str) -> bool:
        """For a machine on which something died: it may be about to follow, so this may take a second."""
        if not self.gone_of({node}) and node != self._here:
            time.sleep(GRACE_S)
        return bool(self.gone_of({node}))

    def gone_of(self, nodes: set[str]) -> set[str]:
        """Those that are gone. Asks Ray and, as Ray may learn of it only after half a minute, the machines too."""
        asked = nodes - self._gone - {self._here}
        if asked:
            alive = {each["NodeID"]: each for each in ray.nodes() if each["Alive"]}
            gone = {node for node in asked if node not in alive or not _answers(alive[node])}
            for node in gone:
                progress.emit("ray", "warn", text=f"machine {node[:8]} is gone; the others go on")
            self._gone |= gone
        return nodes & self._gone


def _answers(facts: dict[str, Any]) -> bool:
    try:
        socket.create_connection((facts["NodeManagerAddress"], facts["NodeManagerPort"]), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True

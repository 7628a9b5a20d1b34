"""How an env worker gets actions: observations that become ready together leave in one message, to one policy server.

Everything here runs on the worker's own event loop.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from gripline.rollout import wire
from gripline.rollout.messages import Decoding, PolicyFailedError
from gripline.types import ActionBatch, Observation

RETRY_S = 1.0
"""After a policy server was lost and no other is known; usually a new one is announced before."""


@dataclass(eq=False)
class _Asked:
    """An observation that waits for actions."""

    seat: int
    observation: Observation
    noise_key: tuple[int, int]
    decoding: Decoding
    answer: asyncio.Future[ActionBatch]


@dataclass(eq=False)
class _Replica:
    handle: Any
    connection: wire.Connection | None = None
    connecting: asyncio.Task[None] | None = None
    backlog: list[list[_Asked]] = field(default_factory=list)
    """Batches that wait for the connection."""
    open: dict[int, dict[int, _Asked]] = field(default_factory=dict)
    """Messages without a complete answer: number -> row -> who waits."""
    queue: int = 0
    """As it was said last."""
    unanswered: int = 0
    used: int = 0
    """Messages so far."""
    lost: bool = False


class PolicyClient:
    """Asks the replica with the shortest known queue. A replica's death only delays: what it held is asked again."""

    def __init__(self, worker: str, replicas: Sequence[Any], *, flush_at: int) -> None:
        """worker: a name that no other worker has. replicas: handles of policy servers. flush_at: so many observations
        leave at once, without `flush`."""
        self._worker = worker
        self._flush_at = flush_at
        self._outbox: list[_Asked] = []
        self._numbers = itertools.count()
        self._replicas = [_Replica(handle) for handle in replicas]

    @property
    def num_unanswered(self) -> int:
        """Observations that wait for actions. May be read by other threads."""
        return len(self._outbox) + sum(replica.unanswered for replica in self._replicas)

    def ask(
        self, seat: int, observation: Observation, noise_key: tuple[int, int], decoding: Decoding
    ) -> asyncio.Future[ActionBatch]:
        """The actions for one observation, as a batch of one; PolicyFailedError where the policy raised."""
        asked = _Asked(seat, observation, noise_key, decoding, asyncio.get_running_loop().create_future())
        self._outbox.append(asked)
        if len(self._outbox) >= self._flush_at:
            self.flush()
        return asked.answer

    def flush(self) -> None:
        """Send what waits here; to be called when nothing else can become ready soon."""
        waiting, self._outbox = [asked for asked in self._outbox if not asked.answer.done()], []
        for decoding in dict.fromkeys(asked.decoding for asked in waiting):
            self._hand_over([asked for asked in waiting if asked.decoding == decoding])

    def use_replicas(self, handles: Sequence[Any]) -> None:
        """From now on these are the policy servers. What waits for one that is none any more is asked again."""
        known = {replica.handle: replica for replica in self._replicas if not replica.lost}
        self._replicas = [known.pop(handle) if handle in known else _Replica(handle) for handle in handles]
        for gone in known.values():
            self._lose(gone)
        self.flush()

    def _hand_over(self, batch: list[_Asked]) -> None:
        known = [replica for replica in self._replicas if not replica.lost]
        if not known:
            self._outbox += batch
            return
        replica = min(known, key=lambda each: (each.queue + each.unanswered, each.used))
        replica.unanswered += len(batch)
        replica.used += 1
        if replica.connection is not None:
            self._send(replica, replica.connection, batch)
            return
        replica.backlog.append(batch)
        if replica.connecting is None:
            replica.connecting = asyncio.get_running_loop().create_task(self._connect(replica))

    async def _connect(self, replica: _Replica) -> None:
        """Send what waits for the connection as soon as there is one."""

        def received(connection: wire.Connection, body: wire.Body, arrays: list[np.ndarray]) -> None:
            self._received(replica, body, arrays)

        def closed(connection: wire.Connection) -> None:
            if replica.connection is connection:  # not one that was given up before
                self._lose(replica)

        try:
            address: wire.Address = await replica.handle.address.remote()
            connection = await wire.connect(address, self._worker, received, closed)
        except (ray.exceptions.RayActorError, OSError):
            self._lose(replica)
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the episodes that wait for an answer must hear of it
            self._fail(replica, error)
            return
        replica.connecting = None
        if replica.lost:
            connection.close()
            return
        if not connection.is_open:  # `closed` came before it was known
            self._lose(replica)
            return
        replica.connection = connection
        batches, replica.backlog = replica.backlog, []
        for batch in batches:
            self._send(replica, connection, batch)

    def _send(self, replica: _Replica, connection: wire.Connection, batch: list[_Asked]) -> None:
        number = next(self._numbers)
        replica.open[number] = dict(enumerate(batch))
        decoding = batch[0].decoding
        body = {
            "number": number,
            "seats": [asked.seat for asked in batch],
            "noise_keys": [asked.noise_key for asked in batch],
            "instructions": [asked.observation.instruction for asked in batch],
            "greedy": decoding.greedy,
            "temperature": decoding.temperature,
        }
        seen = [(asked.observation.images_NHWC, asked.observation.proprio_P) for asked in batch]
        connection.send(body, [array for pair in seen for array in pair])

    def _received(self, replica: _Replica, body: wire.Body, arrays: list[np.ndarray]) -> None:
        waiting = replica.open[body["number"]]
        replica.queue = body["queue"]
        for position, row in enumerate(body["rows"]):
            asked = waiting.pop(row)
            replica.unanswered -= 1
            if asked.answer.done():
                continue
            if body["error"]:
                asked.answer.set_exception(PolicyFailedError(body["error"]))
            else:
                asked.answer.set_result(ActionBatch(*(array[position : position + 1] for array in arrays)))
        if not waiting:
            del replica.open[body["number"]]

    def _lose(self, replica: _Replica) -> None:
        """Ask others; if there are none, wait for a new one, but try again now and then: it may only be unreachable."""
        replica.lost = True
        self._outbox += self._forget(replica)
        self.flush()
        if self._outbox:
            asyncio.get_running_loop().call_later(RETRY_S, self._retry)

    def _fail(self, replica: _Replica, error: Exception) -> None:
        """The policy could not even be loaded."""
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        for asked in self._forget(replica):
            if not asked.answer.done():
                asked.answer.set_exception(PolicyFailedError(f"{type(cause).__name__}: {cause}"))

    def _forget(self, replica: _Replica) -> list[_Asked]:
        """Those who waited for it; it is as before its first message."""
        waiting = [asked for rows in replica.open.values() for asked in rows.values()]
        waiting += [asked for batch in replica.backlog for asked in batch]
        connection, replica.connection, replica.connecting = replica.connection, None, None
        replica.open, replica.backlog, replica.unanswered, replica.queue = {}, [], 0, 0
        if connection is not None:
            connection.close()
        return waiting

    def _retry(self) -> None:
        for replica in self._replicas:
            replica.lost = False
        self.flush()

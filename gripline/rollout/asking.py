"""How an env worker gets actions: observations that become ready together leave in one message, to one policy server.

Everything here runs on the worker's own event loop.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from gripline.rollout.messages import ActionAnswer, ActionRequest, Decoding, PolicyFailedError, rows_of
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
    queue: int = 0
    """As it was said last."""
    unanswered: int = 0
    used: int = 0
    """Requests sent so far."""
    lost: bool = field(default=False)


class PolicyClient:
    """Asks the replica with the shortest known queue. A replica's death only delays: what it held is asked again."""

    def __init__(self, worker: str, replicas: Sequence[Any], *, flush_at: int) -> None:
        """worker: a name that no other worker has. flush_at: so many observations leave at once, without `flush`."""
        self._worker = worker
        self._flush_at = flush_at
        self._outbox: list[_Asked] = []
        self._sending: set[asyncio.Task[None]] = set()
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
            self._start_sending([asked for asked in waiting if asked.decoding == decoding])

    def use_replicas(self, replicas: Sequence[Any]) -> None:
        """From now on these are the policy servers; what waits for one is sent."""
        self._replicas = [_Replica(handle) for handle in replicas]
        self.flush()

    def _start_sending(self, batch: list[_Asked]) -> None:
        known = [replica for replica in self._replicas if not replica.lost]
        if not known:
            self._outbox += batch
            return
        replica = min(known, key=lambda each: (each.queue + each.unanswered, each.used))
        task = asyncio.get_running_loop().create_task(self._send(replica, batch))
        self._sending.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._sending.discard)

    async def _send(self, replica: _Replica, batch: list[_Asked]) -> None:
        decoding = batch[0].decoding
        request = ActionRequest(
            worker=self._worker,
            seats=[asked.seat for asked in batch],
            observations=[asked.observation for asked in batch],
            noise_keys=[asked.noise_key for asked in batch],
            greedy=decoding.greedy,
            temperature=decoding.temperature,
        )
        replica.unanswered += len(batch)
        replica.used += 1
        open_rows = dict(enumerate(batch))
        try:
            call = replica.handle.act.remote(request)
            while open_rows:
                answer: ActionAnswer = await call
                if answer.ticket is not None:
                    call = replica.handle.rest.remote(answer.ticket)
                replica.queue = answer.queue
                for position, row in enumerate(answer.rows):
                    replica.unanswered -= 1
                    asked = open_rows.pop(row)
                    if not asked.answer.done():
                        asked.answer.set_result(rows_of(answer.actions, slice(position, position + 1)))
        except ray.exceptions.RayActorError:
            self._lose(replica, list(open_rows.values()))
        except Exception as error:  # noqa: BLE001  whatever it is, the episodes that wait for an answer must hear of it
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            for asked in open_rows.values():
                if not asked.answer.done():
                    asked.answer.set_exception(PolicyFailedError(f"{type(cause).__name__}: {cause}"))
        replica.unanswered -= len(open_rows)

    def _lose(self, replica: _Replica, unanswered: list[_Asked]) -> None:
        """Ask others; if there are none, wait for a new one, but try again now and then: it may only be unreachable."""
        replica.lost = True
        self._outbox += unanswered
        self.flush()
        if self._outbox:
            asyncio.get_running_loop().call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        for replica in self._replicas:
            replica.lost = False
        self.flush()

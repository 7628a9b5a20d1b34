"""What a question and its answer cost between two processes of this machine, as a Ray call and over TCP."""

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray

from gripline.rollout import wire

SIDE_PX = 256
PAUSES_S = {"back to back": 0.0, "after 20 ms of sleep": 0.02}
"""After a pause both processes sleep, as they do while a simulator steps."""


@dataclass(frozen=True)
class Call:
    """Median over the round trips of one kind."""

    way: str
    pause: str
    pixels: int
    """Of the picture that is sent; the answer is small."""
    ms: float


@ray.remote(num_cpus=0)
class Answers:
    """Says how many bytes it got, either way."""

    async def size(self, picture: np.ndarray) -> int:
        """Answer a Ray call."""
        return int(picture.nbytes)

    async def address(self) -> wire.Address:
        """Where the same is answered over TCP."""

        def received(connection: wire.Connection, body: wire.Body, arrays: list[np.ndarray]) -> None:
            connection.send({"size": arrays[0].nbytes})

        return await wire.listen("127.0.0.1", received, lambda connection: None)


@ray.remote(num_cpus=0)
class Asks:
    """The other process."""

    async def measure(self, answers: Any, count: int) -> list[dict[str, Any]]:
        """`Call`s, each of `count` round trips."""
        arrived: asyncio.Queue[wire.Body] = asyncio.Queue()
        connection = await wire.connect(
            await answers.address.remote(),
            "benchmark",
            lambda _, body, arrays: arrived.put_nowait(body),
            lambda _: None,
        )

        async def by_ray(picture: np.ndarray) -> None:
            await answers.size.remote(picture)

        async def by_tcp(picture: np.ndarray) -> None:
            connection.send({}, [picture])
            await arrived.get()

        out = []
        for way, ask in {"Ray call": by_ray, "TCP": by_tcp}.items():
            for pause, pause_s in PAUSES_S.items():
                for side_px in (8, SIDE_PX):
                    picture = np.zeros((1, side_px, side_px, 3), np.uint8)
                    ms = [await _timed_ms(ask(picture), pause_s) for _ in range(count)]
                    out.append(asdict(Call(way, pause, side_px**2, statistics.median(ms))))
        return out


async def _timed_ms(question: Any, pause_s: float) -> float:
    await asyncio.sleep(pause_s)
    started = time.perf_counter()
    await question
    return 1e3 * (time.perf_counter() - started)


def calls(*, count: int) -> list[dict[str, Any]]:
    """Every way, with and without a pause, a small and a large picture; needs a Ray cluster."""
    answers, asks = Answers.remote(), Asks.remote()
    ray.get(asks.measure.remote(answers, 3))
    out: list[dict[str, Any]] = ray.get(asks.measure.remote(answers, count))
    for actor in (answers, asks):
        ray.kill(actor)
    return out

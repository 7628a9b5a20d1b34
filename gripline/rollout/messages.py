"""What driver, env workers and policy servers send each other. Shape letters as in `gripline.types`."""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np
import ray

from gripline.types import ActionBatch, EpisodeRecord, Observation

Doing = Literal["idle", "queued", "reset", "parked", "waiting", "ready", "step"]
"""queued: for its reset; parked: reset, and waits until it may act; waiting: for actions; ready: has them."""

Method = TypeVar("Method", bound=Callable[..., Any])
Item = TypeVar("Item")


def control(method: Method) -> Method:
    """A method of an actor that is answered while the others are busy: it runs on a thread and event loop of its own.

    The actor must be started with a concurrency group "control", as `actor_options` does.
    """
    return cast(Method, ray.method(concurrency_group="control")(method))


def actor_options(resource: str, num_gpus: float, num_calls: int) -> Any:
    """The decorator of an actor class that has control methods; it asks Ray for one of a custom resource."""
    return ray.remote(
        num_cpus=0,
        num_gpus=num_gpus,
        resources={resource: 1},
        max_concurrency=num_calls,
        concurrency_groups={"control": 1},
    )


def this_node() -> str:
    """The id of the machine that this actor runs on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


class PolicyFailedError(Exception):
    """The policy raised: no simulator's fault, so no reason to try the episode again."""


class ServedPolicy(Protocol):
    """What a policy server serves. All calls come from one thread."""

    batch_sizes: tuple[int, ...]
    """Sizes that batches are padded to."""

    def act(
        self, observations: list[Observation], *, noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        """See `gripline.types.Policy`."""

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Take over these weights, by name. The arrays are shared and read-only: copy them."""


@dataclass(frozen=True)
class Decoding:
    """How actions are chosen: greedily, or sampled with noise keyed by (spec.noise_seed, chunk index)."""

    greedy: bool
    temperature: float = 1.0
    keep_trajectory: bool = False
    """Return the trajectory. Its tokens say what was done, so the record leaves the actions out."""


@dataclass(frozen=True)
class Row:
    """What the driver gets of one episode; pixels are not among it."""

    record: EpisodeRecord
    reset_s: float
    """Seconds of the simulator."""
    step_s: float
    cancelled: bool = False
    """Ended early on request; the record holds the steps spent until then."""


@dataclass(frozen=True)
class WarmUp:
    """Answer of an env worker whose simulators are built."""

    pid: int
    reset_s: float
    """The longest reset, construction included."""
    node: str
    """Its machine."""


@dataclass(frozen=True)
class SlotStatus:
    """What a slot does, for how long, and with which episode (`EpisodeSpec.key`; empty for an idle slot)."""

    doing: Doing
    seconds: float
    key: str


@dataclass(frozen=True)
class WorkerStatus:
    """An env worker at a glance."""

    slots: tuple[SlotStatus, ...]
    queue_depth: int
    """Observations without an answer from a policy server."""


@dataclass(frozen=True)
class PolicyCounters:
    """What a policy server did in some period."""

    busy_s: float = 0.0
    num_batches: int = 0
    num_rows: int = 0
    queue_rows: int = 0
    """Observations that waited when a batch was formed, summed over batches."""
    queue_max: int = 0


def rows_of(actions: ActionBatch, rows: Any) -> ActionBatch:
    """These rows; `rows` is a slice or a list of positions."""
    return ActionBatch(actions.tokens_BKA[rows], actions.actions_BKA[rows], actions.logprobs_BKA[rows])


def joined(parts: list[ActionBatch]) -> ActionBatch:
    """All rows, in order."""
    return ActionBatch(
        np.concatenate([part.tokens_BKA for part in parts]),
        np.concatenate([part.actions_BKA for part in parts]),
        np.concatenate([part.logprobs_BKA for part in parts]),
    )


def drained(queue: deque[Item]) -> list[Item]:
    """All that is in it; other threads may append meanwhile."""
    items: list[Item] = []
    with contextlib.suppress(IndexError):
        while True:
            items.append(queue.popleft())
    return items

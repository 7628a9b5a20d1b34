"""What the fleet tells: who is ready, what came back, who is gone. Workers and replicas are known by numbers."""

from dataclasses import dataclass

from gripline.rollout.messages import Row


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready."""

    worker: int


@dataclass(frozen=True, slots=True)
class Returned:
    """An episode's row came back."""

    worker: int
    index: int
    row: Row


@dataclass(frozen=True, slots=True)
class Raised:
    """An episode's simulator raised."""

    worker: int
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker died or does not answer."""

    worker: int
    reason: str
    node: str = ""
    """Its machine, if that is gone too."""


@dataclass(frozen=True, slots=True)
class Hangs:
    """A worker answers, but the simulator of the episode with this key is over its deadline."""

    worker: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """A policy server died or does not answer."""

    replica: int
    reason: str
    node: str = ""
    """Its machine, if that is gone too."""


Event = Joined | Returned | Raised | Lost | Hangs | ReplicaLost

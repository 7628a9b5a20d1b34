"""A recorded episode run again: the recorded actions, stepped from the same initial state, are the same episode."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.errors import UserError
from gripline.types import Env, EpisodeRecord, Observation, Step

Acting = Callable[[Observation, int], np.ndarray]
"""The actions (K, A) of a policy for an observation and the chunk's index, from 0."""


@dataclass(frozen=True)
class Frame:
    """One moment of a replay."""

    picture_HWC: np.ndarray
    """For people."""
    seen_HWC: np.ndarray
    """What the policy was shown last."""
    num_steps: int


def difference(config: EnvConfig, record: EpisodeRecord, act: Acting | None = None) -> str:
    """Where the episode, stepped again with its recorded actions, is not the recorded one: 'chunk 3 of 7: …'.

    Empty: nowhere; success, steps, chunks and, where they were recorded, failure type and conduct are the same. act:
    is asked for every chunk too, which must be the recorded one bit for bit. Raises UserError for a record without
    actions.
    """
    if not record.actions_TKA:
        problem = f"has no recorded actions: {record.error}" if record.error else "has no recorded actions"
        raise UserError(f"episode {record.spec.key}", "", problem, "choose another one")
    env = make_env(config)
    try:
        observation = env.reset(record.spec)
        num_steps = 0
        for index, actions_KA in enumerate(np.array(record.actions_TKA, np.float32)):
            here = f"chunk {index + 1} of {record.num_chunks}"
            if act is not None and not np.array_equal(acted_KA := act(observation, index), actions_KA):
                return f"{here}: the policy acts otherwise, by up to {np.abs(acted_KA - actions_KA).max():.3g}"
            step = env.step(actions_KA)
            num_steps += step.num_steps
            unlike = _unlike(step, num_steps, record, is_last=index + 1 == record.num_chunks)
            if unlike:
                return f"{here}: {unlike}"
            observation = step.observation
        return ""
    finally:
        env.close()


def _unlike(step: Step, num_steps: int, record: EpisodeRecord, *, is_last: bool) -> str:
    """In what the state after a chunk contradicts the record; empty: in nothing."""
    ended = step.success or step.truncated
    if not is_last:
        return f"it ends here with success={step.success}, the record goes on" if ended else ""
    recorded = f"success={record.success} after {record.num_steps} steps"
    if not ended:
        return f"it goes on after {num_steps} steps, the record ends with {recorded}"
    if (step.success, num_steps) != (record.success, record.num_steps):
        return f"it ends with success={step.success} after {num_steps} steps, the record with {recorded}"
    if record.conduct is None or step.outcome is None:  # recorded before, or in an environment that does not look
        return ""
    if step.outcome.failure != record.failure:
        return f"the failure is {step.outcome.failure!r}, the record says {record.failure!r}"
    now, then = step.outcome.conduct.model_dump(), record.conduct.model_dump()
    apart = [f"{name} is {now[name]}, the record says {then[name]}" for name in now if now[name] != then[name]]
    return apart[0] if apart else ""


def replay(config: EnvConfig, record: EpisodeRecord, size_px: int) -> tuple[list[Frame], float]:
    """The episode's frames, two in a chunk where that changes nothing, and the control rate in Hz.

    Raises UserError when the replay does not end as the record says.
    """
    halves = len(record.actions_TKA[0]) > 1 or config.hold_steps % 2 == 0
    for pieces in (2, 1) if halves else (1,):
        # One held action is cut into two that are held half as long; several are cut between them.
        repeats = pieces if len(record.actions_TKA[0]) == 1 else 1
        env = make_env(config.model_copy(update={"hold_steps": config.hold_steps // repeats}))
        try:
            frames, success = _filmed(env, record, size_px, pieces, repeats)
            if (success, frames[-1].num_steps) == (record.success, record.num_steps):
                return frames, env.spec.control_hz
        finally:
            env.close()
    raise UserError(
        f"episode {record.spec.key}",
        f"{record.spec.task}, {record.spec.axis}",
        f"the replay ends with success={success} after {frames[-1].num_steps} steps, "
        f"the record says success={record.success} after {record.num_steps}",
        "it was recorded with another simulator version or configuration",
    )


def _filmed(env: Env, record: EpisodeRecord, size_px: int, pieces: int, repeats: int) -> tuple[list[Frame], bool]:
    observation = env.reset(record.spec)
    frames = [Frame(env.render_for_people(size_px), observation.images_NHWC[0], 0)]
    for actions_KA in np.array(record.actions_TKA, np.float32):
        for piece_KA in np.array_split(np.repeat(actions_KA, repeats, axis=0), pieces):
            step = env.step(piece_KA)
            seen = step.observation.images_NHWC[0]
            frames.append(Frame(env.render_for_people(size_px), seen, frames[-1].num_steps + step.num_steps))
            if step.success or step.truncated:
                return frames, step.success
    return frames, False

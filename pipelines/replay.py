"""`gripline replay`: a recorded episode run again, checked against its record, and filmed."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from gripline.config import EvalConfig
from gripline.errors import UserError
from gripline.inputs import RunInputs
from gripline.results import read_results
from gripline.store import RunStore
from gripline.types import EpisodeRecord, EpisodeSpec, Observation

if TYPE_CHECKING:
    from gripline.replay import Acting

Owner = Literal["rl", "sft"]
DIFFERS = 1
SHORTEST_KEY = 4


def list_episodes(run: str, policy: Owner | None, axis: str, task: str, failed: bool) -> int:
    """Print the episodes of an evaluation, one line each; returns 0.

    axis, task: only these; empty: all. failed: only those without success. Raises UserError where none is left.
    """
    store = RunStore(run)
    _, records = _evaluation(store, policy)
    shown = [
        (number, record)
        for number, record in enumerate(records, start=1)
        if axis in ("", record.spec.axis) and task in ("", record.spec.task) and not (failed and record.success)
    ]
    if not shown:
        known = ", ".join(dict.fromkeys([record.spec.axis for record in records] + [r.spec.task for r in records]))
        raise UserError(store.uri, "--list", "has no such episode", f"axes and tasks are: {known}")
    rows: list[tuple[str, ...]] = [("", "key", "task", "axis", "draw", "outcome", "failure", "steps")]
    rows += [(str(number), *_cells(record)) for number, record in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sampled = any(record.spec.member for _, record in shown)
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells if sampled else cells[:4] + cells[5:]).rstrip())
    return 0


def replay_episode(run: str, episode: str, policy: Owner | None, out: Path | None, act: bool, checkpoint: str) -> int:
    """Run it again, say whether it is the same, film it into `out`. Returns 0, or 1 where it is not the same.

    episode: its number in the list, from 1, or the beginning of its key. act: the policy at `checkpoint` (empty: the
    run's own) is asked for its actions too. Raises UserError.
    """
    store = RunStore(run)
    owner, records = _evaluation(store, policy)
    number, record = _find(records, episode, store.uri)
    profile = RunInputs.read(store).profile
    from gripline.envs import prepare
    from gripline.replay import difference, replay

    os.environ |= prepare(profile.env)
    spec, outcome = record.spec, _cells(record)[4]
    name = f"episode {number} ({spec.key})"
    print(f"{name}: {spec.task}, {spec.axis}: {outcome} after {record.num_steps} steps, {record.num_chunks} chunks")
    # Torch before the simulator: Mesa's software renderer and torch crash in one process the other way round.
    acting = _acting(checkpoint or _checkpoint(store, owner), profile.eval, spec) if act else None
    apart = difference(profile.env, record)
    if not apart and acting is not None:
        apart = difference(profile.env, record, acting)
    if apart:
        print(f"gripline: {name}: is not the same: {apart}", file=sys.stderr)
        return DIFFERS
    looked = ", failure type, conduct" if record.conduct is not None else ""
    print(f"the same: success, steps, chunks{looked}{', and what the policy does, bit for bit' if act else ''}")
    from components.eval.videos import Choice, write_video

    path = out if out is not None else Path(f"replay-{spec.key}.gif")
    frames, control_hz = replay(profile.env, record, profile.eval.video_size_px)
    write_video(path, frames, control_hz, Choice(owner.upper(), record))
    print(f"video: {path}")
    return 0


def _evaluation(store: RunStore, policy: Owner | None) -> tuple[Owner, list[EpisodeRecord]]:
    """Whose it is, and its episodes. Raises UserError where there is none, or it is damaged."""
    owners: tuple[Owner, ...] = ("rl", "sft") if policy is None else (policy,)
    for owner in owners:
        path = store.pull(f"eval-{owner}/results.jsonl")
        if path.exists():
            return owner, read_results(path)
    where = f"{store.uri}/eval-{owners[0]}/results.jsonl"
    raise UserError(where, "", "no such results file", "name the folder of a finished evaluation, or another --policy")


def _find(records: list[EpisodeRecord], episode: str, where: str) -> tuple[int, EpisodeRecord]:
    if episode.isdecimal() and 1 <= int(episode) <= len(records):
        return int(episode), records[int(episode) - 1]
    found: list[tuple[int, EpisodeRecord]] = []
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST_KEY},16}}", episode):
        numbered = enumerate(records, start=1)
        found = [(number, record) for number, record in numbered if record.spec.key.startswith(episode)]
    if len(found) != 1:
        keys = ", ".join(record.spec.key for _, record in found[:3])
        problem = f"several keys begin with {episode}: {keys}" if found else f"no episode is called {episode!r}"
        next_step = f"give a number from 1 to {len(records)}, or {SHORTEST_KEY} or more digits of a key"
        raise UserError(where, "EPISODE", problem, next_step)
    return found[0]


def _checkpoint(store: RunStore, owner: Owner) -> str:
    """Of a pipeline's run its own one, unless it is what the run began with; of an evaluation, what it evaluated."""
    if store.files(f"{owner}/checkpoint"):
        return f"{store.uri}/{owner}/checkpoint"
    checkpoint = RunInputs.read(store).checkpoint_uri
    if not checkpoint:
        raise UserError(store.uri, "--act", "holds no checkpoint", "give --from CHECKPOINT")
    return checkpoint


def _acting(checkpoint: str, config: EvalConfig, spec: EpisodeSpec) -> "Acting":
    """The policy as it acted in the evaluation. Raises UserError where there is none."""
    from gripline import threads

    threads.set_defaults()
    from gripline.rollout.standard import make_served_policy

    policy = make_served_policy(checkpoint)

    def act(observation: Observation, chunk: int) -> np.ndarray:
        keys = None if config.decoding == "greedy" else [(spec.noise_seed, chunk)]
        chunk_KA: np.ndarray = policy.act([observation], noise_keys=keys, temperature=config.temperature).actions_BKA[0]
        return chunk_KA

    return act


def _cells(record: EpisodeRecord) -> tuple[str, ...]:
    outcome = "error" if record.error else "success" if record.success else "failure"
    spec, failure = record.spec, record.failure or "-"
    return spec.key, spec.task, spec.axis, str(spec.member), outcome, failure, str(record.num_steps)

"""Runs of the rollout engine on cost models and on real simulators, and of its schedule alone."""

import random
import time
import tracemalloc
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cost_model import CostEnv, CostModel, CostPolicy
from references import Measured

from gripline import profiles
from gripline.config import RolloutConfig
from gripline.rollout.actors import Decoding
from gripline.rollout.engine import Finished, RolloutEngine, standard_engine
from gripline.rollout.schedule import Action, Schedule, Start
from gripline.splits import build_splits
from gripline.types import EpisodeSpec

GREEDY = Decoding(greedy=True)


def rollout_config(model: CostModel) -> RolloutConfig:
    """Simulators that sleep do so at the same time, unless they share a core."""
    held = model.slots_per_worker + model.spare_slots
    return RolloutConfig(
        env_workers=model.env_workers,
        slots_per_worker=model.slots_per_worker,
        spare_slots=model.spare_slots,
        parallel_steps=1 if model.serial else held,
        policy_replicas=model.policy_replicas,
        layout="disaggregated",
    )


def cost_engine(model: CostModel) -> RolloutEngine:
    """The real engine on a cost model; needs a Ray cluster."""
    warm_up = [model.spec(model.episodes)]
    return RolloutEngine(partial(CostEnv, model), partial(CostPolicy, model), rollout_config(model), warm_up=warm_up)


def run_engine(model: CostModel) -> Measured:
    """All episodes of a case; before them a few short ones, from which the engine learns what everything costs.

    Raises RuntimeError when an episode was not what was drawn.
    """
    with cost_engine(model) as engine:
        _run(engine, [model.spec(model.episodes + slot) for slot in range(model.slots)])
        finished, seconds = _run(engine, [model.spec(episode) for episode in range(model.episodes)])
        for episode in finished:
            costs, record = model.all_costs[episode.index], episode.record
            if record.error or (record.num_chunks, record.success) != (costs.num_chunks, costs.success):
                raise RuntimeError(f"case {model.name}, episode {episode.index}: {record}, drawn were {costs}")
        steps = sum(episode.record.num_steps for episode in finished)
        dead_steps = steps - model.num_chunks * model.steps_per_chunk + engine.last.dead_steps
        return Measured(seconds, engine.last.step_s, engine.last.policy_busy_s, dead_steps)


def _run(engine: RolloutEngine, specs: list[EpisodeSpec]) -> tuple[list[Finished], float]:
    started = time.perf_counter()
    finished = list(engine.run(specs, GREEDY))
    return finished, time.perf_counter() - started


@dataclass(frozen=True)
class Transport:
    """What a chunk's way from simulator to policy and back costs, at 256-pixel uint8 observations."""

    slots_per_worker: int
    chunks: int
    ms_per_chunk: float
    """Mean time from one chunk's start to the next one's in a slot, less what the simulator sleeps."""


def transport(*, chunks: int) -> list[dict[str, float]]:
    """One worker with one slot and with eight; the policy takes no time, so no row waits for another's batch.

    One episode for each slot, so that nothing but the first reset lies between its chunks.
    """
    out = []
    for slots in (1, 8):
        model = CostModel(
            "transport",
            env_workers=1,
            slots_per_worker=slots,
            spare_slots=0,
            episodes=slots,
            horizon_chunks=chunks,
            policy_base_s=0.0,
            policy_row_s=0.0,
            image_size_px=256,
        )
        cycle_s = (run_engine(model).seconds - model.reset_s) / chunks
        out.append(asdict(Transport(slots, chunks, 1e3 * (cycle_s - model.chunk_s))))
    return out


@dataclass(frozen=True)
class Driver:
    """How many episodes' rows the driver handles, with simulators and a policy that do nothing."""

    rows: int
    rows_per_s: float
    """Of the whole machine: workers and policy run on the same cores."""
    driver_cpu_ms_per_row: float
    """Of the driver's process alone; 1000 over it is what one core's driver can do."""


def driver(*, episodes: int) -> dict[str, float]:
    """Episodes of one chunk that cost nothing."""
    model = CostModel(
        "driver",
        env_workers=2,
        episodes=episodes,
        horizon_chunks=1,
        chunk_s=0.0,
        reset_s=0.0,
        policy_base_s=0.0,
        policy_row_s=0.0,
    )
    with cost_engine(model) as engine:
        _run(engine, [model.spec(episodes + slot) for slot in range(model.slots)])
        cpu_s = time.process_time()
        _, seconds = _run(engine, [model.spec(episode) for episode in range(episodes)])
        cpu_s = time.process_time() - cpu_s
    return asdict(Driver(episodes, episodes / seconds, 1e3 * cpu_s / episodes))


@dataclass(frozen=True)
class Scale:
    """The schedule alone."""

    slots: int
    events: int
    events_per_s: float
    peak_mb: float
    """Of Python objects."""


def schedule_alone(slots: int) -> dict[str, float]:
    """Workers of 8 slots run ten episodes a slot, which end in random order; every tenth raises at its first try."""
    started = time.perf_counter()
    events = _drive_schedule(slots)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    _drive_schedule(slots)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return asdict(Scale(slots, events, events / seconds, peak_bytes / 1e6))


def _drive_schedule(slots: int) -> int:
    chance = random.Random(0)
    episodes = 10 * slots
    schedule = Schedule(max_tries=3, fault_budget=episodes)
    running: list[Start] = []
    added = events = 0

    def carry_out(actions: list[Action]) -> None:
        running.extend(action for action in actions if isinstance(action, Start))

    for worker in range(slots // 8):
        carry_out(schedule.worker_joined(worker, 8))
    failed: set[int] = set()
    while added < episodes or running:
        while added < episodes and schedule.has_room:
            carry_out(schedule.add())
            added, events = added + 1, events + 1
        chosen = chance.randrange(len(running))
        running[chosen], running[-1] = running[-1], running[chosen]
        ended = running.pop()
        if ended.index % 10 == 0 and ended.index not in failed:
            failed.add(ended.index)
            carry_out(schedule.episode_failed(ended.worker, ended.index, "raised"))
        else:
            carry_out(schedule.episode_ended(ended.worker, ended.index))
        events += 1
    return events


def metaworld(folder: Path, *, episodes: int) -> dict[str, float]:
    """Training episodes of the laptop profile with its own rollout settings, and a policy of random weights."""
    from gripline.envs.suites import env_spec
    from gripline.policies import build_policy, save_policy

    profile = profiles.load("laptop")
    specs = build_splits(profile).lists["train"]
    stride = max(len(specs) // episodes, 1)  # the list goes task by task
    specs = specs[::stride][:episodes]
    instructions = sorted({spec.instruction for spec in specs})
    policy = build_policy(profile.policy, env_spec(profile.env), instructions=instructions, seed=0)
    save_policy(folder / "policy", policy, env=profile.env, stage="sft")
    with standard_engine(profile.env, str(folder / "policy"), profile.rollout) as engine:
        _run(engine, specs[: profile.rollout.env_workers * profile.rollout.slots_per_worker])
        _run(engine, specs)
        return engine.last.metrics()

"""What Meta-World costs: control steps per second of one core, and where the time goes.

    python benchmarks/envs.py --json FILE

Each way of stepping runs whole episodes with random held actions, as rollouts do: 8 control steps and then one picture
of 64 pixels. CPU time is this process's own, so that other work on the machine does not count; wall time is given too.
Stock stepping calls the suite's own `step` (rewards, stacked observations); both draw the same cheap picture.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.types import Env, EpisodeSpec

TASKS = ("faucet-open-v3", "faucet-close-v3", "drawer-open-v3")
TARGET_STEPS_PER_S = 1000.0


@dataclass(frozen=True)
class Row:
    """One way of running episodes. Rates are control steps per second, pictures and resets included."""

    name: str
    episodes: int
    steps: int
    steps_per_cpu_s: float
    steps_per_wall_s: float
    ms_per_reset: float
    """CPU milliseconds for a reset with its first picture."""
    ms_per_chunk: float
    """CPU milliseconds for 8 control steps and a picture."""


def episode(env: Env, spec: EpisodeSpec) -> tuple[int, int, float]:
    """(control steps, chunks, CPU seconds of the reset) of one episode with random actions."""
    rng = np.random.default_rng(spec.noise_seed)
    started = time.process_time()
    env.reset(spec)
    reset_s = time.process_time() - started
    steps = chunks = 0
    while True:
        step = env.step(rng.uniform(-1, 1, (1, env.spec.action_dim)).astype(np.float32))
        steps, chunks = steps + step.num_steps, chunks + 1
        if step.success or step.truncated:
            return steps, chunks, reset_s


def measure(name: str, *, lean: bool, group_size: int, seconds: float) -> Row:
    """Run episodes for about so many CPU seconds; `group_size` of them start from one initial state."""
    env = make_env(EnvConfig(tasks=TASKS, lean=lean))
    for task in TASKS:
        episode(env, EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=0, split="train"))
    episodes = steps = chunks = 0
    reset_s = 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < seconds:
        state, member = divmod(episodes, group_size)
        spec = EpisodeSpec(
            suite="metaworld",
            task=TASKS[state % len(TASKS)],
            instruction="",
            init_seed=1000 + state,
            split="train",
            member=member,
            noise_seed=episodes,
        )
        counts = episode(env, spec)
        episodes, steps, chunks = episodes + 1, steps + counts[0], chunks + counts[1]
        reset_s += counts[2]
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    env.close()
    return Row(
        name=name,
        episodes=episodes,
        steps=steps,
        steps_per_cpu_s=steps / cpu_s,
        steps_per_wall_s=steps / wall_s,
        ms_per_reset=1e3 * reset_s / episodes,
        ms_per_chunk=1e3 * (cpu_s - reset_s) / chunks,
    )


class Blind:
    """In place of the observer: looks at nothing."""

    def begin(self) -> None:
        pass

    def note(self) -> None:
        pass

    def outcome(self, *, success: bool) -> None:
        pass


def watching_share(seconds: float) -> float:
    """What watching adds to the CPU time of episodes: the same ones, watched and unwatched in turns, in one process."""
    env: Any = make_env(EnvConfig(tasks=TASKS))
    shares = []
    started, number = time.process_time(), 0
    while time.process_time() - started < seconds or len(shares) < len(TASKS):
        task = TASKS[number % len(TASKS)]
        spec = EpisodeSpec(
            suite="metaworld", task=task, instruction="", init_seed=2000 + number, split="train", noise_seed=number
        )
        env.reset(spec)  # builds the simulator, and makes the initial state known
        simulator, spent_s = env._simulator, {True: 0.0, False: 0.0}
        observer = simulator.observer
        for watched in (True, False, False, True) * 2:
            simulator.observer = observer if watched else Blind()
            before = time.process_time()
            episode(env, spec)
            spent_s[watched] += time.process_time() - before
        simulator.observer = observer
        shares.append(spent_s[True] / spent_s[False] - 1)
        number += 1
    env.close()
    return float(np.median(shares))


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds for each row")
    arguments = parser.parse_args()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        measure("lean, groups of 8", lean=True, group_size=8, seconds=arguments.seconds),
        measure("lean, no groups", lean=True, group_size=1, seconds=arguments.seconds),
        measure("stock, groups of 8", lean=False, group_size=8, seconds=arguments.seconds),
    ]
    print(f"{'':20}{'steps/s CPU':>12}{'steps/s wall':>13}{'ms/reset':>10}{'ms/chunk':>10}{'episodes':>10}")
    for row in rows:
        rates = (
            f"{row.steps_per_cpu_s:12,.0f}{row.steps_per_wall_s:13,.0f}{row.ms_per_reset:10.2f}{row.ms_per_chunk:10.2f}"
        )
        print(f"{row.name:20}{rates}{row.episodes:10}")
    reached = "reached" if rows[0].steps_per_cpu_s >= TARGET_STEPS_PER_S else "missed"
    watching = watching_share(arguments.seconds)
    print(f"typing failures and measuring conduct: {watching:+.1%} CPU time")
    print(f"target {TARGET_STEPS_PER_S:,.0f} steps/s per core: {reached}")
    body = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "target_steps_per_cpu_s": TARGET_STEPS_PER_S,
        "rows": [asdict(row) for row in rows],
        "watching_share": watching,
    }
    arguments.json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

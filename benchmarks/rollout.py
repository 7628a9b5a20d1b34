"""How fast are episodes run, against what is possible and against lock-step and two-stage schedules?

    python benchmarks/rollout.py --json FILE [--case NAME …] [--quick] [--scale]

Simulators and policy are cost models that sleep; everything else is the real engine on Ray. Efficiency is the lower
bound on the makespan (bounds.py says why it is one) over the measured seconds. `simulated` is the same ratio for a
simulation of simple first-come batching in which nothing costs time but the drawn costs: what is lost beyond that is
the engine's own. Cases:

constant      every slot's simulator takes 0.08 s for a chunk, on a core of its own; no episode succeeds
proportional  a worker's simulators share one core: 0.01 s for each slot and chunk, 0.2 s of it for each reset
success       like constant, but half of the episodes succeed, after a number of chunks that is uniform
jitter        like success, and each chunk's cost is log-normal (sigma 0.5, the same mean)
images        like constant, with observations of 256 pixels
slow_resets   like success, with resets of 2 s
transport     what a chunk costs beyond its sleeps, with one slot and with eight slots on one worker
calls         what one question and its answer cost, as a Ray call and over TCP
metaworld     real simulators: the laptop profile's environment, with a small policy of random weights
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bounds import bounds
from calls import calls
from cost_model import CostModel
from engine_runs import driver, metaworld, rollout_config, run_engine, schedule_alone, transport
from references import Measured, Reference
from rich.console import Console
from rich.table import Table
from simulation import best_first_come_s
from verdicts import Verdict, at_least, at_most, machine, show_verdicts

from gripline import profiles
from gripline.atomic import write_whole
from gripline.config import RolloutConfig
from gripline.rollout.cluster import ray_cluster

CASES = (
    CostModel("constant"),
    CostModel("proportional", chunk_s=0.01, serial=True),
    CostModel("success", success_rate=0.5),
    CostModel("jitter", success_rate=0.5, jitter_sigma=0.5),
    CostModel("images", image_size_px=256),
    CostModel("slow_resets", success_rate=0.5, reset_s=2.0),
)
OTHERS = ("transport", "calls", "metaworld")
QUICK_CASES = ("constant", "proportional", "jitter", "transport")
QUICK = {"env_workers": 2, "slots_per_worker": 4, "spare_slots": 1, "episodes": 16, "horizon_chunks": 4}
OVERRIDES = {
    "env_workers": (int, "env workers"),
    "slots_per_worker": (int, "slots of each"),
    "spare_slots": (int, "spare slots of each"),
    "episodes": (int, "episodes in all"),
    "horizon_chunks": (int, "chunks until the horizon"),
    "success_rate": (float, "share of episodes that succeed"),
    "reset_s": (float, "seconds of a reset"),
    "seed": (int, "of the drawn costs"),
}
TABLE_WIDTH = 130
TARGETS = {"constant": 0.95, "proportional": 0.95, "success": 0.95, "images": 0.95, "jitter": 0.90}
"""Efficiency to reach."""


@dataclass(frozen=True)
class Row:
    """One engine on one case."""

    case: str
    engine: str
    useful_steps_per_s: float
    """Control steps of episodes up to success."""
    efficiency: float
    env_busy: float
    """Seconds that simulators step (where they share a core: or reset) over those they could; dead steps included."""
    policy_busy: float
    dead_steps: int
    """Control steps after success."""
    seconds: float
    bound_s: float
    simulated_s: float
    """Of a simulated schedule without overhead; its efficiency is bound_s over this."""
    episodes: int


def run_reference(model: CostModel, stages: int) -> Measured:
    """A case on one of the reference schedules."""
    reference = Reference(model, stages=stages)
    try:
        return reference.run()
    finally:
        reference.close()


ENGINES: dict[str, Callable[[CostModel], Measured]] = {
    "gripline": run_engine,
    "lockstep": partial(run_reference, stages=1),
    "two_stage": partial(run_reference, stages=2),
}


def row(model: CostModel, engine: str, measured: Measured, simulated_s: float) -> Row:
    """What is reported of one run."""
    busy_s = measured.step_s + (model.episodes * model.reset_s if model.serial else 0.0)
    bound_s = bounds(model).makespan_s
    return Row(
        case=model.name,
        engine=engine,
        useful_steps_per_s=model.num_chunks * model.steps_per_chunk / measured.seconds,
        efficiency=bound_s / measured.seconds,
        env_busy=busy_s / (measured.seconds * model.capacity),
        policy_busy=measured.policy_busy_s / (measured.seconds * model.policy_replicas),
        dead_steps=measured.dead_steps,
        seconds=measured.seconds,
        bound_s=bound_s,
        simulated_s=simulated_s,
        episodes=model.episodes,
    )


def verdicts(rows: list[Row], extra: dict[str, Any]) -> list[Verdict]:
    """The targets of what was measured."""
    found = {(each.case, each.engine): each for each in rows}
    out = []
    for case, target in TARGETS.items():
        if (case, "gripline") in found:
            out.append(at_least("efficiency", target, {case: found[case, "gripline"].efficiency}))
    if all(("jitter", engine) in found for engine in ENGINES):
        rates = {engine: found["jitter", engine].useful_steps_per_s for engine in ENGINES}
        times = {other: rates["gripline"] / rates[other] for other in ("lockstep", "two_stage")}
        out.append(at_least("useful steps/s with jitter, times the better reference", 1.5, times))
        out.append(at_least("useful steps/s with jitter, times lock-step", 1.8, {"lockstep": times["lockstep"]}))
    if rows:
        dead_steps = {each.case: float(each.dead_steps) for each in rows if each.engine == "gripline"}
        out.append(at_most("steps after success", 0, dead_steps))
    if "transport" in extra:
        measured = {f"{each['slots_per_worker']:g} slots": each["ms_per_chunk"] for each in extra["transport"]}
        out.append(at_most("transport, ms a chunk", 3, measured))
    if "driver" in extra:
        rows_per_cpu_s = {"1,000 slots with episodes of 4 s": 1e3 / extra["driver"]["driver_cpu_ms_per_row"]}
        out.append(at_least("driver, episodes per CPU second", 250, rows_per_cpu_s))
    return out


def show(console: Console, rows: list[Row], extra: dict[str, Any], judged: list[Verdict]) -> None:
    """Print everything."""
    table = Table(title="rollouts of cost models")
    names = ("case", "engine", "useful steps/s", "seconds", "bound s", "efficiency", "simulated")
    for name in (*names, "env busy", "policy busy", "dead steps"):
        table.add_column(name, justify="left" if name in ("case", "engine") else "right")
    for each in rows:
        cells = [f"{each.useful_steps_per_s:,.0f}", f"{each.seconds:.2f}", f"{each.bound_s:.2f}"]
        cells += [f"{each.efficiency:.3f}", f"{each.bound_s / each.simulated_s:.3f}"]
        cells += [f"{each.env_busy:.2f}", f"{each.policy_busy:.2f}", f"{each.dead_steps:,}"]
        table.add_row(each.case, each.engine, *cells, end_section=each.engine == list(ENGINES)[-1])
    if rows:
        console.print(table)
    for name, values in extra.items():
        for line in values if isinstance(values, list) else [values]:
            shown = ", ".join(
                f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
            )
            console.print(f"{name}: {shown}")
    show_verdicts(console, judged)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(case.name for case in CASES), *OTHERS]
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--case", nargs="+", choices=names, metavar="NAME", help="default: all")
    parser.add_argument("--engine", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; figures say nothing")
    parser.add_argument("--scale", action="store_true", help="also the schedule with 10,000 slots, and the driver")
    for name, (kind, text) in OVERRIDES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{text}; default: the case's own")
    return parser.parse_args()


def chosen(arguments: argparse.Namespace) -> tuple[list[CostModel], list[str]]:
    """The cost models to run, in their final sizes, and the other cases."""
    names = arguments.case or (QUICK_CASES if arguments.quick else [*(case.name for case in CASES), *OTHERS])
    changes = {name: vars(arguments)[name] for name in OVERRIDES if vars(arguments)[name] is not None}
    models = [replace(case, **changes) for case in CASES if case.name in names]
    if arguments.quick:
        models = [replace(model, **QUICK) for model in models]
    return models, [name for name in OTHERS if name in names]


def cluster_config(models: list[CostModel]) -> RolloutConfig:
    """Room on the Ray cluster for the largest case."""
    configs = [rollout_config(model) for model in models] + [profiles.load("laptop").rollout]
    largest = RolloutConfig(
        env_workers=max(config.env_workers for config in configs),
        policy_replicas=max(config.policy_replicas for config in configs),
    )
    return largest


def run_cases(console: Console, models: list[CostModel], engines: list[str]) -> list[Row]:
    """Every case on every engine."""
    rows = []
    for model in models:
        simulated_s = best_first_come_s(model)
        for engine in engines:
            rows.append(row(model, engine, ENGINES[engine](model), simulated_s))
            console.print(f"{model.name}, {engine}: {rows[-1].seconds:.1f} s", highlight=False)
    return rows


def run_others(names: list[str], *, quick: bool, scale: bool) -> dict[str, Any]:
    """What is not a case of cost models."""
    out: dict[str, Any] = {}
    if "transport" in names:
        out["transport"] = transport(chunks=16 if quick else 256)
    if "calls" in names:
        out["calls"] = calls(count=20 if quick else 500)
    if "metaworld" in names:
        with tempfile.TemporaryDirectory() as folder:
            out["metaworld"] = metaworld(Path(folder), episodes=8 if quick else 256)
    if scale:
        out["schedule"] = [schedule_alone(slots) for slots in ((80, 800) if quick else (1000, 10_000))]
        out["driver"] = driver(episodes=100 if quick else 5000)
    return out


def main() -> None:
    """Measure, print a table and verdicts, write the JSON file."""
    arguments = parse()
    models, others = chosen(arguments)
    console = Console(width=TABLE_WIDTH)
    with ray_cluster(cluster_config(models)):
        rows = run_cases(console, models, arguments.engine)
        extra = run_others(others, quick=arguments.quick, scale=arguments.scale)
    judged = verdicts(rows, extra)
    show(console, rows, extra, judged)
    body = {
        "machine": machine(),
        "quick": arguments.quick,
        "cases": [asdict(model) | asdict(bounds(model)) for model in models],
        "rows": [asdict(each) for each in rows],
        "targets": [asdict(verdict) for verdict in judged],
    }
    write_whole(arguments.json, json.dumps(body | extra, indent=1) + "\n")


if __name__ == "__main__":
    main()

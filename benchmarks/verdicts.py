"""What the benchmarks share: targets with the worst that was measured for each, and the machine that they ran on."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console


@dataclass(frozen=True)
class Verdict:
    """One target, and the worst that was measured for it."""

    name: str
    relation: str
    """'≥', '≤' or '<'."""
    limit: float
    measured: float
    where: str
    """Where the worst was measured: a seed, an axis."""
    reached: bool


def at_least(name: str, limit: float, measured: dict[str, float]) -> Verdict:
    """measured: by where. The smallest counts."""
    where = min(measured, key=lambda key: measured[key])
    return Verdict(name, "≥", limit, measured[where], where, measured[where] >= limit)


def at_most(name: str, limit: float, measured: dict[str, float], relation: str = "≤") -> Verdict:
    """measured: by where. The largest counts."""
    where = max(measured, key=lambda key: measured[key])
    reached = measured[where] < limit or (relation == "≤" and measured[where] == limit)
    return Verdict(name, relation, limit, measured[where], where, reached)


def show_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """One line each."""
    for verdict in verdicts:
        said = "reached" if verdict.reached else "MISSED "
        target = f"{verdict.name} {verdict.relation} {verdict.limit:g}"
        console.print(f"{said}  {target}: {verdict.measured:.3g} ({verdict.where})", highlight=False, soft_wrap=True)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.machine(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }

"""Launchers that are killed at random times, with one of the three safety nets and without the others."""

import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.site import Site

KFP_LEAVES_S = 0.5
"""Between SIGTERM and SIGKILL, the shorter of what was measured on Kubeflow Pipelines."""
ORPHAN_AFTER_S = 8.0
OFF_S = 100_000.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Net:
    """One safety net, and the profile's `cluster` fields with which it works alone."""

    limit_s: float
    """After the kill nothing may run any longer than this, plus the allowance."""
    allowance_s: float
    """For noticing, for the checkpoint, and for the operator to remove what has ended."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    gently: bool = False
    """SIGTERM first."""


NETS = {
    "clean-up": Net(ORPHAN_AFTER_S, 0.0, {"orphan_after_s": OFF_S}, gently=True),
    "heartbeat": Net(ORPHAN_AFTER_S, 8.0, {"orphan_after_s": ORPHAN_AFTER_S}),
    "deadline": Net(60.0, 8.0, {"orphan_after_s": OFF_S, "start_timeout_s": 30, "attempt_timeout_s": 60}),
}


@dataclass(frozen=True)
class Killed:
    """One kill, and what became of the job."""

    killed_after_s: float
    """Since the launcher's process was started."""
    had_rayjob: bool
    had_driver: bool
    clean_after_s: float
    """From the kill until nothing ran any more."""
    orphan: bool
    left: tuple[str, ...] = ()


def kill_many(site: Site, net: Net, kills: int, parallel: int, seed: int) -> list[Killed]:
    """Kill times are uniform over the first seconds: imports, creation, scheduling, the driver's start, its run."""
    draw = random.Random(seed)
    times_s = [draw.uniform(0.2, 8.0) for _ in range(kills)]
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda job: _kill_one(site, net, *job), enumerate(times_s)))


def _kill_one(site: Site, net: Net, index: int, after_s: float) -> Killed:
    step = site.launch([["wait", 10 * OFF_S]], name=f"kill-{index:03d}", cluster=net.cluster)
    time.sleep(max(0.0, step.started_s + after_s - time.time()))
    had_rayjob = site.rayjob(step) is not None
    had_driver = step.attempts() > 0
    killed_s = time.time()
    if net.gently:
        step.terminate(then_kill_after_s=KFP_LEAVES_S)
    else:
        step.kill()
    seen_s, left = killed_s, site.running(step)
    while time.time() < killed_s + net.limit_s + net.allowance_s:
        left = site.running(step)
        seen_s = time.time() if left else seen_s
        if time.time() - max(seen_s, killed_s) > ORPHAN_AFTER_S:
            break  # it has been quiet for long enough
        time.sleep(LOOK_EVERY_S)
    return Killed(after_s, had_rayjob, had_driver, seen_s - killed_s, bool(left), tuple(left))

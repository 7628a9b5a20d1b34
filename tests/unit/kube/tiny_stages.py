"""Stages that do what a test of the driver needs. `folder` is where they leave what they did."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from gripline import stopping
from gripline.errors import UserError
from gripline.object_store import StoreOutageError
from gripline.store import RunStore


def succeed(*, folder: str, word: str, words_path: str, results_path: str) -> dict[str, Any]:
    """Appends a word to those it got."""
    names = ("GRIPLINE_TAGS", "GRIPLINE_RAY_SHARES")
    (Path(folder) / "environment.json").write_text(json.dumps({name: os.environ[name] for name in names}))
    Path(results_path).write_text(Path(words_path).read_text() + word)
    return {"uri": "memory://x", "steps": 3, "success": 0.5}


def refuse(*, folder: str) -> None:
    note(folder, "refuse")
    raise UserError("rl", "rl.lr", "is too large", "lower it")


def crash(*, folder: str) -> None:
    note(folder, "crash")
    raise ZeroDivisionError("a defect")


def lose_the_store(*, folder: str) -> None:
    raise StoreOutageError("s3://b/x", "", "does not answer", "later")


def count(*, folder: str, until: str) -> dict[str, Any]:
    """Counts, a step every 20 ms, continuing where an earlier attempt wrote its last checkpoint."""
    state = Path(folder) / "state"
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, int(until)):
        note(folder, f"step {step}")
        time.sleep(0.02)
        if stopping.requested() or step % 10 == 9:
            state.write_text(str(step + 1))
            stopping.check()
    return {"steps": int(until), "first": first}


def hang(*, folder: str) -> None:
    """Reaches no boundary."""
    try:
        note(folder, "hang")
        threading.Event().wait()
    finally:
        note(folder, "unwound")


def hang_stubbornly(*, folder: str) -> None:
    """Nor does it end."""
    note(folder, "hang")
    while True:
        try:
            threading.Event().wait()
        except BaseException:  # noqa: BLE001  as a library might
            note(folder, "interrupted")


def push_on_demand(*, folder: str, run_dir: str) -> None:
    """Writes a checkpoint when it is told to."""
    note(folder, "waits")
    while not (Path(folder) / "push").exists():
        time.sleep(0.02)
    store = RunStore(run_dir)
    with store.new_folder("rl/state/1") as (new, _):
        (new / "state.json").write_text("{}")
    note(folder, "pushed")


def count_machines(*, folder: str) -> dict[str, Any]:
    """On the Ray cluster that the driver is part of."""
    import ray

    from gripline.config import RolloutConfig
    from gripline.rollout.cluster import ray_cluster

    with ray_cluster(RolloutConfig(env_workers=2), learners=1):
        return {"machines": len(ray.nodes()), "env": ray.cluster_resources()["env"]}


def note(folder: str, text: str) -> None:
    with open(Path(folder) / "notes", "a") as notes:
        notes.write(text + "\n")

"""Rollouts on a Ray cluster of several machines that come and go, in a process of its own: `machines.py SCENARIO DIR`.

Each machine is a raylet of its own on this one, with the custom resources of a worker group's pod.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster
from rollout.fakes import FakePolicy, FaultyToy, episodes

from gripline import stopping
from gripline.config import EnvConfig, RolloutConfig
from gripline.errors import UserError
from gripline.rollout import fleet
from gripline.rollout.cluster import ray_cluster, simulators_run_here
from gripline.rollout.engine import Finished, RolloutEngine
from gripline.rollout.messages import Decoding
from gripline.rollout.shares import VARIABLE, Shares

LARGE = EnvConfig(suite="toy", tasks=("toy-red", "toy-blue"), image_size_px=128, hold_steps=4, horizon_steps=32)
"""Trajectories of 400 KB, which lie in the memory of the machine that made them; small ones travel at once."""
CONFIG = RolloutConfig(env_workers=4, slots_per_worker=2, spare_slots=1, policy_timeout_s=10.0)
SAMPLED = Decoding(greedy=False, keep_trajectory=True)
COUNT = 24
MEMORY = 100 * 2**20


class Machines:
    """A head without resources of its own, and what is added."""

    def __init__(self, *, head: dict[str, float] | None = None) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "resources": head or {}, "object_store_memory": MEMORY},
        )
        os.environ["RAY_ADDRESS"] = self._cluster.address

    def add(self, **resources: float) -> Any:
        return self._cluster.add_node(num_cpus=1, resources=resources, object_store_memory=MEMORY)

    def kill(self, machine: Any) -> None:
        """Nothing that ran on it is left: on a busy machine its actors notice late, and answer until then."""
        (raylet,) = machine.all_processes["raylet"]
        actors = psutil.Process(raylet.process.pid).children(recursive=True)
        self._cluster.remove_node(machine, allow_graceful=False)
        for actor in actors:
            with suppress(psutil.NoSuchProcess):
                actor.kill()
        until(lambda: not any(map(is_alive, actors)), partial(time.sleep, 0.05))


def start(folder: Path, config: RolloutConfig = CONFIG, pace_s: float = 0.03) -> RolloutEngine:
    return RolloutEngine(
        partial(LargeToy, str(folder), pace_s), partial(FakePolicy, str(folder)), config, warm_up=episodes(1)
    )


class LargeToy(FaultyToy):
    def __init__(self, folder: str, pace_s: float) -> None:
        super().__init__(folder, pace_s)
        from gripline.envs.toy import ToyEnv

        ToyEnv.__init__(self, LARGE)


def roll_out(engine: RolloutEngine, disturb: Callable[[], None] | None = None, count: int = COUNT) -> list[Finished]:
    """In order; `disturb` is called after the fourth."""
    finished = []
    for episode in engine.run(episodes(count), SAMPLED):
        assert not episode.record.error, episode.record.error
        finished.append(episode)
        if len(finished) == 4 and disturb is not None:
            disturb()
    return sorted(finished, key=lambda episode: episode.index)


def tokens(finished: Iterable[Finished]) -> list[bytes]:
    """What was done, fetched to this process."""
    return [ray.get(episode.trajectory, timeout=60).tokens_TKA.tobytes() for episode in finished]


def is_alive(process: psutil.Process) -> bool:
    """One that ended may remain as a zombie until some init process looks after it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], act: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        act()


def env_pods(folder: Path) -> None:
    """Short of pods at the start; one comes later; one is lost; its replacement comes."""
    machines = Machines(head={"policy": 1})
    first = machines.add(env=2)
    with ray_cluster(CONFIG):
        assert not simulators_run_here()
        with start(folder) as engine:
            assert 0 < len(engine._fleet.ready_workers) <= 2, "it begins with those that are there"
            until(lambda: len(engine._fleet.ready_workers) == 2, lambda: roll_out(engine, count=4))  # one may be slow
            calm = tokens(roll_out(engine))
            machines.add(env=2)
            until(lambda: len(engine._fleet.ready_workers) == 4, lambda: roll_out(engine, count=4))
            assert engine.last.faults == 0

            finished = roll_out(engine, disturb=lambda: machines.kill(first))
            assert (engine.last.faults, engine.last.metrics()["rollout/faults"]) == (1, 1), "two workers, one fault"
            assert engine.last.retries >= 1 and len(engine._fleet.ready_workers) == 2
            lost = engine.without_trajectory(finished)
            assert 0 < len(lost) < COUNT
            again = sorted(engine.run([each.record.spec for each in lost], SAMPLED), key=lambda each: each.index)
            assert engine.last.faults == 0, "two workers that wait for a machine are no new faults"
            for one, other in zip(lost, again, strict=True):
                assert one.record.success == other.record.success
                finished[one.index] = other
            assert engine.without_trajectory(finished) == []
            assert tokens(finished) == calm

            machines.add(env=2)
            until(lambda: len(engine._fleet.ready_workers) == 4, lambda: roll_out(engine, count=4))
            assert tokens(roll_out(engine)) == calm and engine.last.faults == 0


def policy_pods(folder: Path) -> None:
    """One of two is lost; weights are set without it; its replacement acts with the newest ones."""
    machines = Machines(head={"env": 2})
    machines.add(policy=1)
    config = CONFIG.model_copy(update={"env_workers": 2, "policy_replicas": 2})
    second = machines.add(policy=1)
    with ray_cluster(config), start(folder, config) as engine:
        assert simulators_run_here()
        calm = tokens(roll_out(engine))
        assert tokens(roll_out(engine, disturb=lambda: machines.kill(second))) == calm
        assert engine.last.faults == 1
        began_s = time.monotonic()
        engine.set_weights({"gain": np.array(0.5)})
        assert time.monotonic() - began_s < 5, "nobody waits for a server without a machine"
        changed = tokens(roll_out(engine))
        assert changed != calm and engine.last.faults == 0
        third = machines.add(policy=1)
        until(lambda: len(engine._fleet._ready_replicas()) == 2, lambda: roll_out(engine, count=4))
        for _ in range(2):
            assert tokens(roll_out(engine)) == changed and engine.last.faults == 0
        machines.kill(third)  # between two rollouts
        assert tokens(roll_out(engine)) == changed and engine.last.faults == 1


@ray.remote(num_cpus=0, resources={"learner": 1})
class Learner:
    def weights(self) -> dict[str, np.ndarray]:
        return {"gain": np.array(0.5), "padding": np.zeros(10**6)}


def weights_that_are_gone(folder: Path) -> None:
    """They lay with the learner in the only policy pod. A new policy server cannot have them, however often."""
    machines = Machines(head={"env": 2})
    pod = machines.add(policy=1, learner=1)
    config = CONFIG.model_copy(update={"env_workers": 2})
    with ray_cluster(config, learners=1), start(folder, config) as engine:
        learner = Learner.remote()
        engine.set_weights(learner.weights.remote())
        roll_out(engine)
        machines.kill(pod)
        machines.add(policy=1)
        try:
            roll_out(engine)
        except ray.exceptions.ObjectLostError:
            return
        raise AssertionError("nothing was raised")


def nobody_left(folder: Path) -> None:
    """The only env pod is lost and does not come back: one line, not a wait for ever."""
    machines = Machines(head={"policy": 1})
    only = machines.add(env=2)
    config = CONFIG.model_copy(update={"reset_timeout_s": 8.0})  # which counts into the time to wait
    with ray_cluster(config), start(folder, config) as engine:
        try:
            roll_out(engine, disturb=lambda: machines.kill(only))
        except UserError as error:
            assert "no env worker got ready for" in error.line, error.line
        else:
            raise AssertionError("nothing was raised")
        stopping.request("no launcher")
        began_s = time.monotonic()
        try:
            roll_out(engine)
        except stopping.StopRequestedError:
            assert time.monotonic() - began_s < 10
        else:
            raise AssertionError("it did not stop")


def late_pods(folder: Path) -> None:
    """The driver is there before any policy pod: it waits for one, and says so if none comes."""
    machines = Machines()
    machines.add(env=2)
    began_s = time.monotonic()
    try:
        with ray_cluster(CONFIG):
            raise AssertionError("it has no policy pod")
    except UserError as error:
        assert "has only 0 of 1 'policy'; " in error.line, error.line
    assert time.monotonic() - began_s >= 9
    os.environ[VARIABLE] = Shares(nodes_timeout_s=60.0).model_dump_json()
    with joining_later(policy=1), ray_cluster(CONFIG), start(folder) as engine:
        roll_out(engine)


@contextmanager
def joining_later(**resources: float) -> Iterator[None]:
    """A machine that needs some seconds to come."""
    command = ["ray", "start", "--address", os.environ["RAY_ADDRESS"], "--num-cpus", "1", "--block"]
    command += ["--resources", json.dumps(resources), "--object-store-memory", str(MEMORY)]
    started = subprocess.Popen([str(Path(sys.executable).parent / command[0]), *command[1:]], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        started.terminate()
        started.wait()


SCENARIOS = {each.__name__: each for each in (env_pods, policy_pods, weights_that_are_gone, nobody_left, late_pods)}


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ[VARIABLE] = Shares(nodes_timeout_s=9.0).model_dump_json()
    fleet.GATHER_S, fleet.START_TIMEOUT_S = 1.0, 9.0
    if name in ("env_pods", "policy_pods", "weights_that_are_gone"):
        fleet.START_TIMEOUT_S = 60.0
    SCENARIOS[name](folder)
    print("fine")

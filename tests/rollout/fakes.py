"""A toy world whose episodes go wrong as their spec says, and a policy without a network. Both leave their pid."""

import os
import signal
import time
import uuid
from pathlib import Path

import numpy as np

from gripline.config import EnvConfig
from gripline.envs.toy import ToyEnv
from gripline.types import ActionBatch, EpisodeSpec

ENV = EnvConfig(
    suite="toy", tasks=("toy-red", "toy-blue"), image_size_px=16, hold_steps=4, horizon_steps=32, renderer="auto"
)
HANG_S = 1000.0


def episodes(count: int, faults: dict[int, str] | None = None) -> list[EpisodeSpec]:
    """faults: what goes wrong in which of them: 'raise', 'hang' or 'kill', 'in-reset' or 'in-step', 'once' or 'always'.

    It is written into the spec's axis, which no observation depends on.
    """
    specs = []
    for index in range(count):
        fault = f"{faults[index]} {uuid.uuid4().hex}" if faults and index in faults else "iid"
        specs.append(
            EpisodeSpec(
                suite="toy",
                task=ENV.tasks[index % 2],
                instruction="touch it",
                init_seed=index,
                split="train",
                axis=fault,
                noise_seed=100 + index,
            )
        )
    return specs


class FaultyToy(ToyEnv):
    def __init__(self, folder: str, pace_s: float = 0.03, reset_s: float = 0.0) -> None:
        super().__init__(ENV)
        self._folder, self._pace_s, self._reset_s = Path(folder), pace_s, reset_s
        leave_pid(self._folder, "worker")

    def reset(self, spec):
        self._go_wrong(spec, "in-reset")
        time.sleep(self._reset_s)
        return super().reset(spec)

    def step(self, actions_KA):
        self._go_wrong(self._episode, "in-step")
        time.sleep(self._pace_s)
        return super().step(actions_KA)

    def _go_wrong(self, spec, place):
        if place not in spec.axis:
            return
        kind, _, times, nonce = spec.axis.split()
        if times == "once":
            try:
                os.close(os.open(self._folder / nonce, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(HANG_S)
        raise ValueError(f"{kind} in episode {spec.init_seed}")


class FakePolicy:
    """Random actions from the noise key alone; greedily, a direction that depends on the proprioception."""

    num_actions, action_dim, batch_sizes = 1, 2, (1, 2, 4, 8, 16, 32)

    def __init__(self, folder: str, busy_s: float = 0.002) -> None:
        self._busy_s, self._gain = busy_s, 1.0
        leave_pid(Path(folder), "policy")

    def act(self, observations, *, noise_keys, temperature):
        time.sleep(self._busy_s)
        if any("fail" in observation.instruction for observation in observations):
            raise ValueError("this policy cannot read that")
        if noise_keys is None:
            rows = [np.cos(self._gain * np.arange(1, 3) * (1 + observation.proprio_P)) for observation in observations]
        else:
            rows = [self._gain * np.random.default_rng(key).uniform(-1, 1, 2) for key in noise_keys]
        actions_BKA = np.array(rows, np.float32)[:, None]
        return ActionBatch((actions_BKA * 100).astype(np.int64), actions_BKA, np.zeros(actions_BKA.shape))

    def load_weights(self, weights):
        self._gain = float(weights["gain"])


def cannot_load(folder: str) -> FakePolicy:
    raise ValueError("no such checkpoint")


def leave_pid(folder: Path, kind: str) -> None:
    (folder / f"{kind}-{os.getpid()}").touch()


def living(folder: Path, kind: str) -> list[int]:
    """Process ids, in the order of their start."""
    paths = sorted(folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime_ns)
    pids = [int(path.name.partition("-")[2]) for path in paths]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

"""What a rollout cost, for metrics and the console."""

from dataclasses import dataclass, fields


@dataclass
class RolloutStats:
    """What one rollout cost. Busy shares are over wall time and all workers."""

    wall_s: float = 0.0
    episodes: int = 0
    env_steps: int = 0
    reset_s: float = 0.0
    step_s: float = 0.0
    retries: int = 0
    policy_busy_s: float = 0.0
    tail_s: float = 0.0
    """From when the last episode was handed out to when the last one ended."""

    @classmethod
    def total(cls, parts: "list[RolloutStats]") -> "RolloutStats":
        """Several rollouts as one."""
        return cls(*(sum(getattr(part, field.name) for part in parts) for field in fields(cls)))

    def metrics(self, num_workers: int) -> dict[str, float]:
        """For the tracker: shares, rates and counts."""
        wall_s = max(self.wall_s, 1e-9)
        return {
            "rollout/seconds": self.wall_s,
            "rollout/episodes": float(self.episodes),
            "rollout/env_steps": float(self.env_steps),
            "rollout/env_steps_per_s": self.env_steps / wall_s,
            "rollout/env_busy": (self.step_s + self.reset_s) / (wall_s * num_workers),
            "rollout/policy_busy": self.policy_busy_s / wall_s,
            "rollout/tail_s": self.tail_s,
            "rollout/retries": float(self.retries),
        }

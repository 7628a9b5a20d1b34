"""What a rollout cost, for metrics and the console."""

from dataclasses import dataclass, fields


@dataclass
class RolloutStats:
    """What one rollout cost, or several together (`total`)."""

    wall_s: float = 0.0
    env_capacity_s: float = 0.0
    """Wall time × env workers × simulators that each of them can run at the same time."""
    policy_capacity_s: float = 0.0
    """Wall time × policy replicas."""
    episodes: int = 0
    """Those that ran to their end; cancelled ones and infrastructure errors are not among them."""
    env_steps: int = 0
    """Control steps of these episodes."""
    dead_steps: int = 0
    """Control steps of episodes that were cancelled. After success there are none: an episode ends with it."""
    resets: int = 0
    reset_s: float = 0.0
    step_s: float = 0.0
    cancelled: int = 0
    retries: int = 0
    """Episodes that were put back into the line after a fault."""
    faults: int = 0
    """Workers and policy servers lost, simulators that raised."""
    policy_busy_s: float = 0.0
    policy_batches: int = 0
    policy_rows: int = 0
    queue_rows: int = 0
    """Observations that waited at a policy server when a batch was formed, summed over batches."""
    queue_max: int = 0
    tail_s: float = 0.0
    """From when the last episode was handed out to when the last one ended."""

    @classmethod
    def total(cls, parts: "list[RolloutStats]") -> "RolloutStats":
        """Several rollouts as one."""
        summed = cls(*(sum(getattr(part, field.name) for part in parts) for field in fields(cls)))
        summed.queue_max = max((part.queue_max for part in parts), default=0)
        return summed

    def metrics(self) -> dict[str, float]:
        """For the tracker: shares, rates and counts."""
        batches = max(self.policy_batches, 1)
        return {
            "rollout/seconds": self.wall_s,
            "rollout/episodes": float(self.episodes),
            "rollout/cancelled": float(self.cancelled),
            "rollout/env_steps": float(self.env_steps),
            "rollout/useful_steps_per_s": self.env_steps / max(self.wall_s, 1e-9),
            "rollout/dead_steps": float(self.dead_steps),
            "rollout/resets": float(self.resets),
            "rollout/env_busy": (self.step_s + self.reset_s) / max(self.env_capacity_s, 1e-9),
            "rollout/policy_busy": self.policy_busy_s / max(self.policy_capacity_s, 1e-9),
            "rollout/policy_batch_rows": self.policy_rows / batches,
            "rollout/queue_depth_mean": self.queue_rows / batches,
            "rollout/queue_depth_max": float(self.queue_max),
            "rollout/tail_s": self.tail_s,
            "rollout/retries": float(self.retries),
            "rollout/faults": float(self.faults),
        }

"""What RL's guard watches for: successes that come with less safety or smoothness than the SFT policy's."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gripline.section import YAML_OFF, Section


class LimitConfig(Section):
    """Where one quantity becomes a violation; the stricter bound counts, and none means that it is not judged."""

    absolute: float | None = None
    factor: float | None = Field(default=None, gt=0)
    """Over the SFT policy's own level: of the first iteration for training, from before RL for validation."""


class GuardConfig(Section):
    """`joint_margin` must not fall below its limit, the others must not rise above theirs."""

    mode: Annotated[Literal["off", "warn", "stop", "penalise"], YAML_OFF] = "warn"
    """'warn': say so once per quantity. 'stop': end RL with a checkpoint. 'penalise': warn, and take `penalty` from the
    reward of each success that violates a limit. Figures are logged in every mode, and only 'penalise' changes what is
    learned."""
    penalty: float = Field(default=0.5, gt=0, lt=1)
    """Below 1, so that a success that violates a limit is still better than a failure."""
    joint_margin: LimitConfig = LimitConfig(factor=0.5)
    peak_joint_speed_rad_s: LimitConfig = LimitConfig(factor=2.0)
    peak_contact_force_n: LimitConfig = LimitConfig(factor=2.0)
    jerk_rms_m_s3: LimitConfig = LimitConfig(factor=2.0)

    @property
    def limits(self) -> dict[str, LimitConfig]:
        """By the name of the quantity, a field of `gripline.types.Conduct`."""
        return {
            "joint_margin": self.joint_margin,
            "peak_joint_speed_rad_s": self.peak_joint_speed_rad_s,
            "peak_contact_force_n": self.peak_contact_force_n,
            "jerk_rms_m_s3": self.jerk_rms_m_s3,
        }

    @property
    def decides(self) -> bool:
        """Whether it changes what is learned. If not, a run may be continued with another guard."""
        return self.mode == "penalise"

    @model_validator(mode="after")
    def _factors_leave_the_sft_policy_alone(self) -> Self:
        for name, limit in self.limits.items():
            if limit.factor is None:
                continue
            if (limit.factor >= 1) == (name == "joint_margin"):
                side = "below 1: less margin is worse" if name == "joint_margin" else "above 1: more is worse"
                raise ValueError(f"{name}.factor {limit.factor} must lie {side}")
        return self

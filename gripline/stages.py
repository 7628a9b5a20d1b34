"""What `plan` hands to each stage, as JSON texts: the run's context, and the stage's own section of the profile.

A stage gets no more than it needs: a pipeline's cache key holds every input of a step, so a changed learning rate must
not reach the step that collects demonstrations.
"""

from gripline import __version__
from gripline.config import (
    DemosConfig,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    PromoteConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
)
from gripline.section import Section
from gripline.splits_config import SplitsConfig, VariationConfig

STEP_IMAGE = f"gripline-step:{__version__}"
"""The container image of every step, unless the pipeline parameter `image` names another. Unused on a laptop."""


CONTEXT_FILE = "context.json"
"""In the run's folder: the `RunContext`, for whoever looks at the run from outside."""


class RunContext(Section):
    """Which run a stage belongs to, and where its state and its tracking go."""

    run_name: str
    run_dir: str
    """A path, or a URI that fsspec understands: `{store_uri}/{run_name}`."""
    tracking_uri: str
    experiment: str
    parent_run_id: str
    """MLflow run that every stage's run is a child of."""
    profile_name: str
    seed: int
    split_hashes: dict[str, str]


class DemosStage(Section):
    """Demonstrations. Nothing here names a run, so that equal demonstrations are collected once and cached.

    It holds what `build_splits` needs, rather than the split lists: an artifact of another step enters the cache key by
    its identity, not by its content, and `plan` makes a new one in every run.
    """

    env: EnvConfig
    splits: SplitsConfig
    variation: VariationConfig
    demos: DemosConfig
    num_actions: int
    seed: int


class SftStage(Section):
    """Supervised fine-tuning."""

    env: EnvConfig
    policy: PolicyConfig
    sft: SftConfig
    seed: int


class EvalStage(Section):
    """An evaluation of either policy."""

    env: EnvConfig
    rollout: RolloutConfig
    eval: EvalConfig
    seed: int


class RlStage(Section):
    """Reinforcement learning."""

    env: EnvConfig
    rollout: RolloutConfig
    rl: RlConfig
    seed: int


class PromoteStage(Section):
    """The gate before RL, and the report and decision at the end."""

    env: EnvConfig
    promote: PromoteConfig
    eval: EvalConfig

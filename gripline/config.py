"""Every schema of a run. A profile lists only what differs from the defaults here; unknown keys are errors.

This module imports nothing heavy: a configuration error is answered before torch, Ray or MuJoCo are touched.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gripline.cluster_config import ClusterConfig
from gripline.guard_config import GuardConfig
from gripline.section import YAML_OFF, Section
from gripline.splits_config import Range, SplitsConfig, VariationConfig, shifts

GateAction = Annotated[Literal["stop", "warn", "off"], YAML_OFF]
"""What a gate does about what it finds; 'off' does not even look."""


class EnvConfig(Section):
    suite: str = "metaworld"
    tasks: tuple[str, ...] = Field(min_length=1)
    image_size_px: int = Field(default=64, ge=16, le=1024)
    hold_steps: int = Field(default=8, ge=1, le=64)
    """Control steps for which one action is held. Averaged-out noise does not explore; held actions do."""
    horizon_steps: int = Field(default=112, ge=1)
    renderer: Literal["auto", "osmesa", "egl"] = "auto"
    lean: bool = True
    """Skip what the stock simulator computes and nobody reads; a test shows equal success, step for step."""


class TinyConfig(Section):
    """Sizes of preset 'tiny'. What each part does: `gripline.policies.architecture`."""

    tower_channels: tuple[int, ...] = Field(default=(24, 48, 64), min_length=1)
    tower_out_channels: int = Field(default=32, ge=1)
    standardise: Literal["none", "channel"] = "channel"
    mean_image: bool = True
    visual_tokens: int = Field(default=8, ge=1)
    """Per camera."""
    width: int = Field(default=96, ge=8)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    mlp_width: int = Field(default=256, ge=8)
    cosine_features: int = Field(default=16, ge=1)
    max_text_tokens: int = Field(default=12, ge=2)
    """Longest instruction in words, plus one."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice the heads {self.heads}")
        return self


class PolicyConfig(Section):
    """Which architecture; `gripline.policies` holds the presets. Used only where no checkpoint is given."""

    preset: Literal["tiny", "7b"] = "tiny"
    num_actions: int = Field(default=1, ge=1, le=64)
    """Actions in a chunk (K)."""
    use_proprio: bool = False
    tiny: TinyConfig = TinyConfig()
    """Read by preset 'tiny' only."""


class DemosConfig(Section):
    per_task: int = Field(default=2, ge=1)
    """Successful demonstrations of the scripted expert; failed attempts are discarded and counted."""
    frame_stride: int = Field(default=2, ge=1)
    """Keep every n-th control step of a demonstration."""
    views: int = Field(default=1, ge=1)
    """Renderings of each frame, each under a variation of its own."""
    held_out_per_task: int = Field(default=1, ge=1)
    """Further demonstrations kept for the held-out loss; never trained on."""
    workers: int = Field(default=2, ge=1, le=256)


class LoraConfig(Section):
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class SftConfig(Section):
    method: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    steps: int = Field(default=220, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=20, ge=0)
    label_sigma_bins: float = Field(default=12.0, ge=0)
    """Width of the Gaussian over neighbouring bins that a label is smoothed with; 0 is plain cross-entropy."""
    shift_px: int = Field(default=3, ge=0)
    """Augmentation: random image shifts of up to this many pixels."""
    brightness: Range = (0.85, 1.15)
    eval_every: int = Field(default=50, ge=1)
    """Steps between two measurements of the held-out loss."""
    threads: int = Field(default=2, ge=1)


class RolloutConfig(Section):
    """How episodes are run, in RL and in evaluation alike. None of it changes an episode, only how soon it is done."""

    env_workers: int = Field(default=2, ge=1, le=4096)
    """Processes that hold simulators; each asks Ray for one 'env'."""
    slots_per_worker: int = Field(default=8, ge=1, le=4096)
    """Episodes of one worker that act at the same time."""
    spare_slots: int = Field(default=1, ge=0, le=4096)
    """Further episodes of one worker that are reset ahead and wait with their first observation for a free slot."""
    parallel_steps: int = Field(default=1, ge=1, le=4096)
    """Simulators of one worker that run at the same time, each on a thread of its own. 1 for a simulator that keeps its
    process busy, such as MuJoCo: then no thread is involved."""
    policy_replicas: int = Field(default=1, ge=1, le=1024)
    """Policy servers; each asks Ray for one 'policy'."""
    layout: Literal["colocated", "disaggregated"] = "colocated"
    """Do policy and simulators share cores or a GPU? 'colocated': a small batch takes time from the simulators, so the
    policy waits for a worthwhile one. 'disaggregated': it serves whatever is ready the moment it is free."""
    reset_timeout_s: float = Field(default=120.0, gt=0)
    """A worker with a reset that takes longer is replaced, and its episodes are run again."""
    step_timeout_s: float = Field(default=60.0, gt=0)
    """The same for one action chunk."""
    policy_timeout_s: float = Field(default=120.0, gt=0)
    """A policy server that does not answer for so long is replaced."""
    max_tries: int = Field(default=3, ge=1, le=100)
    """After so many failures of its simulator an episode is recorded as an infrastructure error."""
    fault_budget: int = Field(default=16, ge=0)
    """Workers and policy servers lost and simulators that raised, per rollout; one more stops the run."""
    trace_every: int = Field(default=8, ge=0)
    """RL iterations between two recorded timelines; 0: none."""

    @model_validator(mode="after")
    def _threads_have_slots(self) -> Self:
        slots = self.slots_per_worker + self.spare_slots
        if self.parallel_steps > slots:
            raise ValueError(f"parallel_steps {self.parallel_steps} exceeds the {slots} slots of a worker")
        return self


class RlConfig(Section):
    method: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    iterations: int = Field(default=40, ge=1)
    groups_per_task: int = Field(default=6, ge=1)
    """Groups drawn per task and round, on average over tasks."""
    allocation: Literal["equal", "adaptive"] = "equal"
    """'adaptive': tasks whose groups were mixed lately get more of a round, those solved or out of reach get fewer."""
    min_mixed_groups: int = Field(default=6, ge=1)
    """Dynamic sampling draws further rounds until at least so many groups have mixed outcomes; all of them are used."""
    group_size: int = Field(default=8, ge=2)
    """Episodes from one initial state; their mean is the baseline, so one episode carries no signal."""
    max_rounds: int = Field(default=2, ge=1)
    """Dynamic sampling draws at most this many rounds of groups for an update."""
    surplus: Literal["train", "keep", "drop"] = "train"
    """Mixed groups beyond `min_mixed_groups`: 'train' on them too; 'keep' them for the next iterations, with the
    log-probs of the policy that acted; 'drop' them, and cancel what still runs once it certainly cannot be used."""
    max_staleness: int = Field(default=1, ge=1)
    """Updates after which a kept group is too old to learn from."""
    take: Literal["draw", "completion"] = "draw"
    """Which mixed groups are used where there are more than enough: the first drawn, whatever the schedule, or those
    complete first, which favours short episodes and is not the same on every machine."""
    overlap: bool = False
    """Roll out for the next update while the learner makes this one: the acting policy is then one update behind, which
    the recorded log-probs correct. Iterations after a validation or a checkpoint start afresh."""
    keep_success: Range = (0.1, 0.9)
    """A group is used when its success rate lies within these bounds."""
    temperature: float = Field(default=1.6, gt=0)
    normalise_std: bool = True
    loss_mean: Literal["sequence", "token"] = "sequence"
    """'sequence': mean over episodes of the mean over their tokens; 'token': every token weighs the same."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || SFT policy)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    lr: float = Field(default=3e-4, gt=0, le=1)
    lr_final_fraction: float = Field(default=0.3, gt=0, le=1)
    warmup_iterations: int = Field(default=3, ge=0)
    """Adam's first steps have full length whatever the gradient; at full rate they undo a part of SFT."""
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=2, ge=1)
    minibatch_chunks: int = Field(default=256, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    freeze_tower: bool = False
    checkpoint_every: int = Field(default=5, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    validate_every: int = Field(default=10, ge=1)
    """Iterations between greedy evaluations on the validation list; the best of them is handed on."""
    learner_threads: int = Field(default=2, ge=1)
    logprob_tolerance: float = Field(default=1e-3, gt=0)
    """Before the first update: largest allowed gap between behaviour log-probs and the learner's own."""
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        low, high = self.keep_success
        if not 0 <= low < high <= 1:
            raise ValueError(f"keep_success: low {low} and high {high} must satisfy 0 <= low < high <= 1")
        if not any(low <= successes / self.group_size <= high for successes in range(1, self.group_size)):
            raise ValueError(f"keep_success: no success rate of {self.group_size} episodes lies within {low}…{high}")
        return self


class EvalConfig(Section):
    decoding: Literal["greedy", "sampled"] = "greedy"
    """'sampled' draws actions, with noise that each episode's spec names: a rerun gives the same episodes."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampled decoding."""
    samples: int = Field(default=1, ge=1, le=1000)
    """Episodes from each listed initial state where decoding is sampled, each with noise of its own."""
    videos: int = Field(default=3, ge=0, le=20)
    """Episodes replayed for people to look at: a success and a failure of each kind first."""
    video_size_px: int = Field(default=320, ge=256, le=1024)
    indifference_threshold: float = Field(default=0.1, ge=0, le=1)
    """Success left without an input (image, text) above this share of the intact success raises a warning."""

    @model_validator(mode="after")
    def _greedy_episodes_are_all_the_same(self) -> Self:
        if self.decoding == "greedy" and self.samples > 1:
            raise ValueError(f"samples {self.samples}: greedy episodes do not differ; set eval.decoding to sampled")
        return self


class PromoteConfig(Section):
    """When RL may start (`gate_…`), and when its policy is registered and becomes the champion (the rest)."""

    min_gain: float = Field(default=0.0, ge=0, le=1)
    """The lower 95 % bound of RL - SFT on IID must exceed this."""
    ood_tolerance: float = Field(default=0.1, ge=0, le=1)
    """All OOD episodes together: the lower 95 % bound of RL - SFT must stay above minus this. One axis: it must not
    fall by more than this, where its 95 % interval shows that it falls at all."""
    max_lost: float = Field(default=0.1, ge=0, lt=1)
    """Share of the IID episodes, and of each OOD axis, that may be lost to the simulator with either policy."""
    conduct_tolerance: float | None = Field(default=None, ge=0)
    """No measure of safety and smoothness may get worse by more than this share of SFT's. None: no such rule."""
    allow_indifferent: bool = False
    """Promote also a policy that keeps its success with a black image or a wrong instruction."""
    replace_better_champion: bool = False
    """Move the alias also from a version that succeeded more often on the same IID list."""
    gate_head: GateAction = "stop"
    """A policy with weights that training never reached, or whose actions do not depend on what it sees."""
    gate_logprobs: GateAction = "stop"
    """A policy that is served with other log-probs than the learner computes (`rl.logprob_tolerance`)."""
    gate_fit: GateAction = "stop"
    """An SFT policy that does far worse than its fit to the demonstrations lets expect."""
    gate_success: GateAction = "stop"
    """An IID success from which a 0/1 reward has nothing to teach."""
    gate_fit_share: float = Field(default=0.1, ge=0, le=1)
    """IID success must reach this share of fit × the expert's success; fit: 1 is exact, 0 as bad as a constant action.
    Only what lies surely below counts: the upper end of the 95 % interval."""
    gate_min_success: float = Field(default=0.02, ge=0, le=1)
    """RL does not start when the SFT policy's IID success lies below: a sparse reward would never be seen."""
    gate_max_success: float = Field(default=0.98, ge=0, le=1)
    registered_name: str = "gripline-policy"


class TrackingConfig(Section):
    uri: str = ""
    """MLflow tracking URI; empty means an SQLite file beside the run directories."""
    experiment: str = "gripline"


class Profile(Section):
    """One complete run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    description: str = ""
    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    env: EnvConfig
    variation: VariationConfig = VariationConfig()
    splits: SplitsConfig = SplitsConfig()
    policy: PolicyConfig = PolicyConfig()
    demos: DemosConfig = DemosConfig()
    sft: SftConfig = SftConfig()
    rollout: RolloutConfig = RolloutConfig()
    rl: RlConfig = RlConfig()
    eval: EvalConfig = EvalConfig()
    promote: PromoteConfig = PromoteConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _enough_groups_can_be_drawn(self) -> Self:
        per_round = self.rl.groups_per_task * len(self.env.tasks)
        if self.rl.min_mixed_groups > per_round * self.rl.max_rounds:
            raise ValueError(
                f"rl.min_mixed_groups {self.rl.min_mixed_groups} can never be reached: {self.rl.max_rounds} rounds of "
                f"{per_round} groups are drawn; lower it, or raise rl.max_rounds or rl.groups_per_task"
            )
        return self

    @model_validator(mode="after")
    def _rollout_fits_the_cluster(self) -> Self:
        if not self.cluster.stages:
            return self
        pairs = (
            ("env_workers", self.rollout.env_workers, self.cluster.env.replicas * self.cluster.env.workers_per_pod),
            ("policy_replicas", self.rollout.policy_replicas,
             self.cluster.policy.replicas * self.cluster.policy.servers_per_pod),
        )  # fmt: skip
        for field, wanted, room in pairs:
            if wanted > room:
                raise ValueError(
                    f"rollout.{field} {wanted} exceeds the {room} that the pods of `cluster` take; "
                    f"set rollout.{field} to {room}, or raise their number"
                )
        return self

    @model_validator(mode="after")
    def _ood_lies_outside_of_training(self) -> Self:
        for shift in shifts(self.splits.ood, self.variation):
            if shift.is_covered:
                raise ValueError(shift.problem)
        trained = sorted(set(self.splits.ood.unseen_tasks) & set(self.env.tasks))
        if trained:
            raise ValueError(f"splits.ood.unseen_tasks: {trained[0]!r} is a task of env.tasks, which the run trains")
        return self

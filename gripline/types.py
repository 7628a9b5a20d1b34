"""The nouns that every stage shares.

Shape letters, used as suffixes everywhere: B batch, N cameras, H W C image, P proprioception, K actions in a chunk,
A action dimensions, T chunks of an episode, V action bins, L text tokens.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Split = Literal["train", "val", "iid", "ood"]


class _Value(BaseModel):
    """A frozen value with a strict schema: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _unwritten(default: object) -> Any:
    """A field left out of what is written while it holds its default: keys and hashes of specs without it stay."""
    return Field(default=default, exclude_if=lambda value: value == default)


class Distractor(_Value):
    """A coloured thing on the table that no task needs. It is seen only: nothing can bump into it."""

    shape: Literal["box", "ball", "cylinder"]
    centre_m: tuple[float, float]
    """Where it stands, x and y in the world."""
    size_m: float = Field(gt=0)
    """Half its width and half its height."""
    rgb: tuple[float, float, float]
    """0…1 each."""


class Perturbation(_Value):
    """What is changed in the simulator (or in what the policy gets to see) for one episode. The default is: nothing.

    All parts may be combined. Example: a camera 6 cm to the right and half the light:
    `Perturbation(camera_offset_m=(0.06, 0, 0), light_gain=0.5)`.
    """

    camera_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Shift of the camera's position in its own frame (right, up, backwards); its aim point stays."""
    light_gain: float = Field(default=1.0, gt=0)
    """Factor on every light's diffuse, ambient and specular part."""
    colour_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factor on the red, green and blue of every surface."""
    blank_image: bool = False
    """The policy sees black images: an ablation, not a change of the world."""
    fov_offset_deg: float = _unwritten(0.0)
    """Added to the camera's vertical field of view."""
    texture: str = _unwritten("")
    """Another surface for the table: one of the suite's `textures`; empty keeps its own."""
    distractors: tuple[Distractor, ...] = _unwritten(())
    hand_offset_m: tuple[float, float, float] = _unwritten((0.0, 0.0, 0.0))
    """Shift of the hand's start, x, y and z in the world."""
    friction_gain: float = _unwritten(1.0)
    """Factor on the friction of all contacts, and on friction and damping of the objects' joints."""
    mass_gain: float = _unwritten(1.0)
    """Factor on the objects' mass and inertia."""


class EpisodeSpec(_Value):
    """Names one episode completely: two runs of one spec with one policy are the same episode.

    Example: `EpisodeSpec(suite="metaworld", task="faucet-open-v3", instruction="open the faucet", init_seed=100003,
    region="inside", split="iid", axis="iid", noise_seed=7)`
    """

    suite: str
    task: str
    instruction: str
    """The text that the policy reads; in ablations it may not be the task's own."""
    init_seed: int = Field(ge=0)
    """Seed of the environment's own initial-state sampler; the same seed and region are the same initial state."""
    region: Literal["inside", "outside"] = "inside"
    """Where objects start: inside the range that training sees, or outside of it."""
    perturbation: Perturbation = Perturbation()
    split: Split
    axis: str = "iid"
    """What this episode measures: 'train', 'val', 'iid', an OOD axis ('camera') or an ablation ('no_image')."""
    group: int = Field(default=0, ge=0)
    """Episodes of one group share the initial state; in evaluation each episode is its own group."""
    member: int = Field(default=0, ge=0)
    noise_seed: int = Field(default=0, ge=0)
    """Key of the policy's sampling noise; unused when decoding is greedy."""

    @property
    def key(self) -> str:
        """16 hex digits that name this spec: equal specs have equal keys in every process."""
        return _key(self)

    @property
    def init_state_key(self) -> tuple[str, str, int, str]:
        """What two splits must never share: suite, task, init seed and region."""
        return (self.suite, self.task, self.init_seed, self.region)


@functools.lru_cache(maxsize=2**15)  # whoever pairs two lists asks for each key several times
def _key(spec: EpisodeSpec) -> str:
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EnvSpec:
    """What an environment offers; a policy checkpoint is checked against it."""

    suite: str
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    image_size_px: int
    proprio_dim: int
    action_dim: int
    action_low_A: tuple[float, ...]
    action_high_A: tuple[float, ...]
    control_hz: float
    """Control steps per simulated second, before an action is held over several of them."""
    horizon_steps: int
    """Control steps after which an episode ends without success."""
    success_means: str
    """One sentence for the report: when is an episode a success?"""


@dataclass(frozen=True)
class Observation:
    """What the policy sees at a chunk boundary.

    Example: `images_NHWC` uint8 (1, 64, 64, 3); `proprio_P` float32 (4,); instruction 'open the faucet'.
    """

    images_NHWC: np.ndarray
    proprio_P: np.ndarray
    instruction: str


class Conduct(_Value):
    """How safely and smoothly the robot moved in one episode; None where a suite does not measure it.

    Example: `Conduct(joint_margin=0.11, peak_joint_speed_rad_s=1.9, peak_contact_force_n=34.0, jerk_rms_m_s3=70.0)`
    """

    joint_margin: float | None = None
    """Smallest distance of a joint to its limits, as a share of its range; below 0 it was beyond one."""
    peak_joint_speed_rad_s: float | None = None
    peak_contact_force_n: float | None = None
    """Largest force between the robot and everything else: normal forces of all contacts, summed."""
    jerk_rms_m_s3: float | None = None
    """Root mean square of the third derivative of the hand's position."""


@dataclass(frozen=True)
class Outcome:
    """What the simulator's state says about an episode that ended."""

    failure: str
    """One of `gripline.failures.FAILURES`; empty on success."""
    conduct: Conduct


@dataclass(frozen=True)
class Step:
    """The outcome of one action chunk. `observation` is the one picture taken, at the chunk's end.

    An episode ends when `success` or `truncated` is true; nothing may be stepped after that until the next reset.
    """

    observation: Observation
    success: bool
    truncated: bool
    num_steps: int
    """Control steps really executed: the chunk stops at success and at the horizon."""
    outcome: Outcome | None = None
    """At the episode's end: how it went. None before that, and in an environment that does not look."""


class Env(Protocol):
    """A simulator that holds one episode at a time. Constructed by `gripline.envs.make_env(config.env)`."""

    spec: EnvSpec

    def reset(self, spec: EpisodeSpec) -> Observation:
        """Start the episode that `spec` names. Raises UserError on an unknown task."""

    def step(self, actions_KA: np.ndarray) -> Step:
        """Run a chunk of K actions (float32, clipped to the bounds); each may be held for several control steps."""

    def expert_chunk_KA(self, num_actions: int) -> np.ndarray:
        """The scripted expert's K actions for the present state. Raises UserError where the suite has no expert."""

    def render_for_people(self, size_px: int) -> np.ndarray:
        """A uint8 (size, size, 3) picture of the whole robot from a normal camera, for videos."""

    def close(self) -> None:
        """Free GL contexts and memory; idempotent."""


@dataclass(frozen=True)
class ActionBatch:
    """What a policy answers: tokens 0…V-1 per action dimension, the actions they mean, and how likely they were."""

    tokens_BKA: np.ndarray
    actions_BKA: np.ndarray
    logprobs_BKA: np.ndarray
    """Log-probability of each token under the distribution sampled from (temperature included)."""


@runtime_checkable
class Policy(Protocol):
    """Observations in, action chunks out; batched. A row's result never depends on its neighbours in the batch."""

    num_actions: int
    action_dim: int

    def act(
        self, observations: list[Observation], *, noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        """Choose a chunk for each observation.

        noise_keys: (noise seed, chunk index) per row, the only source of randomness; None decodes greedily.
        """


@dataclass(frozen=True)
class Trajectory:
    """What the learner needs of one episode: the T chunks that were really executed, nothing after success.

    Example (5 chunks, one camera of 64 px, K=1, A=4): `images_TNHWC` uint8 (5, 1, 64, 64, 3), `tokens_TKA` int64
    (5, 1, 4).
    """

    instruction: str
    images_TNHWC: np.ndarray
    proprio_TP: np.ndarray
    tokens_TKA: np.ndarray
    logprobs_TKA: np.ndarray
    """Behaviour log-probs, recorded when each action was sampled."""


class EpisodeRecord(_Value):
    """One line of an evaluation's results file (JSONL): all that is needed to count, pair and replay the episode."""

    spec: EpisodeSpec
    success: bool
    num_steps: int = Field(ge=0)
    num_chunks: int = Field(ge=0)
    actions_TKA: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """The actions executed, exact float32 values: stepping them from the spec's initial state is the same episode."""
    error: str = ""
    """Not empty: the simulator failed; the episode is counted apart and never as a failure of the policy."""
    failure: str = ""
    """One of `gripline.failures.FAILURES`; empty on success and after an error, and in older files."""
    conduct: Conduct | None = None

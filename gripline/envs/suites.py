"""The simulators and tasks that gripline knows: plain data, read without importing any simulator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gripline.config import EnvConfig
from gripline.errors import UserError, did_you_mean
from gripline.splits_config import Axis
from gripline.types import EnvSpec

Box = tuple[tuple[float, ...], tuple[float, ...]]
"""Low and high corner of a region that initial states are drawn from uniformly, in the sampler's own coordinates."""


@dataclass(frozen=True)
class TaskInfo:
    """One task: what it is called in words, and where its objects start."""

    instruction: str
    paraphrases: tuple[str, ...]
    """The same with words that no instruction uses; what tells the task from others in its scene is still said."""
    success_means: str
    scene: str
    """Tasks of one scene start from the same picture for the same init seed: only the text tells them apart."""
    inside: Box
    """Where objects start in training and in IID episodes."""
    outside: tuple[Box, ...]
    """Where they start in OOD episodes; does not touch `inside`."""
    marker: str = ""
    """Name of the site that shows the target, where nothing else does. All other markers are hidden."""


@dataclass(frozen=True)
class SuiteInfo:
    """One simulator with its tasks."""

    adapter: str
    """'module:Class' of the Env implementation."""
    cameras: tuple[str, ...]
    proprio_dim: int
    action_low_A: tuple[float, ...]
    action_high_A: tuple[float, ...]
    control_hz: float
    tasks: dict[str, TaskInfo]
    axes: tuple[Axis, ...]
    """OOD axes that change something here."""
    textures: tuple[str, ...]
    """Other surfaces that the table can have."""
    hand_directions: tuple[tuple[float, float, float], ...]
    """Where the hand's start may be moved without meeting an object or the end of its reach."""
    distractor_places_m: tuple[tuple[float, float], ...]
    """Where on the table (x, y) no task has anything; each as far from the next as two distractors need."""
    distractor_jitter_m: float
    distractor_size_m: tuple[float, float]
    """Half width, from and to."""
    needs_gl: bool = True
    """Whether pictures come from OpenGL, so that a working renderer must be found before worker processes start."""

    @property
    def action_dim(self) -> int:
        return len(self.action_low_A)


def _beside(inside: Box, *sides: Literal["left", "right"]) -> tuple[Box, ...]:
    """Boxes 1 to 5 cm beyond `inside` along x; a side on which the expert fails is left out."""
    low, high = inside
    spans = {"left": (low[0] - 0.05, low[0] - 0.01), "right": (high[0] + 0.01, high[0] + 0.05)}
    return tuple(((spans[side][0], *low[1:]), (spans[side][1], *high[1:])) for side in sides or ("left", "right"))


_FAUCET: Box = ((-0.1, 0.8, 0.0), (0.1, 0.85, 0.0))
_DRAWER: Box = ((-0.1, 0.9, 0.0), (0.1, 0.9, 0.0))
_REACH: Box = ((-0.1, 0.6, 0.02, -0.1, 0.8, 0.05), (0.1, 0.7, 0.02, 0.1, 0.9, 0.3))
_PUSH: Box = ((-0.1, 0.6, 0.02, -0.1, 0.8, 0.01), (0.1, 0.7, 0.02, 0.1, 0.9, 0.02))

_BUTTON: Box = ((-0.1, 0.8, 0.115), (0.1, 0.9, 0.115))
_WINDOW_OPEN: Box = ((-0.1, 0.7, 0.16), (0.1, 0.9, 0.16))
_WINDOW_CLOSE: Box = ((0.0, 0.75, 0.2), (0.0, 0.9, 0.2))
_DOOR: Box = ((0.0, 0.85, 0.15), (0.1, 0.95, 0.15))
_HANDLE: Box = ((-0.1, 0.8, -0.001), (0.1, 0.9, 0.001))

_METAWORLD_TASKS = {
    "faucet-open-v3": TaskInfo(
        "open the faucet",
        ("please open that tap", "get this water tap open", "open up the spigot now", "make sure the faucet is open"),
        "the faucet's handle is within 7 cm of its open position",
        scene="faucet",
        inside=_FAUCET,
        outside=_beside(_FAUCET),
    ),
    "faucet-close-v3": TaskInfo(
        "close the faucet",
        (
            "please close that tap",
            "get this water tap to close",
            "close up the spigot now",
            "make the faucet close fully",
        ),
        "the faucet's handle is within 7 cm of its closed position",
        scene="faucet",
        inside=_FAUCET,
        outside=_beside(_FAUCET),
    ),
    "drawer-open-v3": TaskInfo(
        "open the drawer",
        (
            "please open that cabinet",
            "get this green box open",
            "open up the cupboard now",
            "make sure the drawer is open",
        ),
        "the drawer's handle is within 3 cm of its open position",
        scene="drawer-closed",
        inside=_DRAWER,
        outside=_beside(_DRAWER),
    ),
    "drawer-close-v3": TaskInfo(
        "close the drawer",
        (
            "please close that cabinet",
            "get this green box to close",
            "close up the cupboard",
            "make the drawer close fully",
        ),
        "the drawer's handle is within 6.5 cm of its closed position",
        scene="drawer-opened",
        inside=_DRAWER,
        outside=_beside(_DRAWER),
    ),
    "button-press-topdown-v3": TaskInfo(
        "press the button from above",
        ("please press that switch", "press down on this red knob", "give the button one firm press"),
        "the button is pressed down to within 2.4 cm",
        scene="button",
        inside=_BUTTON,
        outside=_beside(_BUTTON),
    ),
    "window-open-v3": TaskInfo(
        "open the window",
        ("please open that pane", "get this sliding glass open", "make sure the window is open"),
        "the window's handle is within 5 cm of its open position",
        scene="window-closed",
        inside=_WINDOW_OPEN,
        outside=_beside(_WINDOW_OPEN),
    ),
    "window-close-v3": TaskInfo(
        "close the window",
        ("please close that pane", "get this sliding glass to close", "make the window close fully"),
        "the window's handle is within 5 cm of its closed position",
        scene="window-opened",
        inside=_WINDOW_CLOSE,
        outside=_beside(_WINDOW_CLOSE),
    ),
    "door-open-v3": TaskInfo(
        "open the door",
        ("please open that safe", "get this metal gate open", "make sure the door is open"),
        "the door's handle is within 8 cm of its open position, sideways",
        scene="door-closed",
        inside=_DOOR,
        outside=_beside(_DOOR, "right"),
    ),
    "handle-press-v3": TaskInfo(
        "press the handle down",
        ("please press that lever", "press this grip downwards", "give the handle one firm press"),
        "the handle is within 2 cm of its lowest position",
        scene="handle-up",
        inside=_HANDLE,
        outside=_beside(_HANDLE),
    ),
    "coffee-button-v3": TaskInfo(
        "press the coffee button",
        ("please start that coffee maker", "brew some coffee now", "get me one coffee"),
        "the machine's button is pressed in to within 2 cm",
        scene="coffee",
        inside=_HANDLE,
        outside=_beside(_HANDLE),
    ),
    "reach-v3": TaskInfo(
        "reach the target",
        ("please reach that sphere", "move your hand to the target", "reach for this dot"),
        "the fingers are within 5 cm of the marker",
        scene="reach",
        inside=_REACH,
        outside=_beside(_REACH),
        marker="goal",
    ),
    "push-v3": TaskInfo(
        "push the puck to the target",
        ("please push that disc over there", "shove the puck onto its target", "slide this disc to the target"),
        "the puck is within 5 cm of the marker",
        scene="push",
        inside=_PUSH,
        outside=_beside(_PUSH),
        marker="goal",
    ),
    "pick-place-v3": TaskInfo(
        "pick up the puck and place it at the target",
        ("please lift that disc to the target", "bring the puck up there", "hold the puck at its target"),
        "the puck is within 7 cm of the marker",
        scene="pick-place",
        inside=_REACH,
        outside=_beside(_REACH),
        marker="goal",
    ),
}

METAWORLD = SuiteInfo(
    adapter="gripline.envs.metaworld.adapter:MetaWorldEnv",
    cameras=("front",),
    proprio_dim=4,
    action_low_A=(-1.0, -1.0, -1.0, -1.0),
    action_high_A=(1.0, 1.0, 1.0, 1.0),
    control_hz=80.0,
    tasks=_METAWORLD_TASKS,
    axes=get_args(Axis),
    textures=("metal", "tiles"),
    hand_directions=((-1, 0, 0), (1, 0, 0), (0, 0, 1), (-1, 0, 1), (1, 0, 1)),
    distractor_places_m=(
        *((x_m, y_m) for x_m in (-0.55, -0.46) for y_m in (0.68, 0.76, 0.84)),  # at the back
        *((x_m, 0.48) for x_m in (-0.24, -0.14, -0.04, 0.06)),  # in front, below the hand
        *((x_m, 0.39) for x_m in (-0.14, -0.05)),
    ),
    distractor_jitter_m=0.01,
    distractor_size_m=(0.02, 0.03),
)

_TOY_INSIDE: Box = ((0.35,), (0.65,))
_TOY_OUTSIDE: tuple[Box, ...] = (((0.72,), (0.85,)),)

TOY = SuiteInfo(
    adapter="gripline.envs.toy:ToyEnv",
    cameras=("top",),
    proprio_dim=2,
    action_low_A=(-1.0, -1.0),
    action_high_A=(1.0, 1.0),
    control_hz=10.0,
    needs_gl=False,
    axes=tuple(axis for axis in get_args(Axis) if axis != "physics"),  # nothing here has mass or friction
    textures=("checks", "stripes"),
    hand_directions=((0, 1, 0), (0, -1, 0)),  # sideways it might touch a square at once
    distractor_places_m=tuple((x / 4, y) for x in range(-3, 4) for y in (-0.85, 0.85)),
    distractor_jitter_m=0.03,
    distractor_size_m=(0.05, 0.08),
    tasks={
        f"toy-{colour}": TaskInfo(
            f"touch the {colour} square",
            (f"please go to that {colour} thing", f"move onto this {colour} box"),
            f"the dot touches the {colour} square",
            scene="toy",
            inside=_TOY_INSIDE,
            outside=_TOY_OUTSIDE,
        )
        for colour in ("red", "blue")
    }
    | {
        "toy-edge": TaskInfo(
            "touch the upper edge",
            ("please go to that upper rim", "move up onto this edge"),
            "the dot touches the upper edge",
            scene="toy",
            inside=_TOY_INSIDE,
            outside=_TOY_OUTSIDE,
        )
    },
)

SUITES: dict[str, SuiteInfo] = {"metaworld": METAWORLD, "toy": TOY}


def suite_info(suite: str) -> SuiteInfo:
    """Look a suite up. Raises UserError with the nearest known name."""
    if suite not in SUITES:
        raise UserError("env", "suite", f"unknown suite {suite!r}", did_you_mean(suite, SUITES))
    return SUITES[suite]


def task_info(suite: str, task: str) -> TaskInfo:
    """Look a task up. Raises UserError with the nearest known name."""
    tasks = suite_info(suite).tasks
    if task not in tasks:
        raise UserError("env", "tasks", f"unknown task {task!r} of suite {suite!r}", did_you_mean(task, tasks))
    return tasks[task]


def env_spec(config: EnvConfig) -> EnvSpec:
    """What the environment of `config` will offer, without building it. Raises UserError for unknown names."""
    suite = suite_info(config.suite)
    meanings = (f"{task}: {task_info(config.suite, task).success_means}" for task in config.tasks)
    return EnvSpec(
        suite=config.suite,
        tasks=config.tasks,
        cameras=suite.cameras,
        image_size_px=config.image_size_px,
        proprio_dim=suite.proprio_dim,
        action_dim=suite.action_dim,
        action_low_A=suite.action_low_A,
        action_high_A=suite.action_high_A,
        control_hz=suite.control_hz,
        horizon_steps=config.horizon_steps,
        success_means="; ".join(meanings),
    )


def swapped_instruction(suite: str, task: str, tasks: Sequence[str]) -> str:
    """The instruction of another task of `tasks`, of one that shares the scene where there is one.

    Raises UserError when `tasks` holds no other task.
    """
    scene = task_info(suite, task).scene
    others = [other for other in tasks if other != task]
    if not others:
        raise UserError("env", "tasks", "a swapped instruction needs a second task", "add another task")
    others.sort(key=lambda other: task_info(suite, other).scene != scene)
    return task_info(suite, others[0]).instruction


def shared_scene_tasks(suite: str, tasks: Sequence[str]) -> list[str]:
    """Those of `tasks` that start from the same picture as another of them, so that only the text tells them apart."""
    scenes = [task_info(suite, task).scene for task in tasks]
    return [task for task, scene in zip(tasks, scenes, strict=True) if scenes.count(scene) > 1]

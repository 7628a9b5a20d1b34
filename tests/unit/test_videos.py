"""Videos: the right episodes, the same episodes, and files that people can open."""

import numpy as np
import pytest
from PIL import Image

from components.eval import videos
from components.eval.videos import Choice, choose_episodes, make_videos
from gripline import replay as replaying
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.replay import replay
from gripline.types import EnvSpec, EpisodeRecord, EpisodeSpec, Observation, Step

CONFIG = EnvConfig(suite="fake", tasks=("push", "pull"), hold_steps=4, horizon_steps=20)


class FakeEnv:
    """A counter: every control step adds the action; 1.0 is success. `drift` makes a replay go wrong."""

    drift = 0.0
    half_chunk_drift = 0.0
    made: list["FakeEnv"] = []  # noqa: RUF012  reset by the fixture

    def __init__(self, config: EnvConfig) -> None:
        self._config = config
        self.closed = False
        self.spec = EnvSpec(
            "fake", config.tasks, ("front",), 64, 4, 1, (-1.0,), (1.0,), 20.0, config.horizon_steps, "x"
        )
        FakeEnv.made.append(self)

    def reset(self, spec: EpisodeSpec) -> Observation:
        self.value, self.steps, self.episode = 0.0, 0, spec
        return self._observe()

    def step(self, actions_KA: np.ndarray) -> Step:
        drift = FakeEnv.drift + (FakeEnv.half_chunk_drift if self._config.hold_steps < CONFIG.hold_steps else 0.0)
        executed = 0
        for action in np.repeat(actions_KA[:, 0], self._config.hold_steps):
            self.value += float(action) + drift
            self.steps += 1
            executed += 1
            if self.value >= 1 or self.steps == self._config.horizon_steps:
                break
        done = self.value >= 1
        return Step(self._observe(), done, not done and self.steps == self._config.horizon_steps, executed)

    def render_for_people(self, size_px: int) -> np.ndarray:
        return np.full((size_px, size_px, 3), min(255, int(self.value * 200)), np.uint8)

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> Observation:
        return Observation(np.full((1, 64, 64, 3), 90, np.uint8), np.zeros(4, np.float32), self.episode.instruction)


@pytest.fixture(autouse=True)
def fake_env(monkeypatch):
    FakeEnv.drift, FakeEnv.half_chunk_drift, FakeEnv.made = 0.0, 0.0, []
    monkeypatch.setattr(replaying, "make_env", FakeEnv)


def record(seed=0, task="push", axis="iid", action=0.1, split=None, num_actions=1, instruction="push it"):
    """The true record of an episode in which every action is `action`."""
    spec = EpisodeSpec(
        suite="fake",
        task=task,
        instruction=instruction,
        init_seed=seed,
        split=split or ("iid" if axis == "iid" else "ood"),
        axis=axis,
    )
    env = FakeEnv(CONFIG)
    env.reset(spec)
    actions = []
    while True:
        chunk = np.full((num_actions, 1), action, np.float32)
        actions.append(tuple(tuple(float(value) for value in row) for row in chunk))
        step = env.step(chunk)
        if step.success or step.truncated:
            break
    return EpisodeRecord(
        spec=spec, success=step.success, num_steps=env.steps, num_chunks=len(actions), actions_TKA=tuple(actions)
    )


@pytest.mark.parametrize("num_actions, num_frames", [(1, 1 + 5), (4, 1 + 2)])
def test_a_replay_shows_every_half_chunk(num_actions, num_frames):
    """Catches a video that stutters or that ends before the episode does. 10 steps to success, in chunks of 4 or 16."""
    frames, control_hz = replay(CONFIG, record(num_actions=num_actions), 256)
    assert (len(frames), frames[-1].num_steps, control_hz) == (num_frames, 10, 20.0)
    assert all(env.closed for env in FakeEnv.made[1:])


def test_half_chunks_that_change_the_episode_are_not_used():
    """Catches a smoother video of something that did not happen."""
    truth = record()
    FakeEnv.half_chunk_drift = 0.02
    frames, _ = replay(CONFIG, truth, 256)
    assert [frame.num_steps for frame in frames] == [0, 4, 8, 10]


def test_a_replay_that_ends_otherwise_is_refused_or_left_out(tmp_path, capsys):
    """Catches a video that contradicts its caption."""
    truth = record()
    FakeEnv.drift = -0.05
    with pytest.raises(
        UserError, match="the replay ends with success=False after 12 steps, the record says success=True"
    ):
        replay(CONFIG, truth, 256)
    assert make_videos(CONFIG, [Choice("RL", truth)], tmp_path, size_px=256) == []
    assert "no video: episode" in capsys.readouterr().out


def test_the_file_is_an_animation_with_the_outcome_on_it(tmp_path):
    """Catches still pictures, small ones, and a failure under a green banner."""
    good, bad = record(seed=1), record(seed=2, action=0.01, axis="camera")
    made = make_videos(CONFIG, [Choice("RL", good), Choice("SFT", bad)], tmp_path, size_px=256)
    assert [video.path.name for video in made] == ["1-rl-iid-push-success.gif", "2-sft-camera-push-failure.gif"]
    assert sorted(tmp_path.iterdir()) == [video.path for video in made]
    for video, colour in zip(made, (videos.GREEN, videos.RED), strict=True):
        with Image.open(video.path) as animation:
            assert animation.n_frames >= 4
            assert animation.width == 256
            assert animation.info["loop"] == 0
            animation.seek(animation.n_frames - 1)
            banner = animation.convert("RGB").getpixel((128, animation.height - 4))
        assert np.abs(np.array(banner) - colour).max() < 16
        assert video.path.stat().st_size < 100_000


def test_long_and_missing_instructions_fit():
    """Catches text that runs out of the picture, and an empty line where the ablation should be named."""
    long = "please go and press down on this red knob over there, gently but without any delay"
    for text, axis in ((long, "paraphrase"), ("", "no_instruction")):
        shown = record(instruction=text, axis=axis)
        frames, hz = replay(CONFIG, shown, 256)
        picture = np.array(videos.annotate(frames[0], Choice("RL", shown), hz, last=False))
        assert (picture[: videos.HEADER_PX, -9:] == videos.INK).all()
        assert (picture[24:42, 10:100] > 200).any()


def test_the_story_is_chosen_first():
    """Catches three videos of the same thing: what SFT fails and RL solves, then another task out of distribution."""
    solved = {"iid": record(1), "camera": record(2, axis="camera"), "pull": record(3, "pull", "camera")}
    failed = record(4, action=0.01)
    sft_failure = record(1, action=0.01)
    assert not sft_failure.success
    rl = [failed, *solved.values()]
    sft = [record(4, action=0.01), sft_failure, solved["camera"], solved["pull"]]
    assert choose_episodes(sft, rl, 3) == [
        Choice("SFT", sft_failure),
        Choice("RL", solved["iid"]),
        Choice("RL", solved["pull"]),
    ]
    more = choose_episodes(sft, rl, 20)
    assert more[3] == Choice("RL", failed)
    assert len({(choice.policy, choice.record.spec.key) for choice in more}) == len(more)
    assert choose_episodes(sft, rl, 0) == []


def test_episodes_that_cannot_be_played_are_not_chosen():
    """Catches a crash on records without actions and on those that the simulator lost."""
    mute = record(1).model_copy(update={"actions_TKA": ()})
    lost = record(2).model_copy(update={"error": "GL context lost"})
    assert choose_episodes([], [mute, lost], 3) == []

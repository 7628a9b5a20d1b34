"""Replays: the same episode or one line that says where it is not, found by number or key, and filmed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gripline import profiles
from gripline.envs import make_env
from gripline.errors import UserError
from gripline.inputs import RunInputs
from gripline.replay import difference
from gripline.results import write_results
from gripline.splits import build_splits
from gripline.types import EpisodeRecord, EpisodeSpec
from pipelines import replay as command
from pipelines.cli import main

TOY = "env={suite: toy, tasks: [toy-red, toy-blue], image_size_px: 32, hold_steps: 2, horizon_steps: 24}"
PROFILE = profiles.load("smoke", [TOY, "eval.video_size_px=256"])
Evaluated = tuple[Path, list[EpisodeRecord]]


def play(spec: EpisodeSpec, *, lazily: bool = False) -> EpisodeRecord:
    """The scripted expert's episode, or one that hardly moves."""
    env = make_env(PROFILE.env)
    env.reset(spec)
    actions, num_steps = [], 0
    while True:
        actions_KA = env.expert_chunk_KA(1) * np.float32(0.01 if lazily else 1)
        actions.append(tuple(map(tuple, actions_KA.tolist())))
        step = env.step(actions_KA)
        num_steps += step.num_steps
        if step.success or step.truncated:
            ended = {} if step.outcome is None else {"failure": step.outcome.failure, "conduct": step.outcome.conduct}
            return EpisodeRecord(
                spec=spec,
                success=step.success,
                num_steps=num_steps,
                num_chunks=len(actions),
                actions_TKA=tuple(actions),
                **ended,
            )


@pytest.fixture
def run(tmp_path: Path) -> Evaluated:
    """A run's folder, and the episodes of its RL policy: every third one fails, the last was lost."""
    specs = build_splits(PROFILE).tested
    records = [play(spec, lazily=number % 3 == 2) for number, spec in enumerate(specs[:-1])]
    lost = EpisodeRecord(spec=specs[-1], success=False, num_steps=0, num_chunks=0, error="GL context lost")
    RunInputs(PROFILE).write(tmp_path / "run")
    write_results(tmp_path / "run" / "eval-rl" / "results.jsonl", [*records, lost])
    return tmp_path / "run", [*records, lost]


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(["replay", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(str(ended.value.code)), shown.out, shown.err.splitlines()


def changed(record: EpisodeRecord, **fields: object) -> EpisodeRecord:
    return EpisodeRecord.model_validate(record.model_dump() | fields)


def test_an_episode_is_the_same_again(run: Evaluated) -> None:
    for record in run[1][:-1]:
        assert difference(PROFILE.env, record) == ""


def test_where_it_differs_is_said(run: Evaluated) -> None:
    """Catches: a check that finds everything equal; one that looks at the end only."""
    good = next(record for record in run[1] if record.success and record.num_chunks > 2)
    last = f"chunk {good.num_chunks} of {good.num_chunks}"
    told = {
        f"{last}: it ends with success=True after {good.num_steps} steps, the record with success=False": {
            "success": False
        },
        f"the record with success=True after {good.num_steps + 1} steps": {"num_steps": good.num_steps + 1},
        f"chunk {good.num_chunks} of {good.num_chunks + 1}: it ends here with success=True, the record goes on": {
            "num_chunks": good.num_chunks + 1,
            "actions_TKA": (*good.actions_TKA, good.actions_TKA[-1]),
        },
        f"chunk {good.num_chunks - 1} of {good.num_chunks - 1}: it goes on after": {
            "num_chunks": good.num_chunks - 1,
            "actions_TKA": good.actions_TKA[:-1],
        },
    }
    for line, fields in told.items():
        assert line in difference(PROFILE.env, changed(good, **fields))
    if good.conduct is not None:
        wrong = difference(PROFILE.env, changed(good, failure="dropped"))
        assert wrong == f"{last}: the failure is '', the record says 'dropped'"
        wrong = difference(PROFILE.env, changed(good, conduct={"joint_margin": 0.123}))
        assert "joint_margin is" in wrong or "the record says None" in wrong
    with pytest.raises(UserError, match="has no recorded actions: GL context lost; choose another one"):
        difference(PROFILE.env, run[1][-1])


def test_the_policys_actions_are_compared_bit_for_bit(run: Evaluated) -> None:
    """Catches: a comparison with a tolerance; one that asks with the wrong chunk's noise."""
    record = next(record for record in run[1] if record.num_chunks > 2)
    asked = []

    def acting(error: float) -> Callable[..., np.ndarray]:
        def act(observation: object, chunk: int) -> np.ndarray:
            asked.append(chunk)
            return np.array(record.actions_TKA[chunk], np.float32) + np.float32(error if chunk == 2 else 0)

        return act

    assert difference(PROFILE.env, record, acting(0)) == ""
    assert asked == list(range(record.num_chunks))
    told = difference(PROFILE.env, record, acting(1e-6))
    assert told.startswith(f"chunk 3 of {record.num_chunks}: the policy acts otherwise, by up to")


def test_the_command_says_the_same_and_films_it(
    run: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, records = run
    monkeypatch.chdir(tmp_path)
    code, shown, errors = cli(capsys, folder, 1)
    key = records[0].spec.key
    assert (code, errors) == (0, [])
    assert f"episode 1 ({key}): toy-red, iid: success after {records[0].num_steps} steps" in shown
    assert "the same: success, steps, chunks" in shown and f"video: replay-{key}.gif" in shown
    with Image.open(tmp_path / f"replay-{key}.gif") as video:
        assert video.n_frames > records[0].num_chunks
        assert video.width == 256
    code, shown, _ = cli(capsys, folder, key[:8], "--out", tmp_path / "it.gif", "--policy", "rl")
    assert code == 0 and "episode 1 (" in shown and (tmp_path / "it.gif").exists()


def test_another_episode_is_exit_code_1_and_no_video(run: Evaluated, tmp_path: Path, capsys) -> None:
    folder, records = run
    write_results(folder / "eval-rl" / "results.jsonl", [changed(records[0], success=False), *records[1:]])
    code, _, errors = cli(capsys, folder, 1, "--out", tmp_path / "it.gif")
    assert code == 1 and len(errors) == 1
    assert errors[0].startswith(f"gripline: episode 1 ({records[0].spec.key}): is not the same: chunk ")
    assert not (tmp_path / "it.gif").exists()


def test_episodes_are_listed_and_filtered(run: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    folder, records = run
    code, shown, errors = cli(capsys, folder, "--list")
    heading, *lines = shown.splitlines()
    assert (code, errors) == (0, [])
    assert heading.split() == ["key", "task", "axis", "outcome", "failure", "steps"]
    assert [line.split()[:2] for line in lines] == [
        [str(number), record.spec.key] for number, record in enumerate(records, start=1)
    ]
    assert "error" in lines[-1] and "success" in lines[0]
    _, shown, _ = cli(capsys, folder, "--list", "--failed", "--task", "toy-blue", "--axis", "camera")
    expected = [
        record.spec.key
        for record in records
        if not record.success and (record.spec.task, record.spec.axis) == ("toy-blue", "camera")
    ]
    assert [line.split()[1] for line in shown.splitlines()[1:]] == expected
    code, _, errors = cli(capsys, folder, "--list", "--axis", "camra")
    assert code == 2 and "has no such episode; axes and tasks are: iid, " in errors[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "1"], "nowhere/eval-rl/results.jsonl: no such results file"),
        (["run", "1", "--policy", "sft"], "run/eval-sft/results.jsonl: no such results file"),
        (["run", "9999"], "run: EPISODE: no episode is called '9999'; give a number from 1 to "),
        (["run", "abc"], "no episode is called 'abc'"),
        (["run", "1", "--out", "it.mp4"], "it.mp4: --out: is no .gif file; end it in .gif"),
        (["run"], "gripline replay: EPISODE: is needed, or --list, and not both"),
        (["run", "1", "--list"], "is needed, or --list, and not both"),
        (["run", "1", "--failed"], "--axis, --task and --failed are of --list"),
        (["run", "1", "--act"], "run: --act: holds no checkpoint; give --from CHECKPOINT"),
    ],
)
def test_mistakes_are_one_line(
    run: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = cli(capsys, *arguments)
    assert code == 2 and len(errors) == 1 and told in errors[0], errors


def test_a_key_may_be_cut_short_but_not_ambiguous(run: Evaluated) -> None:
    records = run[1]
    assert command._find(records, records[3].spec.key[:6], "run") == (4, records[3])
    assert command._find(records, "4", "run") == (4, records[3])
    with pytest.raises(UserError, match=r"several keys begin with .*: [0-9a-f]{16}, [0-9a-f]{16}"):
        command._find([records[3], records[3]], records[3].spec.key[:5] + records[3].spec.key[5:], "run")


def test_runs_in_a_store_are_replayed(run: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in run[0].rglob("*"):
        if path.is_file():
            files.pipe_file(f"/{tmp_path.name}/{path.relative_to(tmp_path)}", path.read_bytes())
    code, shown, errors = cli(capsys, f"memory://{tmp_path.name}/run", 2, "--out", tmp_path / "it.gif")
    assert (code, errors) == (0, []) and "the same" in shown

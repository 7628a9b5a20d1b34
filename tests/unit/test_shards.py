"""Shards of an evaluation: together they are the list, and merged they are the file of an evaluation without shards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.errors import UserError
from gripline.results import write_results
from gripline.shards import Shard, found, merge
from gripline.store import INPUTS_FILE, RunStore, StageResult
from gripline.types import EpisodeRecord, EpisodeSpec

STAGE = "eval-rl"


def record(seed: int, error: str = "") -> EpisodeRecord:
    spec = EpisodeSpec(suite="fake", task="push", instruction="push it", init_seed=seed, split="iid")
    return EpisodeRecord(spec=spec, success=seed % 3 == 0, num_steps=seed + 1, num_chunks=1, error=error)


RECORDS = [record(seed, "lost" if seed == 4 else "") for seed in range(11)]
SPECS = [each.spec for each in RECORDS]


def write_shard(run: Path, text: str, fingerprint: str = "same", finished: bool = True) -> Path:
    """As `components.eval.evaluate.evaluate_shard` leaves it."""
    shard, store = Shard.parse(text), RunStore(str(run))
    folder = run / shard.folder(STAGE)
    own = [each for each in RECORDS if each.spec in shard.of(SPECS)]
    write_results(folder / "results.jsonl", own)
    (folder / INPUTS_FILE).write_text(fingerprint)
    if finished:
        StageResult(fingerprint=fingerprint, outputs={"seconds": 2.5}).write(store, shard.folder(STAGE))
    return folder


def merged(*runs: Path) -> tuple[StageResult, list[EpisodeRecord]]:
    return merge([part for run in runs for part in found(RunStore(str(run)), STAGE)], STAGE, SPECS)


@given(st.lists(st.integers(), max_size=40, unique=True), st.integers(1, 8))
def test_every_episode_is_in_exactly_one_shard(episodes: list[int], count: int) -> None:
    """Catches: an episode that two shards run, or none; one shard that has all of the work."""
    shards = [shard.of(episodes) for shard in Shard(1, count).all]
    assert sorted(episode for own in shards for episode in own) == sorted(episodes)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "2/0", "a/b", "1/3/5", "-1/3", "02/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--shard: is no shard; write I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("folders", [("one", "one", "one"), ("one", "two", "three")])
def test_merged_shards_are_the_list(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """Catches: an order that depends on the shards; sums that leave one out."""
    for index, name in enumerate(folders, start=1):
        write_shard(tmp_path / name, f"{index}/3")
    result, records = merged(*(tmp_path / name for name in dict.fromkeys(folders)))
    assert records == RECORDS
    steps = sum(each.num_steps for each in RECORDS)
    assert result.outputs == {"episodes": 11, "errors": 1, "env_steps": steps, "seconds": 7.5}
    assert result.fingerprint == "same"


def test_a_shard_of_more_than_there_are_episodes_is_empty(tmp_path: Path) -> None:
    for shard in Shard(1, 13).all:
        write_shard(tmp_path, str(shard))
    assert merged(tmp_path)[1] == RECORDS


def test_what_cannot_be_merged_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    """Catches: half of an evaluation that passes for one; episodes of another policy in between."""
    write_shard(tmp_path / "run", "1/3")
    write_shard(tmp_path / "run", "3/3", finished=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(UserError, match=r"run: 1 of 3 shards are missing: 2/3; run them, or name"):
        merged(tmp_path / "run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    write_shard(tmp_path / "run", "2/3")
    with pytest.raises(UserError, match=r"run/eval-rl-shards/3-of-3: is not finished; give its command again"):
        merged(tmp_path / "run")

    write_shard(tmp_path / "run", "3/3", fingerprint="other")
    with pytest.raises(UserError, match=r"3-of-3: is of another evaluation than .*1-of-3"):
        merged(tmp_path / "run")

    write_shard(tmp_path / "run", "3/3")
    write_shard(tmp_path / "twice", "2/3")
    with pytest.raises(UserError, match=r"twice/eval-rl-shards/2-of-3: shard 2/3 is there twice: also .*run/eval"):
        merged(tmp_path / "run", tmp_path / "twice")

    write_shard(tmp_path / "cut", "1/2")
    with pytest.raises(UserError, match=r"holds shards of several cuts: 1 of …/2 and 3 of …/3"):
        merged(tmp_path / "run", tmp_path / "cut")

    results = tmp_path / "run" / Shard(2, 3).folder(STAGE) / "results.jsonl"
    whole = results.read_text()
    results.write_text(whole.replace('"success":false', '"success":fals', 1))
    with pytest.raises(UserError, match=r"2-of-3/results.jsonl: line \d+: damaged: Invalid JSON"):
        merged(tmp_path / "run")
    results.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"2-of-3/results.jsonl: 1 of 4 episodes are missing"):
        merged(tmp_path / "run")


def test_shards_of_a_store_are_found(tmp_path: Path) -> None:
    """Catches: a remote folder whose shards have other names."""
    import fsspec

    for index in (1, 2):
        write_shard(tmp_path / "run", f"{index}/2")
    files = fsspec.filesystem("memory")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            files.pipe_file(f"/{tmp_path.name}/{path.relative_to(tmp_path)}", path.read_bytes())
    parts = found(RunStore(f"memory://{tmp_path.name}/run"), STAGE)
    assert [(part.shard, part.finished) for part in parts] == [(Shard(1, 2), True), (Shard(2, 2), True)]
    assert merge(parts, STAGE, SPECS)[1] == RECORDS

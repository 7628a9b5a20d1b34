"""Results files: complete or absent, the same bytes in any order, and one line that says what is wrong."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gripline.errors import UserError
from gripline.results import ResultsWriter, read_results, write_results
from gripline.types import EpisodeRecord, EpisodeSpec


def spec(seed: int, axis: str = "iid") -> EpisodeSpec:
    split = "iid" if axis == "iid" else "ood"
    return EpisodeSpec(suite="fake", task="push", instruction="push it", init_seed=seed, split=split, axis=axis)


def record(seed: int, success: bool = True, error: str = "") -> EpisodeRecord:
    actions = (((0.1 * seed, -0.25),),) * 3
    return EpisodeRecord(spec=spec(seed), success=success, num_steps=24, num_chunks=3, actions_TKA=actions, error=error)


def test_records_survive_the_disk(tmp_path):
    """Catches lost digits in the actions: a replay needs the exact float32 values."""
    records = [record(seed, success=seed % 2 == 0) for seed in range(5)]
    write_results(tmp_path / "results.jsonl", records)
    assert read_results(tmp_path / "results.jsonl", [item.spec for item in records]) == records


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)))
def test_any_order_of_finishing_gives_the_same_bytes(tmp_path, order):
    """Catches results that depend on the number of workers."""
    specs = [spec(seed) for seed in range(6)]
    straight, shuffled = tmp_path / "straight.jsonl", tmp_path / "shuffled.jsonl"
    shuffled.unlink(missing_ok=True)
    write_results(straight, [record(seed) for seed in range(6)])
    writer = ResultsWriter(shuffled)
    for seed in order:
        writer.append(record(seed))
    writer.finish(specs)
    assert shuffled.read_bytes() == straight.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shuffled.jsonl", "straight.jsonl"]


def test_an_interrupted_evaluation_continues(tmp_path):
    """Catches episodes that run twice, and a half-written last line that poisons the resume."""
    path = tmp_path / "results.jsonl"
    specs = [spec(seed) for seed in range(4)]
    first = ResultsWriter(path)
    first.append(record(2))
    first.append(record(0))
    first.close()
    partial = tmp_path / "results.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"spec":{"suite":"fa')  # killed in the middle of a line
    assert not path.exists()

    second = ResultsWriter(path)
    assert second.missing(specs) == [spec(1), spec(3)]
    second.append(record(3))
    with pytest.raises(UserError, match=r"1 of 4 episodes are missing, the first is number 2"):
        second.finish(specs)
    second.append(record(1))
    assert [item.spec for item in second.finish(specs)] == specs
    assert not partial.exists()


def test_infra_errors_are_run_again(tmp_path):
    """Catches a crashed simulator that counts as done for ever."""
    path = tmp_path / "results.jsonl"
    writer = ResultsWriter(path)
    writer.append(record(0, success=False, error="GL context lost"))
    assert writer.missing([spec(0)]) == [spec(0)]
    writer.append(record(0))
    writer.close()
    assert ResultsWriter(path).missing([spec(0)]) == []
    assert [item.error for item in ResultsWriter(path).finish([spec(0)])] == [""]


def test_errors_in_a_finished_file_are_run_again(tmp_path):
    """Catches a rerun that forgets the episodes which did work."""
    path = tmp_path / "results.jsonl"
    write_results(path, [record(0), record(1, success=False, error="lost")])
    writer = ResultsWriter(path)
    assert writer.missing([spec(0), spec(1)]) == [spec(1)]
    writer.append(record(1))
    writer.finish([spec(0), spec(1)])
    assert read_results(path) == [record(0), record(1)]


def test_a_finished_file_is_left_alone(tmp_path):
    """Catches a rerun that overwrites results, and an episode that is accepted twice."""
    path = tmp_path / "results.jsonl"
    write_results(path, [record(0)])
    before = path.stat().st_mtime_ns
    writer = ResultsWriter(path)
    with pytest.raises(ValueError, match="exactly once"):
        writer.append(record(0))
    assert writer.finish([spec(0)]) == [record(0)]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not in the list"):
        ResultsWriter(path).finish([spec(7)])


def damaged_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{not json", "damaged: Invalid JSON"),
        ('{"success": true}', "damaged: spec: Field required"),
        ("", "damaged"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    write_results(path, [record(seed) for seed in range(3)])
    damaged_line(path, 2, text)
    with pytest.raises(UserError, match=message) as caught:
        read_results(path)
    assert f"{path}: line 2: " in str(caught.value)
    assert "delete this line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_twice_the_same_missing_and_other_episodes_are_refused(tmp_path):
    """Catches a comparison of lists that do not match."""
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match="no such results file"):
        read_results(path)
    write_results(path, [record(0), record(1), record(0)])
    with pytest.raises(UserError, match="line 3: the same episode as line 1"):
        read_results(path)
    write_results(path, [record(0), record(1)])
    with pytest.raises(UserError, match="1 of 3 episodes are missing, the first is number 3"):
        read_results(path, [spec(0), spec(1), spec(2)])
    with pytest.raises(UserError, match="1 of 2 episodes that are not in the list"):
        read_results(path, [spec(0)])
    with pytest.raises(UserError, match="not in the order"):
        read_results(path, [spec(1), spec(0)])
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="line 1: "):
        read_results(path)


def test_a_disk_that_takes_nothing_is_one_line(tmp_path):
    """Catches a traceback, and a torn file under the final name, when the disk is full."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(UserError, match="cannot be written"):
        write_results(blocked / "results.jsonl", [record(0)])
    writer = ResultsWriter(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        writer.append(record(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "results.jsonl.partial"]


def test_ten_thousand_episodes_load_quickly(tmp_path):
    """Catches quadratic checks; the bound is ten times what it takes."""
    records = [record(seed) for seed in range(10_000)]
    random.Random(0).shuffle(records)
    write_results(tmp_path / "results.jsonl", records)
    start = time.perf_counter()
    read_results(tmp_path / "results.jsonl", [item.spec for item in records])
    assert time.perf_counter() - start < 10

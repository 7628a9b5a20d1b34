"""Choosing, locking, continuing and refusing the folder of a local run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gripline import profiles
from gripline.errors import UserError
from gripline.inputs import RunInputs
from pipelines import run_folder
from pipelines.run_folder import claim, is_finished

INPUTS = RunInputs(profiles.load("smoke"))


def other(override: str) -> RunInputs:
    return RunInputs(profiles.load("smoke", [override]))


def conclude(path: Path, peak_memory_mb: float = 1.0) -> None:
    (path / "summary.json").write_text(json.dumps({"peak_memory_mb": peak_memory_mb}))


@pytest.fixture(autouse=True)
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_numbers_go_up_and_only_the_newest_equal_unfinished_run_continues() -> None:
    def chosen(inputs: RunInputs) -> tuple[str, bool]:
        with claim(inputs, None) as folder:
            return folder.path.name, folder.continued

    assert chosen(INPUTS) == ("smoke-1", False)
    assert chosen(INPUTS) == ("smoke-1", True)
    assert chosen(other("rl.lr=1e-4")) == ("smoke-2", False)
    assert chosen(INPUTS) == ("smoke-3", False)  # not smoke-1, which is no longer the newest
    conclude(Path("runs/smoke-3"))
    assert chosen(INPUTS) == ("smoke-4", False)
    with claim(INPUTS, None) as folder:
        assert folder.path.name == "smoke-4" and folder.continued
        assert chosen(INPUTS) == ("smoke-5", False)  # number 4 is in use


def test_names_that_only_look_like_runs_are_passed_over() -> None:
    for name in ("smoke-old", "smoke-", "smoke-x-7"):
        Path("runs", name).mkdir(parents=True)
    with claim(INPUTS, None) as folder:
        assert folder.path.name == "smoke-1"


def test_lock_ends_with_the_run() -> None:
    out = Path("here")
    with claim(INPUTS, out), pytest.raises(UserError, match="another run is using it"), claim(INPUTS, out):
        pass
    with claim(INPUTS, out) as folder:
        assert folder.continued


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda out: (out / "thesis.tex").touch(), "is not a run folder: it holds thesis.tex"),
        (conclude, "holds a finished run"),
        (lambda out: other("rl.lr=1e-4").write(out), "rl.lr is 0.0003 here, 0.0001 there"),
        (
            lambda out: RunInputs(INPUTS.profile, "/a/checkpoint").write(out),
            "the checkpoint is none here, /a/checkpoint",
        ),
    ],
)
def test_folder_of_others_is_refused_and_left_as_it_was(prepare: Callable[[Path], None], told: str) -> None:
    """Catches: results of two runs mixed in one folder, a lock file in somebody's home."""
    out = Path("out")
    out.mkdir()
    prepare(out)
    before = sorted(out.iterdir())
    with pytest.raises(UserError, match=told), claim(INPUTS, out):
        pass
    assert sorted(out.iterdir()) == before


def test_file_in_the_way_is_refused() -> None:
    Path("out").touch()
    with (
        pytest.raises(UserError, match=r"out: --out: cannot be used: (File exists|Not a directory)"),
        claim(INPUTS, Path("out")),
    ):
        pass


def test_finished_means_measured(tmp_path: Path) -> None:
    """promote writes the summary, the front end completes it: between the two, the run is not finished."""
    assert not is_finished(tmp_path)
    conclude(tmp_path, peak_memory_mb=0.0)
    assert not is_finished(tmp_path)
    (tmp_path / "summary.json").write_text('{"peak_memory_mb": 1')
    assert not is_finished(tmp_path)
    conclude(tmp_path)
    assert is_finished(tmp_path)


def test_interrupted_first_write_is_no_record(tmp_path: Path) -> None:
    """A folder whose inputs were half written belongs to nobody yet."""
    (tmp_path / ".part-profile.yaml").write_text("name: sm")
    with claim(INPUTS, tmp_path) as folder:
        assert not folder.continued
    assert run_folder.PROFILE_FILE in {entry.name for entry in tmp_path.iterdir()}

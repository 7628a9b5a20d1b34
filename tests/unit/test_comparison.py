"""Several runs beside each other: what is paired, what is corrected, what is averaged, and what is said of the rest."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from components.eval.comparison_report import picture, render_html, write_comparison
from gripline import profiles
from gripline.comparison import Comparison, Evaluation, compare_runs, row_label, row_names
from gripline.errors import UserError
from gripline.evaluated_runs import read_evaluation, tracking_uri
from gripline.inputs import RunInputs
from gripline.results import write_results
from gripline.stages import CONTEXT_FILE, RunContext
from gripline.statistics import holm, interquartile_interval
from gripline.summary import compare
from gripline.types import EpisodeRecord, EpisodeSpec
from pipelines.cli import main

OPEN, CLOSE = "faucet-open", "faucet-close"
AXES = {"iid": "iid", "camera": "ood", "light": "ood", "no_image": "iid"}


def episodes(successes: int, n: int = 20, *, tasks: Sequence[str] = (OPEN, CLOSE), suite: str = "fake") -> list:
    """n episodes for each task and axis, of which the first so many succeed; ablations all fail."""
    return [
        EpisodeRecord(
            spec=EpisodeSpec(suite=suite, task=task, instruction="do", init_seed=seed, split=split, axis=axis),
            success=seed < successes and axis != "no_image",
            num_steps=10,
            num_chunks=2,
            actions_TKA=(((0.5,),), ((0.25,),)),
        )
        for axis, split in AXES.items()
        for task in tasks
        for seed in range(n)
    ]


def evaluation(name: str, successes: int, **known: object) -> Evaluation:
    return Evaluation(name=name, policy="rl", records=episodes(successes), **known)


def run_folder(path: Path, seed: int = 1, overrides: Sequence[str] = (), **policies: int) -> Path:
    """A run's folder with the evaluations of its policies: successes of 20 a task."""
    for policy, successes in policies.items():
        write_results(path / f"eval-{policy}" / "results.jsonl", episodes(successes))
    context = RunContext(
        run_name=path.name,
        run_dir=str(path),
        tracking_uri="sqlite:////nowhere/mlflow.db",
        experiment="tests",
        parent_run_id="0" * 32,
        profile_name="laptop",
        seed=seed,
        split_hashes={},
    )
    (path / CONTEXT_FILE).write_text(context.model_dump_json())
    RunInputs(profiles.load("laptop", overrides, seed)).write(path)
    return path


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """(exit code, standard output, lines of standard error)."""
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(str(ended.value.code)), shown.out, shown.err.splitlines()


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return run_folder(tmp_path / "old", sft=4, rl=8), run_folder(tmp_path / "new", 2, sft=8, rl=15)


def test_two_runs_are_paired_as_a_runs_two_policies_are() -> None:
    """Catches: a candidate and a baseline that are swapped; other statistics than those of summary.json."""
    found = compare_runs(evaluation("old", 8), [evaluation("new", 15)])
    paired = compare(episodes(8), episodes(15))
    (pair,) = found.pairs
    assert (found.baseline, pair.run, pair.common) == ("old", "new", 160)
    assert pair.difference["iid"] == paired.iid
    assert pair.difference["ood/camera"] == paired.ood["camera"]
    assert pair.difference[f"task/{OPEN}"] == paired.per_task[OPEN].iid
    assert found.runs[1].success["iid"].model_dump() == {
        "success": 0.75,
        "ci95": pytest.approx((0.598, 0.858), abs=1e-3),
        "n": 40,
    }
    assert row_names(found) == ["iid", f"task/{OPEN}", f"task/{CLOSE}", "ood/camera", "ood/light", "ablation/no_image"]
    assert [row_label(name) for name in row_names(found)] == ["IID", OPEN, CLOSE, "camera", "light", "no image"]
    assert (found.groups, found.notes, found.problems) == ((), (), ())
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_only_common_episodes_are_paired_and_that_is_said() -> None:
    """Catches: pairs by position; a comparison on a handful of episodes that looks like one on all."""
    longer = Evaluation(name="longer", policy="rl", records=episodes(15, n=30))
    found = compare_runs(evaluation("old", 8), [longer])
    assert found.pairs[0].difference["iid"] == compare(episodes(8), episodes(15)).iid
    assert found.notes == ("longer and old share 160 of 240 episodes: only these are paired",)
    assert found.problems == ()


def test_lists_that_do_not_match_are_shown_unpaired() -> None:
    """Catches: one stranger that takes the other results away."""
    stranger = Evaluation(name="stranger", policy="rl", records=episodes(10, suite="other"))
    found = compare_runs(evaluation("old", 8), [stranger, evaluation("new", 15)])
    assert [pair.run for pair in found.pairs] == ["new"]
    assert [run.name for run in found.runs] == ["old", "stranger", "new"]
    (problem,) = found.problems
    assert problem.startswith("stranger: has no episode in common with the baseline")


def test_without_a_baseline_the_others_are_shown() -> None:
    found = compare_runs(None, [evaluation("new", 15), evaluation("newer", 16)], ["runs/old: gone"])
    assert (found.baseline, found.pairs, found.problems) == (None, (), ("runs/old: gone",))
    assert [run.success["iid"].success for run in found.runs] == [0.75, 0.8]
    broken = [record.model_copy(update={"error": "died"}) for record in episodes(8)]
    lost = Evaluation(name="lost", policy="rl", records=broken)
    found = compare_runs(lost, [evaluation("new", 15)])
    assert (found.baseline, [run.name for run in found.runs]) == (None, ["new"])
    assert found.problems[0].startswith("lost: evaluation: iid: no IID episode finished")


def test_p_is_corrected_over_all_axes_and_runs() -> None:
    """Catches: the best of many runs that is called significant by luck."""
    one = compare_runs(evaluation("old", 8), [evaluation("new", 12)]).pairs[0].difference
    assert one["iid"].p_holm is None
    both = compare_runs(evaluation("old", 8), [evaluation("new", 12), evaluation("newer", 11)]).pairs
    assert [pair.difference["iid"].p_holm for pair in both] == pytest.approx(
        holm([pair.difference["iid"].p for pair in both])
    )
    axes = [pair.difference[name] for pair in both for name in ("ood/camera", "ood/light")]
    assert [each.p_holm for each in axes] == pytest.approx(holm([each.p for each in axes]))
    assert both[0].difference["ood/camera"].p_holm > one["ood/camera"].p_holm


def test_runs_of_one_profile_with_several_seeds_are_averaged() -> None:
    """Catches: other profiles or settings that are mixed in, a seed that counts twice, tasks thrown together."""
    known = {"profile": "laptop", "settings": "a"}
    runs = [evaluation(f"run-{seed}", successes, seed=seed, **known) for seed, successes in ((1, 8), (2, 15), (3, 12))]
    again = evaluation("again", 20, seed=1, **known)
    other = evaluation("other", 20, profile="laptop", settings="b", seed=4)
    found = compare_runs(runs[0], [*runs[1:], again, other, evaluation("unknown", 3)])
    (group,) = found.groups
    assert (group.name, group.runs, group.seeds) == ("laptop", ("run-1", "run-2", "run-3"), (1, 2, 3))
    scores_RT = np.array([[0.4, 0.4], [0.75, 0.75], [0.6, 0.6]])
    for name in ("iid", "ood/camera", "ood/light"):
        mean = group.interquartile_mean[name]
        assert mean.mean == pytest.approx(stats.trim_mean(scores_RT.ravel(), 0.25))
        assert (mean.ci95, mean.num_tasks) == (pytest.approx(interquartile_interval(scores_RT)), 2)
    assert group.interquartile_mean.keys() == {"iid", "ood/camera", "ood/light"}


def test_two_settings_of_one_profile_are_told_apart() -> None:
    runs = [
        evaluation(f"{settings}{seed}", 10, profile="laptop", settings=settings, seed=seed)
        for settings in "ab"
        for seed in (1, 2)
    ]
    assert [group.name for group in compare_runs(runs[0], runs[1:]).groups] == ["laptop #1", "laptop #2"]


def test_a_run_of_which_only_metrics_are_known_is_shown() -> None:
    """Catches: metric names that are taken for rates, and a missing interval that stops everything."""
    metrics = {
        "eval/iid/success": 0.7,
        "eval/iid/ci_low": 0.6,
        "eval/iid/ci_high": 0.8,
        "eval/ood/camera/success": 0.5,
        "eval/iid_success": 0.7,
        "eval/seconds": 40.0,
    }
    told = Evaluation(name="told", policy="rl", metrics=metrics)
    found = compare_runs(evaluation("old", 8), [told])
    assert found.runs[1].success.keys() == {"iid", "ood/camera"}
    assert found.runs[1].success["iid"].model_dump() == {"success": 0.7, "ci95": (0.6, 0.8), "n": None}
    assert found.runs[1].success["ood/camera"].ci95 is None
    assert found.notes == ("told has metrics but no episodes: told is not paired with old",)
    assert "told" in render_html(found)
    assert compare_runs(None, [Evaluation(name="empty", policy="rl")]).problems[0].startswith("empty: has neither")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["a", "b"]), min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_names_are_distinct_and_nothing_is_lost(names: list[str], seed: int) -> None:
    """Catches: two runs of one name that become one; holds for any mix of names and policies."""
    rng = np.random.default_rng(seed)
    few = [record for record in episodes(3, n=5) if record.spec.axis == "iid"]
    runs = [Evaluation(name=name, policy=("sft", "rl")[rng.integers(2)], records=few) for name in names]
    found = compare_runs(runs[0], runs[1:])
    assert len({run.name for run in found.runs}) == len(names)
    assert [pair.run for pair in found.pairs] == [run.name for run in found.runs[1:]]


def test_folders_are_read_without_mlflow(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a server that is asked for what lies on the disk."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = two
    found = read_evaluation(str(new), "rl", "http://127.0.0.1:9")
    assert (found.name, found.policy, found.profile, found.seed) == ("new", "rl", "laptop", 2)
    assert list(found.records) == episodes(15)
    assert found.settings == read_evaluation(f"{old}/eval-sft/", "rl", "").settings != ""
    assert read_evaluation(f"{old}/eval-sft/", "rl", "").policy == "sft"
    (old / CONTEXT_FILE).unlink()
    assert read_evaluation(str(old), "sft", "") == Evaluation("old", "sft", episodes(4))
    assert tracking_uri("", [str(old), str(new)]) == "sqlite:////nowhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@server")
    assert tracking_uri("", [str(new)]) == "http://server"
    assert tracking_uri("http://given", [str(new)]) == "http://given"


def test_settings_tell_trainings_apart_but_not_their_seeds(tmp_path: Path) -> None:
    """Catches: runs of two learning rates that are averaged as two seeds, and seeds that never meet."""

    def settings(name: str, seed: int, *overrides: str) -> str:
        return read_evaluation(str(run_folder(tmp_path / name, seed, overrides, rl=3)), "rl", "").settings

    first = settings("first", 1)
    assert settings("second", 2, "eval.videos=0", "rollout.env_workers=1") == first
    assert settings("third", 3, "rl.lr=1e-4") != first
    begun = run_folder(tmp_path / "begun", 1, (), rl=3)
    (begun / "checkpoint.txt").write_text("s3://bucket/checkpoint")
    assert read_evaluation(str(begun), "rl", "").settings != first


@pytest.mark.parametrize(("name", "content"), [("profile.yaml", "a: ["), ("profile.yaml", "no"), (CONTEXT_FILE, "{}")])
def test_a_damaged_folder_is_one_line(two: tuple[Path, Path], name: str, content: str) -> None:
    (two[0] / name).write_text(content)
    with pytest.raises(UserError, match=f"{two[0] / name}: (is damaged|cannot be read)"):
        read_evaluation(str(two[0]), "rl", "")


def test_runs_in_a_store_are_read(two: tuple[Path, Path]) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for name in ("context.json", "profile.yaml", "checkpoint.txt", "eval-rl/results.jsonl"):
        files.pipe_file(f"/bucket/new/{name}", (two[1] / name).read_bytes())
    assert read_evaluation("memory://bucket/new", "rl", "") == read_evaluation(str(two[1]), "rl", "")
    with pytest.raises(UserError, match=r"memory://bucket/new/eval-sft/results.jsonl: no such results file"):
        read_evaluation("memory://bucket/new", "sft", "")


def test_the_command_shows_and_writes_everything(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on folders: table, note on seeds, page, picture and JSON."""
    out = [tmp_path / "compare.html", tmp_path / "pictures" / "compare.png"]
    code, shown, errors = run_cli(capsys, *two, "--out", out[0], "--out", out[1], "--json", tmp_path / "compare.json")
    assert (code, errors) == (0, [])
    assert "40 [26, 55]" in shown and "75 [60, 86]" in shown and "+35 [+22, +50]" in shown
    assert "power 80 %" in shown and "difference: from old, on the same episodes" in shown
    assert "Interquartile mean of old, new (seeds 1, 2), in % [95 %]:" in shown
    assert max(map(len, shown.splitlines())) <= 80
    written = Comparison.model_validate_json((tmp_path / "compare.json").read_text())
    assert written.pairs[0].difference["iid"] == compare(episodes(8), episodes(15)).iid
    page = out[0].read_text()
    assert page.startswith("<!doctype html>") and "+35.0 points on 40 shared IID episodes" in page
    assert "<script" not in page and "src=" not in page and "Over training seeds" in page
    with Image.open(out[1]) as image:
        assert min(image.size) > 400


def test_policies_can_be_chosen(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, errors = run_cli(capsys, *two, "--policy", "sft", "--json", tmp_path / "a.json")
    assert (code, errors) == (0, [])
    runs = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert [(run["name"], run["success"]["iid"]["success"]) for run in runs] == [("old SFT", 0.2), ("new SFT", 0.4)]
    assert run_cli(capsys, two[0] / "eval-sft", two[0] / "eval-rl", "--json", tmp_path / "a.json")[0] == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["old SFT", "old"]
    assert written["pairs"][0]["difference"]["iid"]["difference"] == pytest.approx(0.2)
    assert written["groups"] == []  # two policies of one run are no two seeds


def test_a_damaged_file_takes_nothing_else_away(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a traceback, results that are lost with the damaged ones, an exit code that says all is well."""
    torn = run_folder(tmp_path / "torn", rl=9)
    results = torn / "eval-rl" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join([*lines[:4], lines[4][:50] + "\n", *lines[5:]]))
    code, shown, errors = run_cli(capsys, *two, torn, "--json", tmp_path / "compare.json")
    assert code == 2
    assert len(errors) == 1 and errors[0].startswith(f"gripline: {results}: line 5: damaged: ")
    assert "+35 [+22, +50]" in shown
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["old", "new"]
    assert written["problems"] == [errors[0].removeprefix("gripline: ")]


def test_a_missing_baseline_is_told_and_the_rest_is_shown(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, errors = run_cli(capsys, tmp_path / "nowhere", *two)
    assert (code, len(errors)) == (2, 1)
    assert "nowhere: is no run folder, MLflow run id or KFP run id" in errors[0]
    assert "75 [60, 86]" in shown and "+35" not in shown


def test_lists_that_do_not_match_end_with_one_line(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_results(two[1] / "eval-rl" / "results.jsonl", episodes(12, suite="other"))
    code, shown, errors = run_cli(capsys, *two)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("gripline: new: has no episode in common with the baseline, so it is not paired; ")
    assert "40 [26, 55]" in shown and "60 [45, 74]" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "nothing"], ["nowhere: is no run folder", "nothing: is no run folder"]),
        (["old", "new", "--out", "compare.pdf"], ["compare.pdf: --out: is neither a page nor a picture; end it in"]),
        (
            ["0" * 32, "1" * 32, "--tracking", "sqlite:///none.db"],
            ["sqlite:///none.db: --tracking: no such MLflow"] * 2,
        ),
        (["old", "--json", "a.json"], ["the following arguments are required: RUN_B"]),
        (["old", "empty"], ["empty/eval-rl/results.jsonl: no such results file; give --policy sft"]),
    ],
)
def test_mistakes_are_one_line_each(
    two: tuple[Path, Path],
    arguments: list[str],
    told: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(two[0].parent)
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    code, _, errors = run_cli(capsys, *arguments)
    assert (code, len(errors)) == (2, len(told))
    assert all(text in line for text, line in zip(told, errors, strict=True))
    assert sorted(Path().rglob("*")) == before


def test_the_same_data_give_the_same_page_and_any_number_of_runs_fits(tmp_path: Path) -> None:
    """Catches: random ids; a picture that fails without pairs, without groups, or with more runs than colours."""
    runs = [evaluation(f"run-{number}", number, profile="laptop", seed=number) for number in range(9)]
    found = compare_runs(runs[0], runs[1:])
    assert render_html(found) == render_html(found)
    assert len(picture(found).axes) == 3
    assert len(picture(compare_runs(runs[0], [evaluation("other", 4)])).axes) == 2
    assert len(picture(compare_runs(None, [evaluation("other", 4)])).axes) == 1
    with pytest.raises(UserError, match="cannot be written"):
        (tmp_path / "file").write_text("")
        write_comparison(found, tmp_path / "file" / "compare.png")

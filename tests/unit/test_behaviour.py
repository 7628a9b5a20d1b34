"""Failures and conduct: which episodes count, and what may be said of a difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from components.eval import behaviour_plots
from components.eval.behaviour import MEASURES, UNCLASSIFIED, conduct, failures_by, has_failure_types, is_counted
from components.eval.behaviour_plots import COLOURS
from gripline.failures import FAILURES
from gripline.statistics import mean_interval
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec


def episode(seed: int, *, failure: str = "", axis: str = "iid", steps: int = 10, **measured: float) -> EpisodeRecord:
    spec = EpisodeSpec(
        suite="fake",
        task=f"task-{seed % 2}",
        instruction="do",
        init_seed=seed,
        split="ood" if axis == "camera" else "iid",
        axis=axis,
    )
    known = {
        "failure": "" if failure == UNCLASSIFIED else failure,
        "conduct": Conduct(**measured) if measured else None,
    }
    return EpisodeRecord(spec=spec, success=not failure, num_steps=steps, num_chunks=1, **known)


@given(st.lists(st.tuples(st.sampled_from(["", UNCLASSIFIED, *FAILURES]), st.sampled_from(["iid", "camera"]))))
def test_every_failed_episode_is_counted_once(drawn: list[tuple[str, str]]) -> None:
    """Catches a type that is forgotten: the parts of a bar must add up to the failures of its row."""
    records = [episode(seed, failure=failure, axis=axis) for seed, (failure, axis) in enumerate(drawn)]
    by_axis = failures_by(records, lambda record: record.spec.axis)
    assert {axis: found.n for axis, found in by_axis.items()} == {
        axis: sum(own == axis for _, own in drawn) for axis in by_axis
    }
    assert sum(sum(found.by_type.values()) for found in by_axis.values()) == sum(bool(name) for name, _ in drawn)
    for name in {name for name, _ in drawn if name}:
        counted = sum(found.by_type.get(name, 0) for found in by_axis.values())
        assert counted == sum(own == name for own, _ in drawn)
    assert has_failure_types(records) == any(name in FAILURES for name, _ in drawn)


def test_ablations_and_lost_episodes_are_not_counted() -> None:
    """Catches failures that were caused on purpose, or by the simulator, in the policy's account."""
    blind = episode(1, failure="time_limit", axis="no_image")
    lost = episode(2, failure=UNCLASSIFIED).model_copy(update={"error": "GL context lost"})
    assert not is_counted(blind) and not is_counted(lost)
    assert failures_by([blind, lost]) == {}


def test_differences_are_taken_where_both_policies_succeed() -> None:
    """Catches a comparison that tells who succeeds instead of how: failed episodes are the longest."""
    sft = [
        episode(0, steps=30, joint_margin=0.10),
        episode(1, steps=50, joint_margin=0.20),
        episode(2, steps=99, failure="dropped", joint_margin=0.02),
    ]
    rl = [
        episode(0, steps=20, joint_margin=0.05),
        episode(1, steps=30, joint_margin=0.15),
        episode(2, steps=60, joint_margin=0.30),
    ]
    steps, margin = conduct(sft, rl)
    assert (steps.sft, steps.rl, steps.num_both, steps.difference) == ((30, 50), (20, 30, 60), 2, -15)
    assert steps.ci95 == pytest.approx(mean_interval([-10, -20]))
    assert margin.sft == pytest.approx((10, 20, 2))
    assert (margin.num_both, margin.difference) == (2, pytest.approx(-5))
    assert (margin.verdict, steps.verdict) == ("worse", "")
    assert "joint_margin" in {each.measure.name for each in conduct(sft[:1], rl[:1])}
    assert conduct(sft[:1], rl[:1])[0].ci95 is None
    assert conduct(sft[2:], rl[2:])[0].difference is None


def test_faster_is_better_and_what_nobody_measured_is_left_out() -> None:
    """Catches a verdict with the wrong sign, and a row of a measure that a suite does not have."""
    sft = [episode(seed, steps=30 + seed, peak_contact_force_n=5.0 + seed) for seed in range(5)]
    rl = [episode(seed, steps=20 + seed, peak_contact_force_n=9.0 + seed) for seed in range(5)]
    found = {each.measure.name: each.verdict for each in conduct(sft, rl)}
    assert found == {"steps_to_success": "better", "peak_contact_force_n": "worse"}
    assert conduct([], rl) == []


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.sampled_from([0.9, 0.95]))
def test_the_mean_interval_is_students(values: list[float], confidence: float) -> None:
    """Against SciPy, which has no answer where all values are equal."""
    found = mean_interval(values, confidence)
    spread = float(np.std(values, ddof=1))
    mean, error = np.mean(values), spread / len(values) ** 0.5
    expected = stats.t.interval(confidence, len(values) - 1, mean, error) if error > 1e-9 else (mean, mean)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two or more"):
        mean_interval([1.0])


def test_every_failure_type_has_a_colour_of_its_own() -> None:
    assert list(COLOURS) == [*FAILURES, UNCLASSIFIED]
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_bars_are_as_long_as_the_share_that_failed() -> None:
    """Catches SFT's numbers in RL's bars, and a bar of the wrong row."""
    sft = [episode(seed, failure="dropped" if seed < 6 else "") for seed in range(8)]
    rl = [episode(seed, failure="collision" if seed == 1 else "") for seed in range(8)]
    by_task, by_split = behaviour_plots.failures(sft, rl).axes
    bars = [(round(bar.get_y() + bar.get_height() / 2, 2), bar.get_width()) for bar in by_task.patches]
    collisions, drops = [0, 0, 0, 12.5, 0, 25], [75, 75, 75, 0, 0, 0]
    rows = [-0.19, 0.81, 1.81, 0.19, 1.19, 2.19]
    assert bars == [*zip(rows, collisions, strict=True), *zip(rows, drops, strict=True)]
    assert [label.get_text() for label in by_task.get_yticklabels()] == ["all tasks", "task-0", "task-1"]
    assert [label.get_text() for label in by_split.get_yticklabels()] == ["IID"]


def test_the_guard_is_drawn_where_it_looked() -> None:
    """Catches an empty figure for curves of before there was a guard, and shares drawn as per cent twice."""
    assert behaviour_plots.guard([{"step": 0, "train/success": 0.5}]) is None
    shares = {f"guard/train/failure/{name}": 0.5 if name == "dropped" else 0.0 for name in FAILURES}
    curve = [{"step": step, "guard/val/conduct/joint_margin": step / 10, **shares} for step in range(3)]
    figure = behaviour_plots.guard(curve)
    failed, margin = figure.axes
    assert failed.get_ylim()[1] == pytest.approx(50, rel=0.1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dropped", "greedy, validation states"]
    (line,) = margin.lines
    assert list(line.get_ydata()) == pytest.approx([0, 10, 20])
    assert behaviour_plots.guard([{"step": 0, "guard/train/conduct/joint_margin": 0.1}]) is not None


def test_the_guards_figure_hides_and_cuts_nothing() -> None:
    """Catches a legend that lies on the curves, wherever they go, and texts that run out of the picture."""
    names = [f"failure/{name}" for name in FAILURES] + [f"conduct/{measure.name}" for measure in MEASURES]
    values = {f"guard/{source}/{name}": 0.1 for source in behaviour_plots.SOURCES for name in names}
    curve = [{"step": step, **values} for step in range(3)]
    figure = behaviour_plots.guard(curve)
    assert len(figure.axes) == 1 + len(MEASURES)
    assert not [axes for axes in figure.axes if axes.get_legend()]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(FAILURES) + 2
    boxes = [legend.get_window_extent(), *(axes.title.get_window_extent() for axes in figure.axes)]
    boxes += [text.get_window_extent() for text in (figure.axes[-1].xaxis.label, figure.axes[-1].yaxis.label)]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1

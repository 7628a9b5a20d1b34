"""What is counted, what is compared, and what is decided from it."""

import json
import random

import pytest
from rich.console import Console

from gripline.config import PromoteConfig
from gripline.errors import UserError
from gripline.statistics import bootstrap_difference_interval, detectable_difference
from gripline.summary import (
    RunFacts,
    Seconds,
    Summary,
    compare,
    compare_common,
    indifference_warnings,
    read_summary,
    summarise,
    summarise_policy,
    write_summary,
)
from gripline.tables import final_metrics, headline, markdown, policy_metrics, render_table, rows
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

OPEN, CLOSE, DRAWER = "faucet-open", "faucet-close", "drawer-open"
ABLATIONS = ("no_image", "no_instruction", "swapped_instruction")
FACTS = RunFacts(
    profile="laptop",
    seed=1,
    seconds=Seconds(demos=10, sft=20, rl=200, eval=40, total=280),
    peak_memory_mb=4096.5,
    env_steps=123456,
    mlflow_run_id="f00",
    split_hashes={"iid": "ab", "ood": "cd"},
)


def episodes(task: str, axis: str, successes: int, n: int, errors: int = 0) -> list[EpisodeRecord]:
    """n finished episodes of which the first `successes` succeed, then `errors` broken ones."""
    split = "iid" if axis in ("iid", *ABLATIONS) else "ood"
    first_seed = {"iid": 0, "camera": 1000, "light": 2000}.get(axis, 0)
    return [
        EpisodeRecord(
            spec=EpisodeSpec(
                suite="fake", task=task, instruction=axis, init_seed=first_seed + index, split=split, axis=axis
            ),
            success=index < successes,
            num_steps=10,
            num_chunks=2,
            error="" if index < n else "simulator died",
        )
        for index in range(n + errors)
    ]


def evaluation(iid: int, camera: int = 10, light: int = 10, blank: int = 0, swapped: int = 0) -> list[EpisodeRecord]:
    """Three tasks, 20 IID episodes each; counts are successes per task."""
    records = []
    for task in (OPEN, CLOSE, DRAWER):
        records += episodes(task, "iid", iid, 20)
        records += episodes(task, "camera", camera, 20) + episodes(task, "light", light, 20)
        records += episodes(task, "no_image", blank, 10) + episodes(task, "no_instruction", 5, 10)
        records += episodes(task, "swapped_instruction", 10 if task == DRAWER else swapped, 10)
    return records


def summary_of(sft: list[EpisodeRecord], rl: list[EpisodeRecord], **promote: float) -> Summary:
    config = PromoteConfig.model_validate(promote)
    shared = (OPEN, CLOSE)
    return summarise(sft, rl, facts=FACTS, promote=config, indifference_threshold=0.1, shared_scene_tasks=shared)


def test_the_file_keeps_its_promise_to_other_programs(tmp_path):
    """Catches a renamed or missing key of summary.json."""
    path = tmp_path / "summary.json"
    write_summary(path, summary_of(evaluation(8), evaluation(18)))
    found = json.loads(path.read_text())
    assert found["sft"]["iid"] == {
        "success": 0.4,
        "n": 60,
        "ci95": pytest.approx([0.2857, 0.5263], abs=1e-4),
        "errors": 0,
    }
    assert found["rl"]["ood"]["camera"]["success"] == 0.5
    assert found["rl"]["per_task"][CLOSE]["iid"]["success"] == 0.9
    assert found["rl"]["ablations"].keys() == {
        *ABLATIONS,
        "no_instruction_shared_scene",
        "swapped_instruction_shared_scene",
    }
    assert {"difference": 0.5, "n": 60, "gained": 30, "lost": 0}.items() <= found["paired"]["iid"].items()
    assert found["paired"]["iid"].keys() == {
        *("difference", "ci95", "ci95_bootstrap", "p", "p_holm", "n", "gained", "lost", "detectable")
    }
    assert found["paired"]["iid"]["p"] == pytest.approx(2 / 2**30)
    assert found["paired"]["iid"]["ci95_bootstrap"] == list(bootstrap_difference_interval([(10, 0, 10)] * 3))
    assert found["paired"]["iid"]["detectable"] == detectable_difference(60, 0.5)
    assert found["paired"]["ood"].keys() == {"camera", "light"}
    assert found["seconds"] == {"demos": 10, "sft": 20, "rl": 200, "eval": 40, "total": 280}
    assert found["promoted"] is True
    expected = {
        "peak_memory_mb": 4096.5,
        "env_steps": 123456,
        "mlflow_run_id": "f00",
        "split_hashes": FACTS.split_hashes,
    }
    assert {name: found[name] for name in expected} == expected
    assert read_summary(path) == summary_of(evaluation(8), evaluation(18))


def test_reading_is_strict(tmp_path):
    """Catches a summary of another version that is taken at face value."""
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match="No such file"):
        read_summary(path)
    write_summary(path, summary_of(evaluation(8), evaluation(18)))
    body = json.loads(path.read_text())
    body["rl"]["iid"]["sucess"] = 1
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"rl\.iid\.sucess: Extra inputs are not permitted"):
        read_summary(path)


def test_a_summary_of_before_is_read(tmp_path):
    """Catches a key that was added and is now asked for in every file."""
    path = tmp_path / "summary.json"
    write_summary(path, summary_of(evaluation(8), evaluation(18)))
    body = json.loads(path.read_text())
    old = json.dumps(body)
    for difference in (body["paired"]["iid"], *body["paired"]["ood"].values()):
        del difference["ci95_bootstrap"], difference["detectable"]
    assert json.dumps(body) != old
    path.write_text(json.dumps(body))
    summary = read_summary(path)
    assert summary.paired.iid.detectable is None
    assert "| +50 [+38, +62] |  | – | <1e-4 |" in markdown(summary)


def test_the_bootstrap_resamples_within_tasks():
    """Catches tasks that are thrown together: one is always gained, one always lost, and nothing else is possible."""
    before = episodes(OPEN, "iid", 0, 20) + episodes(CLOSE, "iid", 20, 20)
    after = episodes(OPEN, "iid", 20, 20) + episodes(CLOSE, "iid", 0, 20)
    difference = compare(before, after).iid
    assert difference.ci95_bootstrap == (0.0, 0.0)
    assert difference.ci95[0] < -0.2 < 0.2 < difference.ci95[1]


def test_the_order_of_records_does_not_matter():
    """Catches pairing by position instead of by episode."""
    sft, rl = evaluation(8), evaluation(18)
    shuffled = list(rl)
    random.Random(0).shuffle(shuffled)
    assert compare(sft, shuffled).iid == compare(sft, rl).iid
    assert compare(sft, shuffled).ood == compare(sft, rl).ood


def test_infra_errors_are_never_failures():
    """Catches a crashed simulator that lowers the policy's success, on its own or in a pair."""
    broken = episodes(OPEN, "iid", 6, 10, errors=5)
    whole = episodes(OPEN, "iid", 15, 15)
    rate = summarise_policy(broken).iid
    assert (rate.success, rate.n, rate.errors) == (0.6, 10, 5)
    assert (compare(broken, whole).iid.n, compare(whole, broken).iid.n) == (10, 10)
    dead_axis = evaluation(18) + episodes(OPEN, "fog", 0, 0, errors=4)
    found = summary_of(evaluation(8) + episodes(OPEN, "fog", 0, 0, errors=4), dead_axis)
    assert "fog" not in found.rl.ood
    assert "RL policy: lost episodes to simulator errors, not counted as failures: fog 4" in found.warnings
    with pytest.raises(UserError, match="no IID episode finished"):
        summarise_policy(episodes(OPEN, "iid", 0, 0, errors=3))


def test_other_episodes_are_not_compared():
    """Catches a paired test over lists that do not match."""
    with pytest.raises(UserError, match="not evaluated on the same episodes"):
        compare(episodes(OPEN, "iid", 5, 10), episodes(OPEN, "iid", 5, 11))


def test_what_lists_have_in_common_is_compared():
    """Catches pairs that are lost, or made of different episodes, where two runs were tested on different lists."""
    found = compare_common(episodes(OPEN, "iid", 5, 10), episodes(OPEN, "iid", 12, 20) + episodes(CLOSE, "iid", 0, 9))
    assert (found.iid.n, found.iid.gained, found.iid.lost) == (10, 5, 0)
    with pytest.raises(UserError, match="no IID episode finished with both"):
        compare_common(episodes(OPEN, "iid", 5, 10), episodes(CLOSE, "iid", 5, 10))


def test_ood_p_values_are_corrected_for_their_number():
    """Catches a lucky axis that is called significant."""
    paired = summary_of(evaluation(8, camera=5, light=5), evaluation(18, camera=7, light=9)).paired
    assert paired.ood["light"].p_holm == pytest.approx(2 * paired.ood["light"].p)
    assert paired.ood["camera"].p_holm == pytest.approx(paired.ood["camera"].p)
    assert paired.iid.p_holm is None


def test_an_ablation_is_compared_with_its_own_episodes():
    """Catches a comparison with all IID episodes, of which the ablated ones may be the easy half."""
    rate = summarise_policy(evaluation(10, blank=3)).ablations["no_image"]
    assert (rate.success, rate.intact) == (0.3, 1.0)  # the first 10 seeds are the ones that succeed


@pytest.mark.parametrize(
    "blank, swapped, expected",
    [
        (0, 0, []),
        (1, 1, []),  # a tenth is allowed
        (2, 0, ["keeps 20% of its success (0.20 of 1.00) with a black image: it hardly uses the camera"]),
        (0, 9, ["keeps 90% of its success (0.90 of 1.00) with another task's instruction: it hardly reads"]),
    ],
)
def test_indifference_is_said_loudly(blank, swapped, expected):
    """Catches a blind or deaf policy; and a false alarm about the drawer, where the picture alone tells what to do."""
    policy = summarise_policy(evaluation(20, blank=blank, swapped=swapped), (OPEN, CLOSE))
    assert policy.ablations["swapped_instruction"].success > 0.3
    assert indifference_warnings(policy, 0.1) == expected


def test_without_shared_scenes_the_text_is_judged_on_all_tasks():
    policy = summarise_policy(evaluation(20), ())
    assert indifference_warnings(policy, 0.1) == [
        "keeps 33% of its success (0.33 of 1.00) with another task's instruction: it hardly reads"
    ]


@pytest.mark.parametrize(
    "rl, promote, broken_rule",
    [
        (evaluation(18), {}, None),
        (evaluation(9), {}, "✗ gain on IID: lower 95 % bound -0.0"),
        (evaluation(18), {"min_gain": 0.45}, "✗ gain on IID: lower 95 % bound +0.377 is not above +0.450"),
        (evaluation(18, camera=7), {}, "✗ OOD camera: falls by 0.150, more than 0.1"),
        (evaluation(18, camera=7), {"ood_tolerance": 0.2}, None),
        (evaluation(18, blank=9), {}, "✗ inputs: keeps 90% of its success"),
        (evaluation(18, swapped=9), {}, "✗ inputs: keeps 90% of its success"),
        (evaluation(18, blank=9, swapped=9), {"allow_indifferent": True}, None),
        (evaluation(9, blank=9), {"allow_indifferent": True}, "✗ gain on IID"),
    ],
)
def test_promotion_says_which_rule_failed(rl, promote, broken_rule):
    """Catches a champion that is worse, regresses somewhere, or does not look."""
    found = summary_of(evaluation(8), rl, **promote)
    assert found.promoted is (broken_rule is None)
    if broken_rule is not None:
        assert any(reason.startswith(broken_rule) for reason in found.reasons), found.reasons


def test_a_promotion_in_spite_of_indifference_says_so():
    """Catches a blind champion whose report reads as if it saw."""
    found = summary_of(evaluation(8), evaluation(18, blank=9), allow_indifferent=True)
    (said,) = [reason for reason in found.reasons if "inputs" in reason]
    assert said.startswith("✓ inputs: keeps 90% of its success") and "allowed by promote.allow_indifferent" in said
    assert any(warning.startswith("RL policy: keeps 90%") for warning in found.warnings)


def test_the_table_says_every_number_once(capsys):
    """Catches a task or split that is missing from the table."""
    found = summary_of(evaluation(8), evaluation(18))
    assert [(row.split, row.task) for row in rows(found)][:5] == [
        ("IID", "all tasks"),
        ("IID", OPEN),
        ("IID", CLOSE),
        ("IID", DRAWER),
        ("camera", "all tasks"),
    ]
    console = Console(width=80)
    console.print(render_table(found))
    printed = capsys.readouterr().out
    assert "40 [29, 53]" in printed
    assert "90 [80, 95]" in printed
    assert "+50 [+38, +62]  26 <1e-4" in printed
    assert "power 80 %" in printed
    assert "shared-scene tasks" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert "…" not in printed


def test_the_headline_and_the_note():
    found = summary_of(evaluation(8), evaluation(18))
    assert headline(found) == (
        "RL succeeds on 90.0 % of 60 unseen initial states, SFT on 40.0 %: +50.0 points "
        "(95 % CI +37.7 to +62.3, exact McNemar p < 0.0001)"
    )
    note = markdown(found)
    row = "| **IID** | all tasks | 60 | 40 [29, 53] | 90 [80, 95] | +50 [+38, +62] | [+37, +63] | 26 | <1e-4 |"
    assert row in note
    assert "power 80 %" in note
    assert "**Promoted.**" in note


def test_metric_names_make_the_compare_page():
    """Catches renamed metrics: old runs and new ones must stand in the same row."""
    found = summary_of(evaluation(8), evaluation(18))
    metrics = policy_metrics(found.rl)
    names = ["iid", "ood/camera", "ablation/no_image", "ablation/swapped_instruction_shared_scene"]
    for name in (*names, f"task/{OPEN}", f"task/{OPEN}/ood/camera"):
        assert {f"eval/{name}/success", f"eval/{name}/ci_low", f"eval/{name}/ci_high"} <= metrics.keys()
    assert metrics["eval/iid/success"] == 0.9
    final = final_metrics(found)
    assert (final["sft/iid/success"], final["eval/iid/success"], final["gain/iid/difference"]) == (0.4, 0.9, 0.5)
    assert {
        "gain/iid/ci_low",
        "gain/iid/ci_high",
        "sft/ood/camera/success",
        "sft/ablation/no_image/success",
    } <= final.keys()
    assert final["gain/iid/p"] == pytest.approx(found.paired.iid.p, rel=0.01)
    assert final["gain/ood/camera/difference"] == 0.0
    assert (final["run/seconds_total"], final["run/promoted"]) == (280, 1)
    assert next(iter(final)) == "gain/iid/difference"
    evaluated = {name: value for name, value in final.items() if name.startswith("eval/")}
    assert evaluated.items() <= metrics.items()  # the pipeline's run and the evaluation's stand in the same row
    assert f"eval/task/{OPEN}/ood/camera/success" not in evaluated
    assert f"eval/task/{OPEN}/success" in evaluated
    assert f"eval/task/{OPEN}/ablation/no_image/success" in metrics
    assert f"eval/task/{OPEN}/ablation/no_image/success" not in evaluated
    assert min(evaluated).startswith("eval/iid/")  # the compare page sorts by name and shows the first few
    assert final["rl/ablation/no_image/success"] == 0.0


def test_how_episodes_ended_has_names_of_its_own():
    """Catches failures of OOD episodes among those of IID, and a compare page whose first rows are not the success."""

    def typed(records, force_n):
        conduct = Conduct(peak_contact_force_n=force_n)
        return [
            record.model_copy(update={"conduct": conduct, "failure": "" if record.success else "dropped"})
            for record in records
        ]

    found = summary_of(typed(evaluation(8), 10.0), typed(evaluation(18), 12.34567))
    metrics, final = policy_metrics(found.rl), final_metrics(found)
    assert metrics["eval/iid/failure/dropped"] == 0.1
    assert metrics["eval/iid/conduct/peak_contact_force_n"] == 12.35
    assert final["sft/iid/failure/dropped"] == 0.6
    assert final["rl/iid/conduct/peak_contact_force_n"] == 12.35
    assert not [name for name in final if name.startswith("eval/") and ("failure" in name or "conduct" in name)]

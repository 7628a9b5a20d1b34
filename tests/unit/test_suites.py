"""The registry of suites and tasks."""

import itertools

import pytest
from annotated_types import Le

from gripline.config import EnvConfig
from gripline.envs.suites import METAWORLD, SUITES, env_spec, swapped_instruction, task_info
from gripline.errors import UserError
from gripline.splits_config import OodConfig

LAPTOP_TASKS = ("faucet-open-v3", "faucet-close-v3", "drawer-open-v3")


def words(text: str) -> set[str]:
    return set(text.lower().split())


def test_unknown_names_get_the_nearest_known_one() -> None:
    """Catches a misspelt task that is found out only when a simulator is built."""
    with pytest.raises(UserError, match=r"unknown task 'drawer-opem-v3'.*did you mean 'drawer-open-v3'"):
        task_info("metaworld", "drawer-opem-v3")
    with pytest.raises(UserError, match="did you mean 'metaworld'"):
        task_info("metawrld", "drawer-open-v3")
    with pytest.raises(UserError, match="did you mean 'drawer-open-v3'"):
        env_spec(EnvConfig(tasks=("drawer_open-v3",)))


def test_a_swapped_instruction_is_one_of_the_same_scene() -> None:
    """Catches an ablation that names an object which is not there: the policy may then do nothing and look obedient."""
    assert swapped_instruction("metaworld", "faucet-open-v3", LAPTOP_TASKS[::-1]) == "close the faucet"
    assert swapped_instruction("metaworld", "faucet-close-v3", LAPTOP_TASKS) == "open the faucet"
    assert swapped_instruction("metaworld", "drawer-open-v3", LAPTOP_TASKS) == "open the faucet"
    with pytest.raises(UserError, match="second task"):
        swapped_instruction("metaworld", "drawer-open-v3", ("drawer-open-v3",))


def test_two_laptop_tasks_share_a_scene_and_its_range() -> None:
    """Catches faucets whose positions tell the task: the stock ranges differ."""
    first, second = (task_info("metaworld", task) for task in LAPTOP_TASKS[:2])
    assert first.scene == second.scene
    assert (first.inside, first.outside) == (second.inside, second.outside)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_instructions_and_paraphrases(suite: str) -> None:
    """Catches paraphrases that are no test: known word for word, given twice, or beyond guessing for want of a word.

    A policy trained on these instructions alone knows no synonyms: what is left of a paraphrase without its unknown
    words must not fit another task of the scene as well.
    """
    tasks = SUITES[suite].tasks
    known = set().union(*(words(info.instruction) for info in tasks.values()))
    assert len({info.instruction for info in tasks.values()}) == len(tasks)
    texts = [text for info in tasks.values() for text in info.paraphrases]
    assert len(set(texts)) == len(texts)
    for task, info in tasks.items():
        mates = [other for name, other in tasks.items() if other.scene == info.scene and name != task]
        assert len(info.paraphrases) >= 2
        for text in info.paraphrases:
            assert words(text) - known, f"{text!r} has no new word"
            for mate in mates:
                assert words(text) & (words(info.instruction) - words(mate.instruction)), text
                assert not words(text) & (words(mate.instruction) - words(info.instruction)), text


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_distractors_have_places_that_do_not_touch(suite: str) -> None:
    """Catches a profile whose number of distractors finds no room, and one that hides in another."""
    info = SUITES[suite]
    most = next(part.le for part in OodConfig.model_fields["distractors"].metadata if isinstance(part, Le))
    assert len(set(info.distractor_places_m)) == len(info.distractor_places_m) >= most
    apart = 2 * (info.distractor_size_m[1] + info.distractor_jitter_m)
    for (x, y), (other_x, other_y) in itertools.combinations(info.distractor_places_m, 2):
        assert max(abs(x - other_x), abs(y - other_y)) >= apart - 1e-9


def test_env_spec_says_what_success_means() -> None:
    """Catches a report that cannot explain its numbers."""
    spec = env_spec(EnvConfig(tasks=LAPTOP_TASKS, image_size_px=32, horizon_steps=50))
    assert spec.tasks == LAPTOP_TASKS and spec.image_size_px == 32 and spec.horizon_steps == 50
    assert spec.action_dim == len(METAWORLD.action_low_A) == 4
    assert all(task in spec.success_means for task in LAPTOP_TASKS)

"""A checkpoint says which initial states it has seen, and is not tested on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.checkpoint import Contract, Manifest, Provenance
from gripline.errors import UserError
from gripline.seen_states import check_unseen, seen_in, united, unpacked
from gripline.types import EpisodeSpec

seeds = st.sets(st.integers(0, 2**31 - 1), max_size=20)


def spec(task: str, seed: int, **changes: object) -> EpisodeSpec:
    fields: dict[str, object] = {"suite": "toy", "task": task, "instruction": "", "init_seed": seed, "split": "iid"}
    return EpisodeSpec.model_validate(fields | changes)


def manifest(seen: dict[str, str]) -> Manifest:
    contract = Contract(
        suite="toy", cameras=("top",), image_size_px=32, proprio_dim=0, action_dim=1, action_low_A=(-1,),
        action_high_A=(1,), num_actions=1, num_bins=4,
    )  # fmt: skip
    return Manifest(
        policy="tiny", contract=contract, heads_trained=("token",), provenance=Provenance(stage="sft", seen_states=seen)
    )


@given(seeds, seeds)
def test_states_come_back_and_are_united(first: set[int], second: set[int]) -> None:
    """Catches seeds that are cut off or lost, and parents that are forgotten."""
    one, two = (seen_in(spec("a", seed) for seed in own) for own in (first, second))
    both = united(one, two | seen_in([spec("b", 7)]))
    assert unpacked(both.get("a", "")) == first | second
    assert unpacked(both["b"]) == {7}


@given(seeds, seeds)
def test_a_checkpoint_is_refused_exactly_where_it_has_seen_a_tested_state(seen: set[int], tested: set[int]) -> None:
    checkpoint = manifest(seen_in(spec("a", seed) for seed in seen))
    specs = [spec("a", seed) for seed in tested] + [spec("b", seed) for seed in seen]
    specs += [spec("a", seed, region="outside", split="ood", axis="position") for seed in seen]
    if seen & tested:
        with pytest.raises(UserError, match=r"^there: .*trained on a init seed \d+, which this run tests \(list 'iid'"):
            check_unseen(checkpoint, specs, where="there")
    else:
        assert check_unseen(checkpoint, specs, where="there") == bool(seen)


def test_a_task_that_training_saw_is_not_tested_as_unseen() -> None:
    checkpoint = manifest(seen_in([spec("a", 1)]))
    tested = [spec("a", 2, split="ood", axis="unseen_task")]
    with pytest.raises(UserError, match=r"trained on task 'a', which this run tests as unseen; choose other"):
        check_unseen(checkpoint, tested, where="there")


def test_a_damaged_list_is_one_line() -> None:
    for text in ("AAA", "AAAA", "ä"):
        with pytest.raises(UserError, match=r"seen_states: is damaged"):
            check_unseen(manifest({"a": text}), [], where="there")

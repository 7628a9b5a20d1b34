"""Evaluation on the real simulator: the same bytes whatever the number of workers."""

from pathlib import Path

from learning.conftest import context_json

from components.eval import evaluate
from gripline import profiles, stages
from gripline.envs.suites import env_spec, task_info
from gripline.policies import build_policy, save_policy
from gripline.results import read_results
from gripline.splits import build_splits


def test_meta_world_episodes_are_bit_equal_for_1_and_2_workers(tmp_path: Path) -> None:
    """Catches: a simulator, a picture or a batch that depends on what else its process did. The policy is untrained:
    its best two actions lie closest together, so that the smallest difference shows."""
    profile = profiles.load("smoke")
    splits = build_splits(profile)
    splits.write(tmp_path / "splits.json")
    instructions = [task_info(profile.env.suite, task).instruction for task in profile.env.tasks]
    policy = build_policy(profile.policy, env_spec(profile.env), instructions=instructions, seed=1)
    policy.heads_trained = ("token",)
    save_policy(tmp_path / "policy", policy, env=profile.env, stage="sft")
    found = []
    for workers in (1, 2):
        rollout = profile.rollout.model_copy(update={"env_workers": workers, "slots_per_worker": 3})
        section = stages.EvalStage(env=profile.env, rollout=rollout, eval=profile.eval, seed=1)
        evaluate.run(
            context=context_json(tmp_path / str(workers), splits),
            config=section.model_dump_json(),
            splits_path=str(tmp_path / "splits.json"),
            policy_uri=str(tmp_path / "policy"),
            stage="sft",
            results_path=str(tmp_path / f"{workers}.jsonl"),
        )
        found.append((tmp_path / f"{workers}.jsonl").read_bytes())
    assert found[0] == found[1]
    assert not any(record.error for record in read_results(tmp_path / "1.jsonl", splits.tested))

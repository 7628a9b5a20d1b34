"""The gate on real, tiny checkpoints: a sound one passes, a broken one is stopped by the line that names its fault."""

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from learning.conftest import PROFILE, FakeTracker, context_json, tune

from components.eval import gate
from gripline import stages, tracking
from gripline.config import Profile, PromoteConfig
from gripline.demos.dataset import FILE_NAME
from gripline.envs import make_env
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.policies import ActionStatistics, build_policy, load_policy, save_policy
from gripline.policies.vla import VLA
from gripline.results import read_results, write_results
from gripline.rollout import standard
from gripline.types import EpisodeRecord

IID = {"iid_per_task": 10, "val_per_task": 8}
LENIENT = PromoteConfig(gate_min_success=0.0, gate_max_success=1.0)


class Evaluated:
    """A policy with an evaluation of its own, beside the SFT run that it came from."""

    def __init__(self, trained, folder: Path, uri: str) -> None:
        self.profile, _, self.splits, sft_uri = trained
        self.demos = Path(sft_uri).parents[1] / "demos"
        self.folder, self.uri, self.results = folder, uri, folder / "results.jsonl"
        shutil.copytree(Path(sft_uri).parent, folder / "sft", ignore=shutil.ignore_patterns("checkpoint"))
        self.context = context_json(folder, self.splits)
        write_results(self.results, list(self._episodes()))

    def _episodes(self) -> Iterator[EpisodeRecord]:
        """The IID list, greedily, as policy servers and env workers would run it."""
        served, env = standard.make_served_policy(self.uri), make_env(self.profile.env)
        for spec in self.splits.lists["iid"]:
            observation, actions, num_steps = env.reset(spec), [], 0
            while True:
                actions.append(served.act([observation], noise_keys=None, temperature=1.0).actions_BKA[0])
                step = env.step(actions[-1])
                observation, num_steps = step.observation, num_steps + step.num_steps
                if step.success or step.truncated:
                    break
            yield EpisodeRecord(
                spec=spec,
                success=step.success,
                num_steps=num_steps,
                num_chunks=len(actions),
                actions_TKA=[chunk_KA.tolist() for chunk_KA in actions],
            )

    def gate(self, limits: PromoteConfig = LENIENT, *, uri: str = "", method: str = "full", demos: str = ""):
        profile = self.profile
        learning = profile.rl.model_copy(update={"method": method})
        return gate.run(
            context=self.context,
            config=stages.PromoteStage(env=profile.env, promote=limits, eval=profile.eval).model_dump_json(),
            rl_config=stages.RlStage(env=profile.env, rollout=profile.rollout, rl=learning, seed=1).model_dump_json(),
            policy_uri=uri or self.uri,
            demos_path=demos or str(self.demos),
            results_path=str(self.results),
            table_path=str(self.folder / "findings.md"),
        )


@pytest.fixture(autouse=True)
def tracker(monkeypatch):
    tracker = FakeTracker()
    monkeypatch.setattr(tracking, "stage_run", lambda context, stage: nullcontext(tracker))
    return tracker


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Trained for long enough that there is a fit to speak of."""
    more = {"demos": {"per_task": 24, "held_out_per_task": 4, "workers": 1}, "splits": PROFILE["splits"] | IID}
    more |= {"sft": PROFILE["sft"] | {"steps": 160, "batch_size": 32, "eval_every": 160}}
    trained = tune(tmp_path_factory.mktemp("trained"), Profile.model_validate(PROFILE | more))
    return Evaluated(trained, tmp_path_factory.mktemp("gate"), trained[3])


def broken(evaluated: Evaluated, folder: Path, change) -> str:
    """The same checkpoint after `change(vla)`, with the record of how it was trained."""
    vla = load_policy(evaluated.uri)
    with torch.no_grad():
        change(vla)
    provenance = json.loads((Path(evaluated.uri) / "manifest.json").read_text())["provenance"]
    save_policy(folder / "broken", vla, **provenance)
    return str(folder / "broken")


def tuned_of(evaluated: Evaluated):
    return evaluated.profile, None, evaluated.splits, evaluated.uri


def as_initialised(evaluated: Evaluated, seed: int) -> VLA:
    profile = evaluated.profile
    texts = ["touch the red square", "touch the blue square"]
    vla = build_policy(profile.policy, env_spec(profile.env), instructions=texts, seed=seed)
    assert isinstance(vla, VLA)
    return vla


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_sound_policy_passes_and_leaves_its_numbers(evaluated, tracker, method):
    """Catches: a false alarm; numbers that do not reach MLflow; adapters that are no identity at first."""
    numbers = evaluated.gate(method=method)
    assert {name for name in numbers if name.endswith("_passed")} == {
        *("head_passed", "logprobs_passed", "fit_passed", "success_passed")
    }
    assert all(value == 1 for name, value in numbers.items() if name.endswith("_passed"))
    assert numbers["logprobs_gap"] < 1e-5 and numbers["logprobs_replay_gap"] < 1e-6
    assert numbers["fit_error"] == pytest.approx(numbers["fit_sft_error"], abs=0.02)
    assert numbers["fit_skill"] > 0.2
    ((_, logged),) = tracker.metrics
    assert logged == {f"gate/{name.replace('_', '/', 1)}" if "_" in name else f"gate/{name}": value
                      for name, value in numbers.items()}  # fmt: skip
    assert (evaluated.folder / "findings.md").read_text().count("| passed |") == 4


def test_a_head_that_training_never_reached(evaluated, tmp_path):
    """Catches: a checkpoint whose head was lost and initialised anew by the seed that it was made from."""
    fresh = as_initialised(evaluated, seed=1)
    uri = broken(evaluated, tmp_path, lambda vla: vla.head.linear.weight.copy_(fresh.head.linear.weight))
    with pytest.raises(UserError, match=r"broken: promote.gate_head: head.linear.weight is still as initialised"):
        evaluated.gate(uri=uri)


def test_a_head_with_other_random_weights(evaluated, tmp_path):
    """Catches: a tensor that an import filled with noise; its own evaluation agrees with it, its own fit does not."""
    fresh = as_initialised(evaluated, seed=5)
    uri = broken(evaluated, tmp_path, lambda vla: vla.head.load_state_dict(fresh.head.state_dict()))
    own = Evaluated(tuned_of(evaluated), tmp_path / "own", uri)
    with pytest.raises(UserError, match=r"broken: promote.gate_fit: as served, it errs by .* at the end of SFT by"):
        own.gate(demos=str(evaluated.demos))


def test_a_head_of_zeros_answers_like_chance(evaluated, tmp_path):
    def erase(vla):
        for parameter in vla.head.parameters():
            parameter.zero_()

    with pytest.raises(UserError, match=r"promote.gate_head: its answers are spread over the action bins like chance"):
        evaluated.gate(uri=broken(evaluated, tmp_path, erase))


def test_weights_that_are_not_numbers(evaluated, tmp_path):
    uri = broken(evaluated, tmp_path, lambda vla: vla.head.linear.weight[0].fill_(float("nan")))
    with pytest.raises(UserError, match=r"promote.gate_head: head.linear.weight is not finite"):
        evaluated.gate(uri=uri)


def test_statistics_of_other_actions(evaluated, tmp_path):
    """Catches: actions un-normalised by another data set's bounds; the training's own fit, in tokens, looks fine."""
    other = ActionStatistics.between((-0.1, -0.1), (0.1, 0.1))
    uri = broken(evaluated, tmp_path, lambda vla: vla.set_action_statistics(other))
    own = Evaluated(tuned_of(evaluated), tmp_path / "own", uri)
    with pytest.raises(UserError, match=r"promote.gate_fit: as served, .*statistics.json \(action un-normalisation\)"):
        own.gate(demos=str(evaluated.demos))


def test_another_checkpoint_was_evaluated(evaluated, tmp_path):
    """Catches: results of one policy, RL from another."""
    uri = broken(evaluated, tmp_path, lambda vla: vla.action_slots.mul_(-1.0))
    with pytest.raises(UserError, match=r"results.jsonl: promote.gate_logprobs: the recorded actions are .* nats less"):
        evaluated.gate(uri=uri)


def test_policy_servers_with_other_weights(evaluated, monkeypatch):
    """Catches: weights that change on their way to a policy server, found before RL instead of in it."""
    serve = standard.make_served_policy

    def serve_changed(uri):
        policy = serve(uri)
        with torch.no_grad():
            policy.vla.head.linear.weight[0] += 0.05
        return policy

    monkeypatch.setattr(standard, "make_served_policy", serve_changed)
    with pytest.raises(UserError, match=r"rl.logprob_tolerance: served log-probs differ from the learner's own by"):
        evaluated.gate()


def test_actions_that_never_change(evaluated, tmp_path):
    """Catches: a policy that has learned one answer."""
    records = read_results(evaluated.results)
    still = [
        record.model_copy(update={"actions_TKA": tuple(((0.5, 0.5),) for _ in record.actions_TKA)})
        for record in records
    ]
    own = Evaluated(tuned_of(evaluated), tmp_path / "own", evaluated.uri)
    write_results(own.results, still)
    with pytest.raises(UserError, match=r"promote.gate_head: all \d+ recorded action chunks are the same"):
        own.gate(demos=str(evaluated.demos))


def test_a_warning_does_not_stop_and_off_does_not_look(evaluated, tmp_path, monkeypatch, capsys):
    uri = broken(evaluated, tmp_path, lambda vla: vla.head.linear.weight[0].fill_(float("nan")))
    actions = {f"gate_{check}": "warn" for check in ("head", "logprobs", "fit", "success")}
    numbers = evaluated.gate(LENIENT.model_copy(update=actions), uri=uri)
    assert numbers["head_passed"] == 0
    assert "[gate] warn head: " in capsys.readouterr().out
    monkeypatch.delattr(standard, "make_served_policy")
    off = {f"gate_{check}": "off" for check in ("head", "logprobs", "fit")}
    assert evaluated.gate(LENIENT.model_copy(update=off), uri=uri).keys() == {
        "success_iid",
        "success_passed",
        "seconds",
    }


def test_a_given_checkpoint_has_no_demonstrations(evaluated, tmp_path):
    """Catches: a run from a checkpoint that the gate cannot let through."""
    assert not (tmp_path / FILE_NAME).exists()
    assert evaluated.gate(demos=str(tmp_path))["fit_passed"] == 1
    assert "| fit | passed | not checked: the run starts from a checkpoint" in (
        (evaluated.folder / "findings.md").read_text()
    )


def test_the_success_is_looked_at_last(evaluated):
    with pytest.raises(UserError, match=r"results.jsonl: promote.gate_min_success: IID success"):
        evaluated.gate(PromoteConfig(gate_min_success=1.0, gate_max_success=1.0, gate_fit="off"))


def test_replayed_chunks_are_what_the_policy_saw(evaluated):
    """Catches: observations that are shifted against the actions by a chunk."""
    from components.eval import probe

    records = [record for record in read_results(evaluated.results) if record.spec.axis == "iid"]
    seen = probe.recorded_chunks(evaluated.profile.env, records)
    vla = load_policy(evaluated.uri)
    tokens = probe.logits_of(vla, seen.observations).argmax(-1).numpy()
    assert np.allclose(vla.decode_actions(tokens), seen.actions_BKA)
    assert len({row.instruction for row in seen.observations}) == 2


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_gate_computes_what_the_learner_computes(evaluated, method):
    """Catches: a learner that is built in another way than the gate believes, so that the gate proves nothing."""
    from components.eval import probe
    from components.rl.learner import Learner

    config = evaluated.profile.rl.model_copy(update={"method": method})
    records = read_results(evaluated.results)[:4]
    observations = probe.recorded_chunks(evaluated.profile.env, records).observations
    own = probe.as_learned(load_policy(evaluated.uri), config, seed=1)
    learner = Learner(Path(evaluated.uri), config, seed=1)
    assert own.state_dict().keys() == learner.vla.state_dict().keys()
    assert torch.equal(probe.logits_of(own, observations), probe.logits_of(learner.vla, observations))

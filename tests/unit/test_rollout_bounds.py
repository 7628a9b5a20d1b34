"""The rollout benchmark's lower bounds: no simulated schedule beats them, and good schedules come near."""

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # a folder of scripts, not a package

from bounds import bounds, chain_s, cores_s, serial_slots_s, simulators_s, slots_s
from cost_model import CostEnv, CostModel, CostPolicy
from simulation import Episode, FirstCome, best_first_come_s, makespan_s

models = st.builds(
    CostModel,
    name=st.just("random"),
    env_workers=st.integers(1, 3),
    slots_per_worker=st.integers(1, 4),
    spare_slots=st.integers(0, 2),
    policy_replicas=st.integers(1, 2),
    episodes=st.integers(1, 14),
    horizon_chunks=st.integers(1, 6),
    chunk_s=st.sampled_from([0.001, 0.01, 0.08, 1.0]),
    serial=st.just(False),
    jitter_sigma=st.sampled_from([0.0, 0.5]),
    success_rate=st.sampled_from([0.0, 0.5, 1.0]),
    reset_s=st.sampled_from([0.0, 0.05, 0.5]),
    policy_base_s=st.sampled_from([0.0, 0.02, 0.3]),
    policy_row_s=st.sampled_from([0.0, 0.002, 0.1]),
    seed=st.integers(0, 1000),
)
serial_models = models.map(lambda model: replace(model, serial=True, jitter_sigma=0.0))


@dataclass
class Arbitrary:
    """Batches of any rows, idle policies, cores that take any job: whatever `chance` says, more or less patiently."""

    chance: random.Random
    patience: float

    def batch(self, waiting: list[Episode]) -> list[Episode]:
        if self.chance.random() < self.patience:
            return []
        return self.chance.sample(waiting, self.chance.randint(1, len(waiting)))

    def job(self, jobs: list[tuple[str, Episode]]) -> int:
        return self.chance.randrange(len(jobs))


@settings(max_examples=200, deadline=None)
@given(st.one_of(models, serial_models), st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.7]))
def test_no_schedule_beats_the_bound(model: CostModel, seed: int, patience: float) -> None:
    """Catches: an argument that some schedule escapes, for instance by idling, large batches or lucky draws."""
    bound_s = bounds(model).makespan_s
    assert makespan_s(model, Arbitrary(random.Random(seed), patience)) >= bound_s - 1e-9
    for cap in range(1, model.slots + 1):
        assert makespan_s(model, FirstCome(cap)) >= bound_s - 1e-9


@pytest.mark.parametrize(
    ("model", "bound_of", "within"),
    [
        (CostModel("base", spare_slots=8), slots_s, 0.02),
        (CostModel("saturated policy", spare_slots=8, chunk_s=0.001, horizon_chunks=16), slots_s, 0.05),
        (CostModel("slow resets", horizon_chunks=2, reset_s=2.0, episodes=288), simulators_s, 0.04),
        (CostModel("busy cores", serial=True, chunk_s=0.05, episodes=64), cores_s, 0.02),
        (
            CostModel("one slot each", serial=True, chunk_s=0.05, env_workers=2, slots_per_worker=1, reset_s=0.01),
            serial_slots_s,
            0.01,
        ),
        (CostModel("one episode", jitter_sigma=0.5, episodes=1), chain_s, 1e-9),
    ],
    ids=lambda value: value.name if isinstance(value, CostModel) else "",
)
def test_a_simple_schedule_comes_near(model: CostModel, bound_of: object, within: float) -> None:
    """Catches: a bound so low that it says nothing; each argument is the deciding one somewhere."""
    assert callable(bound_of)
    bound_s = bound_of(model)
    assert bound_s == bounds(model).makespan_s
    assert bound_s - 1e-9 <= best_first_come_s(model) <= bound_s * (1 + within)


def test_serial_bound_refuses_what_it_was_not_derived_for() -> None:
    with pytest.raises(ValueError, match="chunks of equal cost"):
        bounds(CostModel("x", serial=True, jitter_sigma=0.1))


def test_draws_are_keyed_and_as_described() -> None:
    """Catches: costs that depend on who asks, a mean that is not 1, episodes that succeed at other rates."""
    model = CostModel("jitter", jitter_sigma=0.5, success_rate=0.5, episodes=2000)
    again, other = model.draw(7), replace(model, seed=1).draw(7)
    np.testing.assert_array_equal(again.step_s_T, model.all_costs[7].step_s_T)
    assert not np.array_equal(other.step_s_T, again.step_s_T)
    step_s_ET = np.stack([costs.step_s_T for costs in model.all_costs])
    assert step_s_ET.mean() == pytest.approx(model.chunk_s, rel=0.01)
    assert np.log(step_s_ET).std() == pytest.approx(0.5, rel=0.02)
    lengths = [costs.num_chunks for costs in model.all_costs if costs.success]
    assert len(lengths) == pytest.approx(1000, abs=80)
    assert (min(lengths), max(lengths)) == (1, 64) and np.mean(lengths) == pytest.approx(32.5, abs=2)
    assert {costs.num_chunks for costs in model.all_costs if not costs.success} == {64}


def test_environment_and_policy_do_what_was_drawn() -> None:
    """Catches: a benchmark whose episodes are longer or cheaper than the bound believes."""
    model = CostModel("fast", chunk_s=1e-5, reset_s=0.0, policy_base_s=0.0, policy_row_s=0.0, success_rate=0.5)
    env, policy = CostEnv(model), CostPolicy(model)
    for episode in range(20):
        observation, steps = env.reset(model.spec(episode)), 0
        while True:
            answer = policy.act([observation], noise_keys=None, temperature=1.0)
            step = env.step(answer.actions_BKA[0])
            steps += step.num_steps
            if step.success or step.truncated:
                break
        costs = model.all_costs[episode]
        assert (steps, step.success) == (costs.num_chunks * model.steps_per_chunk, costs.success)

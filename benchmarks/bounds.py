r"""No schedule can be faster than this: lower bounds on the makespan M of a rollout, from the drawn costs.

Legend: E episodes of N chunks in all on W workers with s slots each (S = W·s act at the same time, further spare
simulators only reset and wait; Q of them), R policy replicas; a batch of n rows takes a + b·n; chunk i steps for c_i,
episode e resets for r_e; r0 is the shortest reset. Batch k has n_k rows, there are m batches, Σ n_k = N. A row stays in
its batch for the whole of the batch's time, and a batch's rows belong to different slots.

Every engine of the benchmark keeps to these rules, whatever it knows in advance; the bounds hold for clairvoyant
schedules too. Where several hold, the largest counts.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from cost_model import CostModel


@dataclass(frozen=True)
class Bounds:
    """Seconds that each argument proves; 0 where it does not apply."""

    slots_s: float
    simulators_s: float
    cores_s: float
    chain_s: float

    @property
    def makespan_s(self) -> float:
        """No schedule ends earlier."""
        return max(asdict(self).values())


def bounds(model: CostModel) -> Bounds:
    """All bounds of one case."""
    return Bounds(
        slots_s=serial_slots_s(model) if model.serial else slots_s(model),
        simulators_s=simulators_s(model),
        cores_s=cores_s(model) if model.serial else 0.0,
        chain_s=chain_s(model),
    )


def slots_s(model: CostModel) -> float:
    r"""Slot time: S·(M − r0) ≥ Σ c_i + a·N + b·N²/m with m = min(N, (R·(M − r0) − b·N)/a).

    Nothing acts before the first reset has ended, so S slots have S·(M − r0) seconds. At any time a slot is stepping,
    or its row is in a batch, or neither, never both: S·(M − r0) ≥ Σ c_i + Σ_k n_k·(a + b·n_k) = Σ c_i + a·N + b·Σ n_k².
    By Cauchy and Schwarz Σ n_k² ≥ N²/m: large batches keep many rows waiting for one another. Small ones cost the
    policy its base time each: R replicas have R·(M − r0) seconds for a·m + b·N, which limits m; and m ≤ N. The right
    side falls with M and the left one grows, so the smallest M that satisfies both is found by bisection.
    """
    return _smallest(model, lambda after_s: _acting_s(model, after_s) <= model.slots * after_s)


def simulators_s(model: CostModel) -> float:
    r"""Simulator time: (S + Q)·M ≥ Σ r_e + Σ c_i + a·N + b·N²/m, for slots and spares together.

    A simulator is busy with one episode at a time, from the beginning of its reset to its end; while it resets it
    neither steps nor has a row in a batch. This is the larger bound where resets are long: spares hide them from the
    slots, but not from themselves. (m as in `slots_s`.)
    """
    simulators = model.slots + model.env_workers * model.spare_slots

    def enough(after_s: float) -> bool:
        return model.episodes * model.reset_s + _acting_s(model, after_s) <= simulators * (after_s + model.reset_s)

    return _smallest(model, enough)


def serial_slots_s(model: CostModel) -> float:
    r"""Slot time where a worker's simulators share one core and every chunk takes c on it:
    S·(M − r0) ≥ a·N + b·N²/m + c·max(N, N²/(W·m)) − c·S·(s − 1) + s·(E − W)·max(0, r − a − b·S).

    Look at the n rows of one batch that belong to one worker. *After* the batch none of them steps before it ends, and
    the core takes them one by one: the j-th that finishes does so at least j·c later, together c·n(n+1)/2 of slot time.
    *Before* it, each of these slots had finished its previous chunk (of this episode, or of the slot's episode before),
    and these n finishes lie at least c apart on that core: the slot that finished j-th last has been without work for
    at least (j − 1)·c, together c·n(n−1)/2. (Episodes that act can be given persistent slot numbers, since never more
    than s of them act on a worker.) The sum is c·n², and the stretches before, in and after a batch are disjoint for a
    slot. A slot's very first row has no previous chunk; leaving out the s first rows of a worker takes away at most
    s·(s − 1)·c: removing one row from a batch of n takes away (n − 1)·c of the stretches before it, and n ≤ s.
    Over workers, Σ_w n_w² ≥ n²/W by Cauchy and Schwarz and Σ_w n_w² ≥ n since they are whole numbers; then Σ_k n_k² ≥
    N²/m as in `slots_s`, with the same m.
    The last term: while a core resets, none of its worker's s slots steps, and without a step between them a slot sees
    at most one batch, of a + b·S at most; for the rest of r it is idle. That comes on top, for above only the core's
    steps were counted in the stretches before and after batches, and a reset takes core time of its own. It holds for
    every reset after r0: all but the first of each worker.
    """
    if model.jitter_sigma:
        raise ValueError(f"case {model.name}: this bound needs chunks of equal cost")
    exempt_s = model.chunk_s * model.slots * (model.slots_per_worker - 1)
    idle_s = model.slots_per_worker * max(0.0, model.reset_s - model.batch_s(model.slots))
    fixed_s = model.policy_base_s * model.num_chunks - exempt_s + idle_s * max(0, model.episodes - model.env_workers)

    def enough(after_s: float) -> bool:
        squares = _least_squares(model, after_s)
        stepping_s = model.chunk_s * max(model.num_chunks, squares / model.env_workers)
        return fixed_s + model.policy_row_s * squares + stepping_s <= model.slots * after_s

    return _smallest(model, enough)


def cores_s(model: CostModel) -> float:
    """Core time where a worker's simulators share one core: W·M ≥ Σ c_i + Σ r_e, since one steps or resets at a time,
    and after the last batch or before the first one no core gains anything."""
    return (model.useful_step_s + model.episodes * model.reset_s) / model.env_workers


def chain_s(model: CostModel) -> float:
    """The longest single episode: M ≥ r_e + Σ c_i + T_e·(a + b), for its chunks follow one another and a row's batch
    takes at least a + b."""
    answer_s = model.batch_s(1)
    lengths_s = (costs.step_s_T[: costs.num_chunks].sum() + answer_s * costs.num_chunks for costs in model.all_costs)
    return float(max(lengths_s)) + model.reset_s


def _acting_s(model: CostModel, after_s: float) -> float:
    """Slot time that acting takes at least: Σ c_i + a·N + b·N²/m."""
    squares_s = model.policy_row_s * _least_squares(model, after_s)
    return model.useful_step_s + model.policy_base_s * model.num_chunks + squares_s


def _least_squares(model: CostModel, after_s: float) -> float:
    """The least Σ n_k² when the policy has `after_s` seconds: N²/m; infinite when they do not suffice for N rows."""
    free_s = model.policy_replicas * after_s - model.policy_row_s * model.num_chunks
    if free_s <= 0:
        return float("inf")
    most = min(model.num_chunks, free_s / model.policy_base_s) if model.policy_base_s else model.num_chunks
    return model.num_chunks**2 / most


def _smallest(model: CostModel, enough: Callable[[float], bool]) -> float:
    """The smallest M = r0 + after_s for which `enough(after_s)` holds: it fails below and holds above. Rounded down."""
    low_s, high_s = 0.0, 1.0
    while not enough(high_s):
        high_s *= 2
    for _ in range(60):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (low_s, middle_s) if enough(middle_s) else (middle_s, high_s)
    return model.reset_s + low_s

"""Do the intervals hold what they promise? Experiments with known truths, as many as asked for, at several n.

Each function returns, for each truth and n, which share of the intervals held the truth; `false_positives` returns how
often the paired test saw a difference where there is none.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from gripline.statistics import (
    bootstrap_difference_interval,
    exact_mcnemar,
    interquartile_interval,
    interquartile_mean,
    paired_difference_interval,
    wilson_interval,
)

RATES = (0.05, 0.2, 0.5, 0.8, 0.95)
RATE_NS = (20, 60, 120, 400)
PAIRED = {
    "no difference, 10 % change": ((0.05, 0.05), (0.05, 0.05), (0.05, 0.05)),
    "no difference, 50 % change": ((0.25, 0.25), (0.25, 0.25), (0.25, 0.25)),
    "no difference, but on each task": ((0.30, 0.10), (0.10, 0.30), (0.10, 0.10)),
    "+15 points": ((0.30, 0.10), (0.25, 0.10), (0.20, 0.10)),
    "+40 points": ((0.60, 0.05), (0.45, 0.05), (0.30, 0.05)),
}
"""Truth -> for each of three tasks, the share of episodes gained, and lost."""
PAIRED_NS = (30, 60, 120, 420)
SEEDS_AND_TASKS = ((2, 3), (3, 3), (3, 10), (5, 3), (10, 10))
SEED_SPREAD = 0.06
"""Standard deviation of a task's success over training seeds."""
EPISODES_PER_TASK = 40
Shares = dict[str, float]
Counts = tuple[tuple[int, int, int], ...]
"""For each task: gained, lost, unchanged."""


def wilson(experiments: int) -> Shares:
    """Of a success rate."""
    rng = np.random.default_rng(1)
    interval = cache(wilson_interval)
    shares = {}
    for n in RATE_NS:
        for rate in RATES:
            intervals = [interval(int(successes), n) for successes in rng.binomial(n, rate, size=experiments)]
            shares[f"rate {rate:g}, n {n}"] = float(np.mean([low <= rate <= high for low, high in intervals]))
    return shares


def score(experiments: int) -> Shares:
    """Of a paired difference: the score interval, over all tasks."""
    interval = cache(paired_difference_interval)
    return _paired(experiments, lambda counts: interval(_sum(counts, 0), _sum(counts, 1), sum(map(sum, counts))))


def bootstrap(experiments: int) -> Shares:
    """Of a paired difference: the bootstrap stratified by task."""
    return _paired(experiments, cache(bootstrap_difference_interval))


def false_positives(experiments: int) -> Shares:
    """Of the exact McNemar test at 5 %."""
    test = cache(exact_mcnemar)
    return {
        where: float(np.mean([test(_sum(counts, 0), _sum(counts, 1)) <= 0.05 for counts in drawn]))
        for where, truth, drawn in _experiments(experiments)
        if truth == 0
    }


def seeds(experiments: int) -> Shares:
    """Of an interquartile mean over training seeds; each task has a success of its own."""
    rng = np.random.default_rng(3)
    shares = {}
    for num_seeds, num_tasks in SEEDS_AND_TASKS:
        rates_T = np.linspace(0.25, 0.9, num_tasks)
        truth = interquartile_mean(_trained(rng, 100_000, rates_T))
        held = 0
        for _ in range(experiments):
            low, high = interquartile_interval(_trained(rng, num_seeds, rates_T))
            held += low <= truth <= high
        shares[f"{num_seeds} seeds, {num_tasks} tasks"] = held / experiments
    return shares


def _trained(rng: np.random.Generator, num_seeds: int, rates_T: np.ndarray) -> np.ndarray:
    """Success measured on each task after each training."""
    true_RT = np.clip(rates_T + SEED_SPREAD * rng.standard_normal((num_seeds, len(rates_T))), 0, 1)
    return rng.binomial(EPISODES_PER_TASK, true_RT) / EPISODES_PER_TASK


def _paired(experiments: int, interval: Callable[[Counts], tuple[float, float]]) -> Shares:
    return {
        where: float(np.mean([low <= truth <= high for low, high in map(interval, drawn)]))
        for where, truth, drawn in _experiments(experiments)
    }


def _experiments(experiments: int) -> list[tuple[str, float, list[Counts]]]:
    """(truth and n, true difference, what each experiment counted)."""
    rng = np.random.default_rng(2)
    found = []
    for n in PAIRED_NS:
        for name, tasks in PAIRED.items():
            size = n // len(tasks)
            drawn = [rng.multinomial(size, (gain, loss, 1 - gain - loss), size=experiments) for gain, loss in tasks]
            counts = [tuple(tuple(map(int, task)) for task in each) for each in zip(*drawn, strict=True)]
            truth = sum(gain - loss for gain, loss in tasks) / len(tasks)
            found.append((f"{name}, n {n}", round(truth, 12), counts))
    return found


def _sum(counts: Counts, which: int) -> int:
    return sum(task[which] for task in counts)

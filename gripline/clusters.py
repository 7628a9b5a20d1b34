"""Statistics of outcomes that are not independent: several sampled episodes that begin in one initial state.

Where every cluster has one episode, all of this comes down to what `gripline.statistics` does with episodes.
Shape: M clusters.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many times as large the variance of the mean is as that of as many independent values.

    Dividing counts by it lets a binomial method see as many episodes as they are worth: Rao and Scott, "A simple method
    for the analysis of clustered binary data", Biometrics 48 (1992). Never below 1, so that drawing more than once
    never looks better than new initial states, nor above the largest cluster. Values that are all equal tell nothing of
    it; then each cluster counts once.
    """
    sizes = Counter(clusters)
    n, num_clusters = len(values), len(sizes)
    if num_clusters == n:
        return 1.0
    mean = sum(values) / n
    spread = sum((value - mean) ** 2 for value in values) / n
    if spread == 0 or num_clusters == 1:
        return n / num_clusters
    residuals = dict.fromkeys(sizes, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] += value - mean
    between = num_clusters / (num_clusters - 1) * sum(residual**2 for residual in residuals.values()) / n**2
    return min(max(1.0, n * between / spread), float(max(sizes.values())))


def exact_sign_flip(changes: Iterable[int]) -> float:
    """Two-sided p-value of a sum of changes, one for each cluster: under no difference each is as likely with the other
    sign.

    Fisher's randomisation test ("The Design of Experiments", 1935, section 21), by complete enumeration. For changes of
    1 and -1 it is the exact McNemar test.
    """
    observed = list(changes)
    chances = np.ones(1)
    for size, number in Counter(abs(change) for change in observed if change).items():
        kernel = np.zeros(2 * size * number + 1)
        kernel[:: 2 * size] = _fair_coins(number)
        chances = np.convolve(chances, kernel)
    reach = len(chances) // 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return float(min(1.0, chances[sums >= abs(sum(observed))].sum()))


def _fair_coins(number: int) -> list[float]:
    """Probability of 0, 1, … `number` heads."""
    ways, all_ways, chances = 1, 1 << number, []
    for heads in range(number + 1):
        chances.append(ways / all_ways)
        ways = ways * (number - heads) // (heads + 1)
    return chances

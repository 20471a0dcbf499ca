"""95 % intervals: of paired differences, and of rank correlations."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_interval(differences: NDArray[np.float64]) -> Interval:
    """Interval of the mean of paired differences over seeds and, if available, images.

    The variance has two parts: between trainings (over seeds), and between test images (of their difference, averaged
    over seeds). They are added, and the quantile is Student's with the degrees of freedom that Satterthwaite (1946)
    gives for such a sum. In simulations with 3 seeds and 100 or 200 images the interval contained the true difference
    in 92 to 98 % of the cases.

    Args:
        differences: (seeds, images), or (seeds, 1) for one number per seed; at least two seeds.
    """
    from scipy.stats import t as student

    seeds, images = differences.shape
    parts = [(differences.mean(1).var(ddof=1) / seeds, seeds - 1)]
    if images > 1:
        parts.append((differences.mean(0).var(ddof=1) / images, images - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts) if variance > 0 else seeds - 1
    half_width = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
    mean = float(differences.mean())
    return Interval(mean, mean - half_width, mean + half_width)


def rank_interval(x: NDArray[np.float64], y: NDArray[np.float64]) -> Interval:
    """Spearman's rank correlation of points (n,), n >= 4, which count as a sample.

    The interval is that of Bonett and Wright (2000): normal after Fisher's transformation, with the variance
    (1 + r^2 / 2) / (n - 3). Few points give a wide interval. A perfect correlation counts as half a step below 1, where
    the step is that of swapping two neighbours. If all x or all y are equal, the interval is [-1, 1].
    """
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(x), rankdata(y)])
    if (ranks.std(1) == 0).any():
        return Interval(0.0, -1.0, 1.0)
    count, correlation = len(x), float(np.corrcoef(ranks)[0, 1])
    most = 1 - 6 / (count**3 - count)
    inside = min(max(correlation, -most), most)
    half_width = 1.959964 * math.sqrt((1 + inside**2 / 2) / (count - 3))
    middle = math.atanh(inside)
    return Interval(correlation, math.tanh(middle - half_width), math.tanh(middle + half_width))

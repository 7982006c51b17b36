"""Intervals for shares of inputs."""

from __future__ import annotations

from math import sqrt

from scipy.stats import norm


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share of ``count`` independent inputs.

    It stays within [0, 1] and has a width where the share is 0 or 1. That of scipy's ``binomtest`` where the share is a
    count of inputs; a mean over inputs of values between 0 and 1 (such as the right ones among an input's samples)
    varies less than such a count, and its interval is too wide rather than too narrow.

    Args:
        share: between 0 and 1.
        count: independent inputs, not samples.
        level: of confidence.

    Raises:
        ValueError: a share outside [0, 1], or no input.
    """
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(f"a share of inputs lies between 0 and 1, of at least one input: not {share} of {count}")
    z = norm.ppf(0.5 + level / 2)
    shrunk = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrunk
    half = z / shrunk * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)

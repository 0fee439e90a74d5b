"""Ratios of paired times."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom. Beyond
# the table, its last value makes the interval a little too wide.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Ratio:
    """A geometric mean and its 95% interval."""

    mean: float
    low: float
    high: float


def paired_ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """Return the mean ratio of pairs, by Student's t on its logarithm.

    REQUIRES: two pairs or more, all positive.
    """
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    degrees = len(logs) - 1
    half_width = (
        _T_95[min(degrees, len(_T_95)) - 1]
        * statistics.stdev(logs)
        / math.sqrt(len(logs))
    )
    center = statistics.fmean(logs)
    return Ratio(
        mean=math.exp(center),
        low=math.exp(center - half_width),
        high=math.exp(center + half_width),
    )


def standard_error(values: list[float]) -> float:
    """REQUIRES: two values or more."""
    return statistics.stdev(values) / math.sqrt(len(values))

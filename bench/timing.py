"""Times that hold on a shared, noisy machine: candidates take turns in rounds, in random order; medians, all samples kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np


@dataclass
class Times:
    """Seconds of one call. rounds: the median of each round. first: the first call, compiling included."""

    first: float
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.rounds), max(self.rounds)


def once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 7, block_s: float = 0.03, seed: int = 0, clock: Callable[[Callable], float] = once) -> dict[str, Times]:
    """Each candidate runs for about `block_s` in every round, after one call that is not counted. clock: seconds of a call."""
    found = {name: Times(clock(call)) for name, call in candidates.items()}
    rng, names = np.random.default_rng(seed), list(candidates)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            call, samples = candidates[names[i]], []
            call()
            end = time.perf_counter() + block_s
            while not samples or time.perf_counter() < end:
                samples.append(clock(call))
            found[names[i]].rounds.append(median(samples))
    return found

"""A network as data: what `tinynet.compile` captures, and what a backend turns into a program.

Values have numbers; a call makes one from others. Nothing here knows tensors or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np


@dataclass(frozen=True)
class Call:
    """One application of an op: `output = op(*inputs, **parameters)`; an input that was left out is None.

    numbers: inputs that are Python numbers, by their place among `inputs`, which holds None there.
    """

    op: str
    inputs: tuple[int | None, ...]
    output: int
    parameters: dict = field(hash=False, default_factory=dict)
    numbers: dict[int, int | float] = field(hash=False, default_factory=dict)


@dataclass
class Graph:
    """calls: in the order in which they ran, which lead from values of outside to the results.

    shapes, dtype: of the values (all floats have the one dtype; class indices are int64). outside: values that the caller gives
    at every call; batched: those of them that have a row for each image. results: values to hand out.
    loss: the value, one number, to go backward from; gradients: values of outside whose gradient is wanted.
    """

    shapes: dict[int, tuple[int, ...]]
    dtype: np.dtype
    calls: list[Call]
    outside: list[int]
    batched: set[int]
    results: list[int]
    loss: int | None = None
    gradients: list[int] = field(default_factory=list)
    updates: dict[int, str] = field(default_factory=dict)  # parameter -> "sgd", "momentum" or "adam"

    def bytes(self, value: int) -> int:
        """What a value of floats takes in memory."""
        return prod(self.shapes[value]) * np.dtype(self.dtype).itemsize


class Unsupported(Exception):
    """This call can't be part of a program; `call` is its place in the graph. The message says why."""

    def __init__(self, call: Call, reason: str):
        super().__init__(reason)
        self.call = call

"""What a function does to tensors, written down while it runs: the raw material of `tinynet.compile` (plan.py).

The function runs as always, and ops, backward, optimisers and modules report here. Everything that a replay could
not see makes the recording useless, and says so: values that leave the tensors (a print of a loss, an if on
one), gradients that are edited, arrays that the function makes for itself.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np

from tinynet.kernels.graph import Call
from tinynet.mode import is_recording
from tinynet.tensor import Tensor


@dataclass
class Trace:
    """arguments: arrays and tensors that the function was given, by the number of their value."""

    arguments: list
    calls: list[Call] = field(default_factory=list)
    values: list = field(default_factory=list)  # number -> the array or tensor, kept alive so that ids stay theirs
    numbers: dict[int, int] = field(default_factory=dict)  # id -> number
    outside: dict[int, object] = field(default_factory=dict)  # values that no call made and no argument is
    zeroed: list[Tensor] = field(default_factory=list)
    modules: list = field(default_factory=list)
    root: Tensor | None = None  # what backward started from
    optimizer: object = None
    recording: bool = field(default_factory=is_recording)
    refused: str = ""  # why this recording is useless

    def __post_init__(self):
        for argument in self.arguments:
            self._number(argument)

    def _number(self, value) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.values)
            self.values.append(value)
        return number

    def _known(self, value) -> int:
        """The number of an op's input: an argument, the result of a call, or something from outside of the function."""
        if id(value) not in self.numbers:
            array = value.data if isinstance(value, Tensor) else value
            for number, argument in enumerate(self.arguments):
                if array is argument or isinstance(argument, Tensor) and array is argument.data and not value.requires_grad:
                    return number  # Tensor(x) of an argument x, or its array
            self.outside[self._number(value)] = value
        return self._number(value)

    # --- what the engine reports -------------------------------------------------------------------------------

    def call(self, op, tensors: list, arrays: list, parameters: dict, result: Tensor) -> None:
        inputs = []
        for name, tensor, array in zip(op.inputs, tensors, arrays):
            if tensor is None and not isinstance(array, np.ndarray):
                if array is not None:
                    self.refuse(f"{op.name} has a number for an input; only single kernels take one")
                inputs.append(None)
            else:
                inputs.append(self._known(tensor if tensor is not None else array))
        if self.root is not None:
            self.refuse(f"{op.name} comes after backward")
        if is_recording() != self.recording:
            self.refuse("it turns recording on or off (no_grad) for some of its ops")
        self.calls.append(Call(op.name, tuple(inputs), self._number(result), {**op.defaults, **parameters}))

    def copied(self, values, made: Tensor) -> None:
        """tinynet.tensor(x): to a replay it is x."""
        if id(values) in self.numbers and getattr(values, "dtype", None) == made.dtype:
            self.numbers[id(made)] = self.numbers[id(values)]
            self.values.append(made)

    def backward(self, root: Tensor, gradient, retain: bool) -> None:
        if self.root is not None or gradient is not None or retain:
            self.refuse("backward runs twice, from a gradient that was given, or keeps its graph")
        self.root = root

    def set_grad(self, tensor: Tensor, array) -> None:
        if array is not None:
            self.refuse("it writes a gradient; gradients may only be set to None")
        elif self.root is not None:
            self.refuse("gradients are reset after backward, not before it")
        self.zeroed.append(tensor)

    def step(self, optimizer) -> None:
        if self.root is None or self.optimizer is not None:
            self.refuse("an optimiser steps before backward, or there are several steps")
        self.optimizer = optimizer

    def module(self, module) -> None:
        if not any(module is m for m in self.modules):
            self.modules.append(module)

    def forbid(self, what: str) -> None:
        self.refuse(f"it {what} while it runs, which a replay would not do again; return the tensor, and look at it outside")

    def refuse(self, reason: str) -> None:
        self.refused = self.refused or reason

    # --- afterwards ------------------------------------------------------------------------------------------------

    def made_inside(self) -> bool:
        """Whether an input of an op was made by the function for itself: once it has returned, only this recording holds it."""
        # 4: `outside`, `values`, the loop's variable, and the argument of getrefcount itself
        return any(sys.getrefcount(value) <= 4 for value in self.outside.values())

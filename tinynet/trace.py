"""What a function does to tensors, written down while it runs: the raw material of `tinynet.compile` (plan.py).

Ops, backward, optimisers and modules report here, and what they would compute is left for later (deferred.py): for the
program that is made of it or, where somebody wants a value at once, for `compute`, which runs them as always.

Everything that a replay could not see makes the recording useless, and says so: values that leave the tensors (a print of
a loss, an if on one), gradients that are edited, arrays that the function makes for itself (but by reshaping its arguments), random numbers.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tinynet.deferred import deferred
from tinynet.dispatch import chosen_by_hand
from tinynet.guard import owner_of
from tinynet.kernels.graph import Call
from tinynet.mode import is_recording, mode, traced_by
from tinynet.op import OPS
from tinynet.random import generator
from tinynet.tensor import Tensor


@dataclass
class Trace:
    """arguments: arrays and tensors that the function was given, by the number of their value."""

    arguments: list
    calls: list[Call] = field(default_factory=list)
    ops: dict[int, object] = field(default_factory=dict)  # the result of a call -> the op that made it
    values: list = field(default_factory=list)  # number -> the array or tensor, kept alive so that ids stay theirs
    numbers: dict[int, int] = field(default_factory=dict)  # id -> number
    outside: dict[int, object] = field(default_factory=dict)  # values that no call made and no argument is
    copies: set[int] = field(default_factory=set)  # arguments that are read as copies
    zeroed: list[Tensor] = field(default_factory=list)
    modules: list = field(default_factory=list)
    root: Tensor | None = None  # what backward started from
    optimizer: object = None
    recording: bool = field(default_factory=is_recording)
    refused: str = ""  # why this recording is useless
    waits: bool = True  # whether what is written down is still to be computed
    random: bytes = field(default_factory=lambda: _random_state())

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
            for number, argument in enumerate(self.arguments):
                if _array(value) is _array(argument) and not _needs(value) and not _needs(argument):
                    return number  # Tensor(x) of an argument x, or its array
            self.outside[self._number(value)] = value
        return self._number(value)

    # --- what the engine reports -------------------------------------------------------------------------------

    def defer(self, op, inputs: tuple, parameters: dict) -> Tensor | None:
        """What the op will return, written down. None if it must run now, and report itself."""
        self._look_at(op, parameters)
        foreign = any(isinstance(value, np.ndarray) and id(value) not in self.numbers for value in inputs)  # may be filled anew
        made = None if foreign or not self.waits else deferred(op, inputs, parameters, self.recording, self.compute)
        if made is None:
            self.compute()
        else:
            self._write_down(op, inputs, parameters, made)
        return made

    def call(self, op, tensors: list, arrays: list, parameters: dict, result: Tensor) -> None:
        """An op that ran."""
        self._look_at(op, parameters)
        self._write_down(op, [array if tensor is None else tensor for tensor, array in zip(tensors, arrays)], parameters, result)

    def _look_at(self, op, parameters: dict) -> None:
        if any(_has_array(value) for value in parameters.values()):
            self.refuse(f"{op.name} has an array for a parameter, and a replay could not see where it came from")
        if self.root is not None:
            self.refuse(f"{op.name} comes after backward")
        if chosen_by_hand():
            self.refuse("kernels are chosen by hand (use, TINYNET_KERNELS)")
        if is_recording() != self.recording:
            self.refuse("it turns recording on or off (no_grad) for some of its ops")

    def _write_down(self, op, values, parameters: dict, result: Tensor) -> None:
        inputs, numbers = [], {}
        for place, value in enumerate(values):
            if isinstance(value, (np.ndarray, Tensor)):
                inputs.append(self._known(value))
            else:
                if value is not None:
                    numbers[place] = value
                inputs.append(None)
        self.calls.append(Call(op.name, tuple(inputs), self._number(result), {**op.defaults, **parameters}, numbers))
        self.ops[self.calls[-1].output] = op

    def copied(self, values, made: Tensor) -> None:
        """tinynet.tensor(x): to a replay it is x."""
        if id(values) in self.numbers and getattr(values, "dtype", None) == made.dtype and not made.requires_grad:
            self.numbers[id(made)] = self.numbers[id(values)]
            self.copies.add(self.numbers[id(values)])
            self.values.append(made)

    def backward(self, root: Tensor, gradient, retain: bool) -> bool:
        """Whether it will run later."""
        if self.root is not None or gradient is not None or retain or root.size != 1:
            self.refuse("backward runs twice, from a gradient that was given, or keeps its graph")
        self.root = root
        return self.waits

    def set_grad(self, tensor: Tensor, array) -> None:
        if array is not None:
            self.refuse("it writes a gradient; gradients may only be set to None")
        elif self.root is not None:
            self.refuse("gradients are reset after backward, not before it")
        self.zeroed.append(tensor)

    def step(self, optimizer) -> bool:
        """Whether it will run later."""
        if self.root is None or self.optimizer is not None:
            self.refuse("an optimiser steps before backward, or there are several steps")
        self.optimizer = optimizer
        return self.waits

    def module(self, module) -> None:
        if not any(module is m for m in self.modules):
            self.modules.append(module)

    def forbid(self, what: str) -> None:
        self.refuse(f"it {what} while it runs, which a replay would not do again; return the tensor, and look at it outside")

    def refuse(self, reason: str) -> None:
        self.refused = self.refused or reason
        self.compute()

    def compute(self) -> None:
        """Runs what was written down so far, op by op. From now on everything runs at once."""
        if not self.waits:
            return
        self.waits = False
        before, mode.pauses = mode.pauses, 0 if self.recording else 1  # as it was when the function began, and at each of its ops
        try:
            with traced_by(None):
                self._run()
        finally:
            mode.pauses = before

    def _run(self) -> None:
        for call in self.calls:
            inputs = [call.numbers.get(place) if v is None else self.values[v] for place, v in enumerate(call.inputs)]
            self.values[call.output].become(self.ops[call.output](*inputs, **call.parameters))
        if self.root is not None:
            self.root.backward()
        if self.optimizer is not None:
            self.optimizer.step()

    # --- afterwards ------------------------------------------------------------------------------------------------

    def computed(self, values: dict[int, Tensor]) -> None:
        """A program has computed these; nobody waits for the others."""
        self.waits = False
        for number, made in values.items():
            self.values[number].become(made)
        self.values.clear()  # the others know who could compute them: this recording, which holds the batch

    def kept(self, results: list[int]) -> bool:
        """Whether the function has kept another result of an op than those that it returned, somewhere."""
        others = [call.output for call in self.calls if call.output not in results]
        # 2: `values`, and the argument of getrefcount itself
        return any(sys.getrefcount(self.values[v]) > 2 + (self.values[v] is self.root) for v in others)

    def useless(self) -> str:
        """Why this recording can't be replayed; "" if it can."""
        if not self.refused and _random_state() != self.random:
            self.refuse("it draws random numbers, and a replay would use these again")
        if not all(map(self._reshaped, self._made_inside())):
            self.refuse("an op reads an array or a tensor that the function makes for itself; make it outside, or pass it in")
        if self._taken_out():
            self.refuse("an op reads an argument or a result past its graph (detach, data), and a replay could not see where it came from")
        return self.refused or ("" if self.calls else "no op ran")

    def _made_inside(self) -> list[int]:
        """The inputs of ops that the function made for itself: once it has returned, only this recording holds them."""
        nodes = [self.values[call.output].node for call in self.calls]  # none of those that wait
        edges = Counter(id(edge) for node in nodes if node is not None for edge in node.edges)
        found = []
        for number in self.outside:
            value = self.outside[number]
            # 4: `outside`, `values`, the variable, and the argument of getrefcount itself; and the results' own graph
            if sys.getrefcount(value) <= 4 + edges[id(value)]:
                found.append(number)
        return found

    def _reshaped(self, number: int) -> bool:
        """Whether this is x.reshape(...) of an array x that is an argument. Then it is written down as that op of x."""
        value = self.values[number]
        for place, argument in enumerate(self.arguments):
            if _same_numbers(_array(value), _array(argument)) and not _needs(value) and not _needs(argument):
                self.calls.insert(0, Call("reshape", (place,), number, {"shape": value.shape}, {}))
                self.ops[number] = OPS["reshape"]
                self.values[number] = value if isinstance(value, Tensor) else Tensor(value)
                del self.outside[number]
                return True
        return False

    def _taken_out(self) -> bool:
        """Whether what seems to be from outside is the memory of an argument or a result, kept somewhere by the function."""
        results = [] if self.waits else [self.values[call.output] for call in self.calls]
        inside = {id(_array(v)) for v in [*self.arguments, *results]}
        return any(id(a) in inside or id(owner_of(a)) in inside for a in map(_array, self.outside.values()))


def _array(value) -> np.ndarray:
    return value.data if isinstance(value, Tensor) else value


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same memory, in the same order."""
    whole = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.flags.c_contiguous and b.flags.c_contiguous
    return whole and a.size == b.size and a.dtype == b.dtype and a.ctypes.data == b.ctypes.data


def _has_array(value) -> bool:
    return isinstance(value, (np.ndarray, Tensor)) or isinstance(value, (tuple, list)) and any(map(_has_array, value))


def _needs(value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _random_state() -> bytes:
    """Of tinynet's generator and of numpy's global one."""
    return pickle.dumps((generator().bit_generator.state, np.random.get_state(legacy=False)))

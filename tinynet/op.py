"""What an op is, and the only place where a Node is made.

    @op
    def relu(k, x): return k.xp.maximum(x, 0)

    @relu.gradient("x")
    def _(k, dy, *, out): return k.relu_dx(dy, out)

The forward takes the kernel namespace `k`, then its inputs as arrays, then parameters by
keyword. There is one gradient function an input: it takes `k`, the gradient `dy` of the
result, and by name whatever it wants to know: an input, a parameter, the result (`out`), or
what the forward saved for it (a forward may return `result, {"window": window}`). Only what
the gradients that will run ask for is kept (tape.py). Samples (`@relu.samples`) are what every
backend's tests, the explain page and the benchmarks run the op on.

Next on the walk: ops/conv2d.py.
"""

from __future__ import annotations

import inspect
from functools import partial

from tinynet.dispatch import kernels
from tinynet.inputs import prepare
from tinynet.mode import is_recording, tracing
from tinynet.tape import Node
from tinynet.tensor import Tensor

OPS: dict[str, "Op"] = {}


class Op:
    def __init__(self, forward, also: str, numbers: bool, integer_inputs: tuple[str, ...], positional: tuple[str, ...]):
        self.name = forward.__name__
        self.forward = forward
        self.also = also
        self.numbers = numbers
        self.integer_inputs = integer_inputs
        self.positional = positional
        declared = list(inspect.signature(forward).parameters.values())[1:]
        inputs = [p for p in declared if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in positional]
        self.inputs = tuple(p.name for p in inputs)
        self.optional = {p.name: p.default for p in inputs if p.default is not p.empty}
        self.parameters = {p.name for p in declared if p not in inputs}
        self.required = {p.name for p in declared if p not in inputs and p.default is p.empty}
        self.defaults = {p.name: p.default for p in declared if p not in inputs and p.default is not p.empty}
        self.gradients: dict[str, tuple] = {}  # input -> (function, the names it asks for)
        self.make_samples = None
        self.__doc__ = inspect.getmodule(forward).__doc__ if forward.__doc__ is None else forward.__doc__
        self.__name__ = self.name
        self.__module__ = forward.__module__
        self.ours = self.__module__.startswith("tinynet.ops.")
        self.__signature__ = inspect.Signature(declared)
        OPS[self.name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}{self.__signature__}>"

    def __reduce__(self) -> str:
        return self.name  # copies and pickles are the op itself: a name in its module

    def __get__(self, tensor, owner=None):
        """An op that is an attribute of Tensor is a method."""
        return self if tensor is None else partial(self, tensor)

    def gradient(self, name: str):
        if name not in self.inputs:
            raise TypeError(f"{self.name} has no input {name!r}; its inputs are {', '.join(self.inputs)}")

        def register(function):
            asked = tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
            self.gradients[name] = (function, asked)
            return function

        return register

    def samples(self, function):
        """`function(rng)` yields (input, ..., parameters); an input is a shape to fill or an array."""
        self.make_samples = function
        return function

    def __call__(self, *inputs, **parameters):
        if len(inputs) != len(self.inputs):
            inputs = self._complete(inputs, parameters)
        if (parameters or self.required) and not self.required <= parameters.keys() <= self.parameters:
            raise TypeError(self._wrong(parameters))
        trace = tracing()
        if trace is not None and (later := trace.defer(self, inputs, parameters)) is not None:
            return later
        arrays, tensors, device, needed = prepare(self, inputs)
        k = kernels(device)
        try:
            with k.here:
                out = self.forward(k, *arrays, **parameters)
        except Exception as error:
            self._explain(error, arrays, device)
            raise
        out, saved = out if type(out) is tuple else (out, {})
        result = Tensor(out, False, parameters.get("device", device))  # `move` names another one
        if needed and is_recording() and out.dtype.kind == "f":  # integers have no gradient: it ends here
            result.made_by(Node(self, k, tensors, arrays, result.data, parameters, saved))
        if trace is not None:
            trace.call(self, tensors, arrays, parameters, result)
        return result

    def _complete(self, inputs: tuple, parameters: dict) -> tuple:
        """Parameters that came by position, and inputs that came by keyword or not at all."""
        extra = inputs[len(self.inputs) :]
        if len(extra) > len(self.positional):
            raise TypeError(f"{self.name}: {len(inputs)} arguments were given by position; only {', '.join(self.inputs + self.positional)} can be: give the rest by keyword")
        for name, value in zip(self.positional, extra):
            if name in parameters:
                raise TypeError(f"{self.name}: {name} was given twice, by position and by keyword")
            parameters[name] = value
        given = list(inputs[: len(self.inputs)])
        for name in self.inputs[len(inputs) :]:
            if name in parameters:
                given.append(parameters.pop(name))
            elif name in self.optional:
                given.append(self.optional[name])
            else:
                raise TypeError(f"{self.name}: input {name!r} is missing; it takes ({', '.join(self.inputs)})")
        return tuple(given)

    def _wrong(self, parameters: dict) -> str:
        takes = "it takes " + (", ".join(p for p in self.__signature__.parameters if p in self.parameters) or "none")
        for name in parameters:
            if name in self.inputs:
                return f"{self.name}: {name} was given twice, by position and by keyword"
            if name not in self.parameters:
                return f"{self.name}: there is no parameter {name!r}; {takes}"
        return f"{self.name}: parameter {min(self.required - parameters.keys())!r} is missing; {takes}"

    def _explain(self, error: Exception, arrays: list, device: str) -> None:
        """Adds to an error that does not say so itself which op it comes from, and what came in."""
        came = ", ".join(f"{name} is {a.dtype} {a.shape}" if hasattr(a, "dtype") else f"{name} is {a!r}" for name, a in zip(self.inputs, arrays))
        if "could not be broadcast" in str(error):  # numpy's words
            raise ValueError(f"{self.name}: {came}: these shapes don't fit; counted from the last axis, lengths must be equal or 1: reshape or permute one") from None
        if not str(error).startswith(self.name):
            error.add_note(f"in {self.name} on {device!r}: {came}")


def op(forward=None, *, also: str = "", numbers: bool = False, integer_inputs: tuple[str, ...] = (), positional: tuple[str, ...] = ()):
    """Makes an op of a forward function; see the top of this file.

    also: kinds of dtypes that are welcome beside float32 and float64 ("iub": integers, unsigned
    ones, bool). numbers: an input may be a Python number. integer_inputs: inputs that may hold
    integers beside floats, like class indices. positional: parameters that callers may give by
    position.
    """

    def make(function):
        return Op(function, also, numbers, integer_inputs, positional)

    return make(forward) if forward is not None else make

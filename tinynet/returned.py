"""What a compiled function returns: tensors, in tuples, lists and dicts; found in a recording, and filled in again by every call."""

from __future__ import annotations

from tinynet.tensor import Tensor
from tinynet.trace import Trace


class NoPlan(Exception):
    """Why a function runs as always."""


class Returned:
    """results: the values that the function returned, by number."""

    def __init__(self, trace: Trace, result):
        if any(trace.numbers[id(argument)] != place for place, argument in enumerate(trace.arguments)):
            raise NoPlan("one array was given for two arguments")
        self.results: list[int] = []
        self.form = self._form(trace, result)

    def _form(self, trace: Trace, result):
        """The form of what the function returned, with the number of a value for each tensor."""
        if isinstance(result, Tensor):
            number = trace.numbers.get(id(result))
            if number not in trace.ops:
                raise NoPlan("the function returns a tensor that no op of it made")
            if number not in self.results:
                self.results.append(number)
            return ("value", number)
        if isinstance(result, (tuple, list)):
            return (type(result), [self._form(trace, r) for r in result])
        if isinstance(result, dict):
            return (dict, {k: self._form(trace, r) for k, r in result.items()})
        if result is None or isinstance(result, (str, int)):
            return ("constant", result)
        raise NoPlan(f"the function returns a {type(result).__name__}; return tensors")

    def filled(self, values: dict, form=None):
        """What the function returns, with these values."""
        kind, inside = form or self.form
        if kind == "value":
            return values[inside]
        if kind == "constant":
            return inside
        return {k: self.filled(values, f) for k, f in inside.items()} if kind is dict else kind(self.filled(values, f) for f in inside)

"""tinynet.compile: a function or a module is captured once for each shape, and replayed as one program.

    fast = tinynet.compile(model)              fast(x) is model(x)

    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

At the first call with new shapes the function runs, and trace.py writes down what it would compute. split.py makes
parts of that: programs of fused kernels (fused.py), as long as the backend can make them, and single ops where it can't.
Playing the parts gives this call's results, and those of later calls, for which the function runs no more. Parts read
parameters where they are, so whoever changes them between calls is seen, and learning rates and the like from the
optimiser itself.

What can't be replayed, or has no program in it, runs as always, op by op: `explain()` says what and why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import update_wrapper
from itertools import groupby, repeat
from operator import attrgetter
from types import MethodType

import numpy as np

from tinynet.captured import Captured
from tinynet.dispatch import choices, chosen_by_hand
from tinynet.fused import Inference, Step
from tinynet.kernels.graph import Unsupported
from tinynet.mode import mode, traced_by, trainings
from tinynet.nn import Module
from tinynet.returned import NoPlan, Returned
from tinynet.split import Single, Splitting
from tinynet.tensor import Tensor
from tinynet.trace import Trace

MOST = 16  # captures that are kept, of one compiled function
MATH = ("strict", "winograd")
_TRAINING = attrgetter("training")


def compile(function: Callable | None = None, *, math: str = "strict", most: int = MOST):
    """A faster `function` (or Module), which gives the same results; see the top of this file.

    math: "strict" keeps float32's bounds element by element; "winograd" lets 3 x 3 convolutions use fewer multiplications,
    with an error that is small beside the largest results (docs/oracle.md). most: captures to keep, for different shapes.

    Raises ValueError for another math, TypeError for what can't be called.
    """
    if math not in MATH:
        raise ValueError(f"compile: math must be one of {', '.join(map(repr, MATH))}; got {math!r}")
    if function is None:
        return lambda wanted: compile(wanted, math=math, most=most)
    if not callable(function):
        raise TypeError(f"compile: expected a Module or a function; got {type(function).__name__}")
    return Compiled(function, math, most)


class Compiled:
    """What `tinynet.compile` returns. Call it like the original."""

    def __init__(self, function: Callable, math: str, most: int):
        self.function, self.math, self.most = function, math, most
        self.plans: OrderedDict[tuple, Plan | Captured | str] = OrderedDict()  # or the reason why there is none
        self.latest: Latest | None = None
        self.modules: list[Module] = []  # that ran inside: their training mode chooses the plan
        self.mutex = threading.Lock()
        if not isinstance(function, Module):
            update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        if mode.trace is not None:  # within another compiled function, which writes down our ops as its own
            return self.function(*args, **kwargs)
        latest = self.latest
        if latest is not None and not kwargs and latest.again(args):
            plan, leaves = latest.plan, args
        else:
            count, leaves = trainings.count, []
            key = self._key(args, kwargs, leaves)
            plan = self.plans.get(key)
            if plan is None:
                return self._capture(key, leaves, args, kwargs)
            if len(leaves) == len(args) and not kwargs:
                self.latest = Latest(key[0], count, plan)
        if type(plan) is str or plan.adds():
            return self.function(*args, **kwargs)
        if not plan.fits():  # a parameter has another shape or dtype, or needs no gradient any more
            return self._capture(self._key(args, kwargs, leaves := []), leaves, args, kwargs)
        return plan(leaves)

    def _key(self, args, kwargs, leaves: list) -> tuple:
        """What chooses the plan of a call; its arrays and tensors are put into `leaves`."""
        form = _flattened((args, kwargs), leaves) if kwargs else tuple(map(_flattened, args, repeat(leaves)))
        return form, self._training(), not mode.pauses, chosen_by_hand()

    def _training(self) -> tuple[bool, ...]:
        return tuple(map(_TRAINING, self.modules))

    def _capture(self, key, leaves, args, kwargs):
        with traced_by(Trace(leaves)) as trace:
            result = self.function(*args, **kwargs)
        with self.mutex:
            new = [m for m in trace.modules if not any(m is known for known in self.modules)]
            self.modules += new
            key = (key[0], self._training(), *key[2:])
            plan = self.plans[key] = _planned(trace, result, self.math, key[2])
            self.latest = None
            while len(self.plans) > self.most:
                self.plans.popitem(last=False)
        if isinstance(plan, Plan) and trace.waits and not plan.adds() and not trace.kept(plan.results):
            values = plan.play(leaves)
            trace.computed({v: values[v] for v in plan.results})
        trace.compute()
        return result

    def explain(self) -> str:
        """For every capture: its shapes, what runs as one kernel, and what does not and why."""
        if not self.plans:
            return "nothing is captured yet: call it once"
        parts = []
        for key, plan in self.plans.items():
            shapes = ", ".join(_shapes(key[0]))
            parts.append(f"for {shapes}: {'runs op by op, since ' + plan if isinstance(plan, str) else plan.explain()}")
        return "\n\n".join(parts)

    def profile(self, *args, rounds: int = 7, **kwargs):
        """Times every step of the programs that a call with these arguments plays, in its place and by itself, and each program as a
        whole: print it, or read its `steps` and `phases` (kernels/cpu/profile.py says what is measured). Parameters, gradients and the
        optimiser's state stay as they are.

        Raises ValueError if such a call was not captured yet, or runs op by op.
        """
        if type(rounds) is not int or rounds < 1:
            raise ValueError(f"profile: rounds must be an int of at least 1; got {rounds!r}")
        leaves: list = []
        plan = self.plans.get(self._key(args, kwargs, leaves))
        if plan is None or not isinstance(plan, str) and not plan.fits():
            raise ValueError("profile: a call with these arguments is not captured yet: call it once before")
        if isinstance(plan, str):
            raise ValueError(f"profile: a call with these arguments runs op by op, since {plan}; there is no program to be timed")
        return plan.profile(leaves, rounds)

    def __get__(self, owner, kind=None):
        return self if owner is None else MethodType(self, owner)  # a compiled method

    def __getattr__(self, name: str):
        return getattr(self.function, name)  # a compiled model's parameters, and the like

    def __repr__(self) -> str:
        return f"tinynet.compile({getattr(self.function, '__name__', repr(self.function))}, math={self.math!r})"


# --- arguments ---------------------------------------------------------------------------------------------


class Latest:
    """By what a call with arrays and tensors is known to be like the last one: quicker than by its key.

    count: of `trainings`, as it was before the key was made: a mode that was set meanwhile is noticed.
    """

    __slots__ = ("form", "count", "paused", "chosen", "plan")

    def __init__(self, form: tuple, count: int, plan: Plan | Captured | str):
        self.form, self.count, self.plan = form, count, plan
        self.paused, self.chosen = mode.pauses > 0, choices()

    def again(self, args: tuple) -> bool:
        if self.count != trainings.count or self.paused is not (mode.pauses > 0) or self.chosen is not choices() or len(args) != len(self.form):
            return False
        for a, form in zip(args, self.form):
            if type(a) is np.ndarray:
                if form[0] != "array" or a.shape != form[1] or a.dtype != form[2]:
                    return False
            elif not isinstance(a, Tensor) or _flattened(a, []) != form:
                return False
        return True


def _flattened(value, leaves: list):
    """What must be equal for a plan to fit, with all arrays and tensors put into `leaves`."""
    kind = type(value)
    if kind is np.ndarray:
        leaves.append(value)
        return ("array", value.shape, value.dtype)
    if isinstance(value, Tensor):
        leaves.append(value)
        return ("tensor", value.data.shape, value.data.dtype, value.device, value._requires_grad)
    if kind is tuple or kind is list:
        return (kind, tuple([_flattened(v, leaves) for v in value]))
    if kind is dict:
        return (kind, tuple([(k, _flattened(v, leaves)) for k, v in value.items()]))
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"compile: an argument is a {kind.__name__}; pass arrays, tensors, numbers, or lists and dicts of them") from None
    return (kind, value)


def _shapes(form) -> list[str]:
    if isinstance(form, tuple) and form and form[0] in ("array", "tensor"):
        return [f"{form[2]} {form[1]}"]
    return [s for part in form if isinstance(part, tuple) for s in _shapes(part)] if isinstance(form, tuple) else []


# --- from a recording to a plan ------------------------------------------------------------------------------


def _planned(trace: Trace, result, math: str, recording: bool):
    """A Plan, what is captured of a GPU, or the reason why there is neither."""
    devices = sorted({value.device for value in trace.values if isinstance(value, Tensor)} or {"cpu"})
    try:
        if reason := trace.useless():
            return reason
        if devices == ["cpu"]:
            return Plan(trace, result, math, recording)
        if len(devices) > 1 or not devices[0].startswith("cuda"):
            raise NoPlan(f"tensors are on {', '.join(devices)}; programs run on cpu, and graphs on one GPU")
        return Captured(trace, result, recording, devices[0])
    except NoPlan as reason:
        return str(reason)


class Plan:
    """One capture as parts that are played one after the other, and what the function does with their results."""

    def __init__(self, trace: Trace, result, math: str, recording: bool):
        self.returned = Returned(trace, result)
        self.results = self.returned.results
        splitting = Splitting(trace, self.results, recording, math)
        self.root, self.optimizer, self.apart = splitting.root, trace.optimizer, ""
        self.whole = self._whole_step(splitting)
        self.parts = [self.whole] if self.whole else splitting.parts()
        if all(isinstance(part, Single) for part in self.parts):
            raise NoPlan("; ".join(dict.fromkeys(part.reason for part in self.parts)))
        self.programs = [part for part in self.parts if not isinstance(part, Single)]
        if len(self.parts) == 1 and type(self.parts[0]) in (Inference, Step):
            self.play = self.parts[0].run  # nothing else is to be done
        places = {id(argument): place for place, argument in enumerate(trace.arguments)}
        self.zeroed = [places.get(id(t), t) for t in trace.zeroed]  # tensors, or the places of arguments
        self.tensors = [t for t in trace.outside.values() if isinstance(t, Tensor)]
        self.known = [(t, t.data, t._requires_grad) for t in self.tensors]
        self.done = self._done()
        self.stepping = threading.Lock()

    def _whole_step(self, splitting: Splitting) -> Step | None:
        if self.root is None:
            return None
        try:
            return splitting.step()
        except Unsupported as unsupported:
            self.apart = splitting.sentence(unsupported.call, str(unsupported))
            return None

    def _done(self) -> list[list[int]]:
        """For every part, the values that nobody reads after it: their memory is free then, as when the function runs."""
        read, found = {*self.results, self.root}, []
        for part in reversed(self.parts):
            found.append([v for v in set(part.inputs) if v not in read])
            read.update(part.inputs)
        return found[::-1]

    # --- a call ---------------------------------------------------------------------------------------------------

    def fits(self) -> bool:
        """Whether what is outside is still what was captured."""
        for t, array, needs in self.known:
            if (t.data is not array or t._requires_grad is not needs) and not self._still_fit():
                return False
        return self.whole is None or self.whole.fits()

    def _still_fit(self) -> bool:
        """Whether parameters' new arrays can take the old ones' places."""
        for place, (t, old, needs) in enumerate(self.known):
            array = t.data
            if (array.shape, array.dtype) != (old.shape, old.dtype) or array.flags.c_contiguous < old.flags.c_contiguous or t._requires_grad is not needs:
                return False
            self.known[place] = (t, array, needs)
        for program in self.programs:
            program.renew()
        return True

    def adds(self) -> bool:
        """Whether gradients are there that a whole step can't add to."""
        return self.whole is not None and self.whole.adds()

    def __call__(self, leaves: list):
        return self.returned.filled(self.play(leaves))

    def play(self, leaves: list) -> dict:
        """The values of a call, by number: the results are among them."""
        values = dict(enumerate(leaves))
        if self.root is None:
            self._play(values)
            return values
        with self.stepping:
            for t in self.zeroed:
                (leaves[t] if isinstance(t, int) else t).grad = None
            self._play(values)
            values[self.root].backward()
            if self.optimizer is not None:
                self.optimizer.step()
        return values

    def _play(self, values: dict) -> None:
        for part, done in zip(self.parts, self.done):
            part(values)
            for v in done:
                del values[v]

    # --- looking inside -------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """What runs as one kernel, and what does not and why."""
        programs = self.programs
        if len(self.parts) == 1 and not self.apart:
            return programs[0].explain()
        lines = [f"{len(programs)} programs, {len(self.parts) - len(programs)} ops by themselves"]
        for single, stretch in groupby(self.parts, lambda part: isinstance(part, Single)):
            if single:
                words = [part.reason for part in stretch]
                lines += [word + (f" (x {words.count(word)})" if words.count(word) > 1 else "") for word in dict.fromkeys(words)]
            else:
                lines += [f"program {programs.index(part)}: " + part.explain().replace("\n", "\n    ") for part in stretch]
        if self.apart:
            lines.append(f"backward goes from part to part{', and the optimiser steps by itself' if self.optimizer else ''}, since {self.apart}")
        return "\n".join(lines)

    def profile(self, leaves: list, rounds: int):
        """The profile of each program, as one; ops by themselves only make what the next program reads."""
        values, found = dict(enumerate(leaves)), []
        for part in self.parts:
            if not isinstance(part, Single):
                found.append(part.profile(values, rounds))
            if part is not self.whole:  # which is the only one then, and would change parameters
                part(values)
        first, *others = found
        return first.joined(others)

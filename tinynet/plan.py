"""tinynet.compile: a function or a module is captured once for each shape, and replayed as one program.

    fast = tinynet.compile(model)              fast(x) is model(x)

    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

The first call with new shapes runs as always while trace.py writes down what it does; from that, the backend makes a
program of fused kernels (kernels/cpu/network.py). Later calls play the program. It reads parameters where they
are, so whoever changes them is seen, and learning rates and the like from the optimiser itself.

What can't be a program runs as always, op by op: `explain()` says what and why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial, update_wrapper
from types import MethodType, SimpleNamespace

import numpy as np

from tinynet import guard
from tinynet.dispatch import chosen_by_hand
from tinynet.kernels.graph import Graph, Unsupported
from tinynet.mode import is_recording, traced_by
from tinynet.nn import Module
from tinynet.optim import SGD, Adam, AdamW, Optimizer
from tinynet.tape import Pulled
from tinynet.tensor import FLOATS, Tensor
from tinynet.trace import Trace

MOST = 16  # captures that are kept, of one compiled function
MATH = ("strict", "winograd")
COMPILED = SimpleNamespace(name="a compiled function")  # what stands for an op in its node


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
        self.plans: OrderedDict[tuple, Plan | str] = OrderedDict()  # or the reason why there is none
        self.modules: list[Module] = []  # that ran inside: their training mode chooses the plan
        self.mutex = threading.Lock()
        if not isinstance(function, Module):
            update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        leaves: list = []
        form = _flattened((args, kwargs), leaves) if kwargs else tuple([_flattened(a, leaves) for a in args])
        key = (form, tuple([m.training for m in self.modules]), is_recording(), chosen_by_hand())
        plan = self.plans.get(key)
        if plan is None:
            return self._capture(key, leaves, args, kwargs)
        if type(plan) is str or plan.adds():
            return self.function(*args, **kwargs)
        if not plan.fits():  # a parameter has another shape or dtype, or needs no gradient any more
            return self._capture(key, leaves, args, kwargs)
        return plan(leaves)

    def _capture(self, key, leaves, args, kwargs):
        with traced_by(Trace(leaves)) as trace:
            result = self.function(*args, **kwargs)
        with self.mutex:
            new = [m for m in trace.modules if not any(m is known for known in self.modules)]
            self.modules += new
            key = (key[0], tuple([m.training for m in self.modules]), *key[2:])
            self.plans[key] = _planned(trace, result, self.math, key[2], key[3])
            while len(self.plans) > self.most:
                self.plans.popitem(last=False)
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

    def __get__(self, owner, kind=None):
        return self if owner is None else MethodType(self, owner)  # a compiled method

    def __getattr__(self, name: str):
        return getattr(self.function, name)  # a compiled model's parameters, and the like

    def __repr__(self) -> str:
        return f"tinynet.compile({getattr(self.function, '__name__', repr(self.function))}, math={self.math!r})"


# --- arguments ---------------------------------------------------------------------------------------------


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


def _planned(trace: Trace, result, math: str, recording: bool, by_hand: bool):
    """A Plan, or the reason why there is none."""
    if by_hand:
        return "kernels are chosen by hand (use, TINYNET_KERNELS)"
    if trace.refused:
        return trace.refused
    if trace.made_inside():
        return "an op reads an array or a tensor that the function makes for itself; make it outside, or pass it in"
    if not trace.calls:
        return "no op ran"
    try:
        return Plan(trace, result, math, recording)
    except Unsupported as unsupported:
        c = unsupported.call
        shapes = ", ".join(str(getattr(trace.values[v], "shape", None)) for v in c.inputs if v is not None)
        return f"{c.op} ({shapes}) is in no program: {unsupported}"


def _kind(optimizer: Optimizer) -> str:
    """The kernel of its update (kernels/cpu/layers.py); none for optimisers that are not ours."""
    if type(optimizer) is SGD:
        return "momentum" if optimizer.momentum else "sgd"
    return "adam" if type(optimizer) in (Adam, AdamW) else ""


class Plan:
    """One capture as a program, with what it needs from outside at every call."""

    def __init__(self, trace: Trace, result, math: str, recording: bool):
        first = trace.calls[0]
        self.leaves = {}  # value -> place among the arguments
        self.tensors = {}  # value -> a tensor or an array of outside
        for place, argument in enumerate(trace.arguments):
            if trace.numbers[id(argument)] != place:
                raise Unsupported(first, "one array was given for two arguments")
            self.leaves[place] = place
        self.tensors.update(trace.outside)
        used = {v for call in trace.calls for v in call.inputs if v is not None}
        arrays = {v: trace.values[v].data if isinstance(trace.values[v], Tensor) else trace.values[v] for v in used | {c.output for c in trace.calls}}
        devices = {t.device for v in used if isinstance(t := trace.values[v], Tensor)}
        dtype = trace.values[trace.calls[-1].output].dtype
        if devices - {"cpu"}:
            raise Unsupported(first, f"tensors are on {', '.join(sorted(devices))}; programs run on cpu")
        for call in trace.calls:
            if arrays[call.output].dtype != dtype or dtype not in FLOATS:
                raise Unsupported(call, f"its result is {arrays[call.output].dtype}, that of the last op {dtype}")
        self.results: list[int] = []
        self.form = self._returned(trace, result)
        self.recording = recording
        self.optimizer: Optimizer | None = trace.optimizer
        self.zeroed = list({id(t): t for t in trace.zeroed}.values())
        outside = [v for v in used if v in self.leaves or v in self.tensors]
        gradients = [v for v in outside if recording and isinstance(trace.values[v], Tensor) and trace.values[v].requires_grad]
        self.seeds: tuple[int, ...] = ()
        loss = None
        if trace.root is not None:
            loss = trace.numbers[id(trace.root)]
            if trace.calls[-1].output != loss or trace.root.shape:
                raise Unsupported(trace.calls[-1], "backward starts from something else than the loss that is computed last")
            if any(v in self.leaves for v in gradients):
                raise Unsupported(first, "an argument needs a gradient; in a whole step only parameters may")
        elif gradients:
            if len(self.results) != 1:
                raise Unsupported(trace.calls[-1], "of a function whose graph goes on, one result alone can be compiled; return one tensor")
            self.seeds = (self.results[0],)
            if trace.calls[-1].op in ("cross_entropy", "nll_loss") and trace.calls[-1].output == self.results[0]:
                loss = self.results[0]  # whose gradient is known up to a factor, which comes with backward
        for v in self.results + list(gradients):
            if arrays[v].dtype != dtype:
                raise Unsupported(first, f"dtypes {arrays[v].dtype} and {dtype} meet")
        batched = {v for v in self.leaves if v in used}
        graph = Graph({v: a.shape for v, a in arrays.items()}, dtype, trace.calls, outside, batched, self.results, loss, gradients if loss is not None or self.seeds else [])
        self._optimise(graph, trace)
        from tinynet.kernels.cpu.network import Network

        self.network = Network(graph, self.seeds, math)
        self.graph, self.dtype = graph, dtype
        self.parameters = [(v, t if isinstance(t, Tensor) else Tensor(t)) for v, t in self.tensors.items() if v in used]
        self.known = [(t, t.data, t._requires_grad) for _, t in self.parameters]
        if not all(array.flags.c_contiguous for _, array, _ in self.known):
            raise Unsupported(first, "a parameter does not lie in one piece; use np.ascontiguousarray")
        self.inputs = [(v, i, trace.values[v].dtype.kind in "iub") for v, i in self.leaves.items() if v in used]
        self.targets = [(c.op, v, graph.shapes[c.inputs[0]][1]) for c in trace.calls if c.op in ("cross_entropy", "nll_loss") for v in (c.inputs[1],)]
        self.trained = [(v, self.tensors[v]) for v in graph.gradients if v in self.network.weight_gradients or v in self.network.stepped]
        self.arenas: list = []
        self.stepping = threading.Lock()
        places = {id(p): i for i, p in enumerate(self.optimizer.parameters)} if self.optimizer is not None else {}
        self.updated = [(v, places[id(self.tensors[v])]) for v in graph.updates]
        kept = {id(t) for t in self.zeroed}
        self.adding = [t for _, t in self.trained if id(t) not in kept] if graph.updates else []

    def _returned(self, trace: Trace, result):
        """The form of what the function returned, with the number of a value for each tensor."""
        if isinstance(result, Tensor):
            number = trace.numbers.get(id(result))
            if number is None or all(c.output != number for c in trace.calls):
                raise Unsupported(trace.calls[-1], "the function returns a tensor that no op of it made")
            if number not in self.results:
                self.results.append(number)
            return ("value", number)
        if isinstance(result, (tuple, list)):
            return (type(result), [self._returned(trace, r) for r in result])
        if isinstance(result, dict):
            return (dict, {k: self._returned(trace, r) for k, r in result.items()})
        if result is None or isinstance(result, (str, int)):
            return ("constant", result)
        raise Unsupported(trace.calls[-1], f"the function returns a {type(result).__name__}; return tensors")

    def _optimise(self, graph: Graph, trace: Trace) -> None:
        optimizer = self.optimizer
        if optimizer is None:
            return
        self.kind = _kind(optimizer)
        if not self.kind:
            raise Unsupported(trace.calls[-1], f"{type(optimizer).__name__} is no SGD, Adam or AdamW; leave its step outside of the function")
        values = {id(self.tensors[v]): v for v in graph.gradients if v in self.tensors}
        if any(id(p) not in values for p in optimizer.parameters):
            raise Unsupported(trace.calls[-1], "the optimiser has parameters that the loss does not depend on")
        graph.updates.update({values[id(p)]: self.kind for p in optimizer.parameters})

    # --- a call ---------------------------------------------------------------------------------------------------

    def fits(self) -> bool:
        """Whether what is outside is still what was captured."""
        for place, (t, array, needs) in enumerate(self.known):
            if (t.data is not array or t._requires_grad is not needs) and not self._still_fits(place):
                return False
        return self.optimizer is None or _kind(self.optimizer) == self.kind  # SGD with momentum is another kernel than without

    def _still_fits(self, place: int) -> bool:
        """Whether a parameter's new array can take the old one's place."""
        v, t = self.parameters[place]
        array, old = t.data, self.known[place][1]
        if (array.shape, array.dtype) != (old.shape, old.dtype) or not array.flags.c_contiguous or t._requires_grad is not self.known[place][2]:
            return False
        self.known[place] = (t, array, t._requires_grad)
        return True

    def adds(self) -> bool:
        """Whether gradients of an earlier step are there, to which this one would add before the optimiser runs."""
        return any(t._grad is not None for t in self.adding)

    def __call__(self, leaves: list):
        if self.seeds:
            return self._recorded(leaves)
        if self.trained:
            with self.stepping:
                return self._step(leaves)
        arena = self._arena()
        try:
            self._bind(arena, leaves)
            found = self._bind_results(arena)
            self.network.play(arena)
            self._check(arena)
        finally:
            self.arenas.append(arena)
        return self._formed(self.form, found)

    def _arena(self):
        try:
            return self.arenas.pop()
        except IndexError:
            return self.network.arena()

    def _bind(self, arena, leaves: list) -> None:
        for v, t in self.parameters:
            arena.bind(v, t.data)
        for v, place, integers in self.inputs:
            leaf = leaves[place]
            array = leaf.data if isinstance(leaf, Tensor) else leaf
            if integers and array.dtype != np.int64:
                array = array.astype(np.int64)
            arena.bind(v, array if array.flags.c_contiguous else np.ascontiguousarray(array))

    def _bind_results(self, arena) -> dict:
        found = {}
        for v in self.results:
            array = np.empty(self.graph.shapes[v], self.dtype)
            arena.bind(("result", v), array)
            found[v] = Tensor(array)
        return found

    def _formed(self, form, found: dict):
        kind, inside = form
        if kind == "value":
            return found[inside]
        if kind == "constant":
            return inside
        return {k: self._formed(f, found) for k, f in inside.items()} if kind is dict else kind(self._formed(f, found) for f in inside)

    def _check(self, arena) -> None:
        if not arena.fault[0]:
            return
        arena.fault[0] = 0
        for op, v, classes in self.targets:
            target = arena.bound[v]
            if target.min() < 0 or target.max() >= classes:
                raise ValueError(f"{op}: classes run from 0 to {classes - 1}; target holds {int(target.min())} to {int(target.max())}")

    # --- a whole step -----------------------------------------------------------------------------------------------

    def _step(self, leaves: list):
        zeroed = {id(t) for t in self.zeroed}
        for t in self.zeroed:
            t._grad = None
        before = [None if id(t) in zeroed else t.grad for _, t in self.trained]
        arena = self._arena()
        try:
            self._bind(arena, leaves)
            states = self._hyper(arena) if self.optimizer is not None else ()
            found = self._bind_results(arena)
            self.network.play(arena)
            self._check(arena)
            for (v, t), old in zip(self.trained, before):
                later = partial(self.network.gradient, arena, v)
                t._grad = later if old is None else old + later()
            for state in states:
                state["t"] += 1
        finally:
            self.arenas.append(arena)
        if states:
            guard.edited(t for _, t in self.trained)
        return self._formed(self.form, found)

    def _hyper(self, arena) -> list[dict]:
        """Writes the optimiser's numbers as they are now, and where its state lies; the states of the parameters."""
        optimizer, names = self.optimizer, self.optimizer.arrays
        states = [optimizer.state_of(place) for _, place in self.updated]
        steps = [state["t"] + 1 for state in states]
        numbers = optimizer.numbers(steps[0])
        if min(steps) != max(steps):
            arena.numbers = None
            for row, t in zip(arena.hyper, steps):
                row[: len(numbers)] = optimizer.numbers(t)
        elif arena.numbers != numbers:
            arena.numbers = numbers
            arena.hyper[:, : len(numbers)] = numbers
        for (v, _), state in zip(self.updated, states):
            for name, key in zip(names, ("first", "second")):
                arena.bind((key, v), state[name])
        return states

    # --- a part of a larger graph --------------------------------------------------------------------------------------

    def _recorded(self, leaves: list) -> Tensor:
        """The forward pass, and a node whose backward is the program's other half."""
        arena = self._arena()  # the node's, until its graph is released
        self._bind(arena, leaves)
        found = self._bind_results(arena)
        self.network.play(arena)
        tensors = [self.tensors.get(v) if v in self.tensors else leaves[self.leaves[v]] for v in self.graph.gradients]
        self._check(arena)
        result = found[self.seeds[0]]
        arrays = [arena.bound[v] for v, *_ in self.parameters] + [arena.bound[v] for v, *_ in self.inputs]

        def pull_back(dy):
            arena.bind(("dy", self.seeds[0]), np.ascontiguousarray(dy))
            shares = {v: np.empty(self.graph.shapes[v], self.dtype) for v in self.graph.gradients if v in self.leaves}
            for v, share in shares.items():
                arena.bind(("gradient", v), share)
            self.network.play(arena, 1)
            for v, _ in self.trained:
                shares[v] = self.network.gradient(arena, v)
            factor = dy if self.graph.loss is not None and dy != 1 else None
            return [shares[v] if factor is None else shares[v] * factor for v in self.graph.gradients]

        result.made_by(Pulled(COMPILED, tensors, arrays, pull_back, lambda: self.arenas.append(arena)))
        return self._formed(self.form, found)

    def explain(self) -> str:
        return self.network.explain()

"""Programs as parts of a compiled function (plan.py): what a backend made of a graph, with what it reads and hands out.

A part is called with the values that are there so far, by number, and adds its own. What it reads from outside of the
function is read where it is, at every call.

    Inference       forward alone
    Differentiable  one node of the tape, whose backward is the program's other half
    Step            forward, backward and the optimiser's update as one program
"""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np

from tinynet import guard
from tinynet.kernels.graph import Graph
from tinynet.optim import SGD, Adam, AdamW, Optimizer
from tinynet.tape import Pulled
from tinynet.tensor import Tensor

COMPILED = SimpleNamespace(name="a compiled function")  # what stands for an op in its node
CLASSES = np.dtype(np.int64)


def kind_of(optimizer: Optimizer) -> str:
    """The kernel of its update (kernels/cpu/layers_kernels.py); none for optimisers that are not ours."""
    if type(optimizer) is SGD:
        return "momentum" if optimizer.momentum else "sgd"
    return "adam" if type(optimizer) in (Adam, AdamW) else ""


class Inference:
    """outside: values from outside of the function, tensors or arrays; the graph's other inputs are among the values of a call."""

    def __init__(self, graph: Graph, outside: dict, math: str, seeds: tuple[int, ...] = ()):
        from tinynet.kernels.cpu.network import Network  # numba is loaded by who compiles
        from tinynet.kernels.cpu.trial import Trial

        self.graph, self.dtype = graph, np.dtype(graph.dtype)
        self.network = Network(graph, seeds, math)
        self.trial = Trial(self.network, partial(Network, graph, seeds, math, slots=1))
        self.tensors = {v: t if isinstance(t := outside[v], Tensor) else Tensor(t) for v in graph.outside if v in outside}
        self.parameters = list(self.tensors.items())
        self.inputs = [v for v in graph.outside if v not in outside]
        self.results = [(v, ("result", v), graph.shapes[v]) for v in graph.results]
        self.version = object()  # another one when a parameter's array is: an arena of the same version looks at the arrays that are there
        self.targets = [(c.op, v, graph.shapes[c.inputs[0]][1]) for c in graph.calls if c.op in ("cross_entropy", "nll_loss") for v in (c.inputs[1],)]

    def __call__(self, values: dict) -> None:
        values.update(self.run(values))

    def run(self, values: dict | list) -> dict:
        """The results."""
        trial = self.trial
        arena = trial.take()
        try:
            self._bind(arena, values)
            found = self._bind_results(arena)
            trial.play(arena)
            if arena.fault[0]:
                self._complain(arena)
        finally:
            trial.give(arena)
        return found

    def renew(self) -> None:
        """Some parameter has another array."""
        self.version = object()

    def _bind(self, arena, values: dict | list) -> None:
        if arena.version is not self.version:
            arena.version = self.version  # before the arrays are read: if one changes meanwhile, so does the version
            for v, t in self.parameters:
                arena.bind(v, t.data)
        for v in self.inputs:
            value = values[v]
            array = value.data if isinstance(value, Tensor) else value
            if arena.bound.get(v) is array:
                continue
            if array.dtype != self.dtype and array.dtype != CLASSES:
                array = array.astype(CLASSES)
            arena.bind_new(v, array if array.flags.c_contiguous else np.ascontiguousarray(array))

    def _bind_results(self, arena) -> dict:
        found = {}
        for v, key, shape in self.results:
            array = np.empty(shape, self.dtype)
            arena.bind_new(key, array)
            found[v] = Tensor(array)
        return found

    def _complain(self, arena) -> None:
        arena.fault[0] = 0
        for op, v, classes in self.targets:
            target = arena.bound[v]
            if target.min() < 0 or target.max() >= classes:
                raise ValueError(f"{op}: classes run from 0 to {classes - 1}; target holds {int(target.min())} to {int(target.max())}")

    # --- looking inside -------------------------------------------------------------------------------------------

    def explain(self) -> str:
        return self.trial.explain()

    def profile(self, values: dict, rounds: int):
        """Times every step of the program; nothing outside of it changes. Of few images both layouts are timed, and the faster is shown."""
        from tinynet.kernels.cpu.profile import profile

        found = []
        for network in self.trial.layouts():
            arena = network.arena()
            self._bind(arena, values)
            self._bind_results(arena)
            found.append(profile(network, arena, self._bind_rest(arena), rounds))
            if arena.fault[0]:
                self._complain(arena)
        return min(found, key=lambda each: each.seconds)

    def _bind_rest(self, arena) -> list:
        """Binds what else a whole run reads and writes; the keys of what it changes."""
        return []


class Differentiable(Inference):
    """seed: the one result whose gradient comes from the rest of the graph."""

    def __init__(self, graph: Graph, outside: dict, math: str, seed: int):
        super().__init__(graph, outside, math, (seed,))
        self.seed = seed

    def __call__(self, values: dict) -> None:
        arena = self.trial.take()  # the node's, until its graph is released
        self._bind(arena, values)
        found = self._bind_results(arena)
        self.trial.play(arena)
        if arena.fault[0]:
            self._complain(arena)
        tensors = [self.tensors[v] if v in self.tensors else values[v] for v in self.graph.gradients]
        arrays = [arena.bound[v] for v in (*self.tensors, *self.inputs)]
        found[self.seed].made_by(Pulled(COMPILED, tensors, arrays, partial(self._pull_back, arena), partial(self.trial.give, arena)))
        values.update(found)

    def _pull_back(self, arena, dy) -> list:
        """The gradients of the graph's inputs, from that of the seed."""
        arena.bind(("dy", self.seed), np.ascontiguousarray(dy))
        shares = {v: np.empty(self.graph.shapes[v], self.dtype) for v in self.graph.gradients if v not in self.tensors}
        for v, share in shares.items():
            arena.bind(("gradient", v), share)
        self.trial.play(arena, 1)
        for v in self.network.weight_gradients:
            shares[v] = arena.network.gradient(arena, v)
        factor = dy if self.graph.loss is not None and dy != 1 else None  # a loss' gradient is known up to a factor
        return [shares[v] if factor is None else shares[v] * factor for v in self.graph.gradients]

    def _bind_rest(self, arena) -> list:
        arena.bind(("dy", self.seed), np.ones(self.graph.shapes[self.seed], self.dtype))
        for v in self.graph.gradients:
            arena.bind(("gradient", v), np.empty(self.graph.shapes[v], self.dtype))
        return []


class Step(Inference):
    """A whole training step: its optimiser, if it has one, has parameters of this graph alone."""

    def __init__(self, graph: Graph, outside: dict, math: str, zeroed: list[Tensor], optimizer: Optimizer | None):
        super().__init__(graph, outside, math)
        self.zeroed, self.optimizer = zeroed, optimizer
        self.kind = "" if optimizer is None else kind_of(optimizer)
        self.trained = [(v, self.tensors[v]) for v in graph.gradients if v in self.network.weight_gradients or v in self.network.stepped]
        places = {id(p): i for i, p in enumerate(optimizer.parameters)} if optimizer is not None else {}
        self.updated = [(v, places[id(self.tensors[v])]) for v in graph.updates]
        self.places = [place for _, place in self.updated]
        kept = {id(t) for t in zeroed}
        self.added_to = [t for _, t in self.trained if id(t) not in kept]
        self.leaves = [t for _, t in self.trained]
        self.stepping = threading.Lock()

    def fits(self) -> bool:
        return self.optimizer is None or kind_of(self.optimizer) == self.kind  # SGD with momentum is another kernel than without

    def adds(self) -> bool:
        """Whether gradients of an earlier step are there, to which this one would add before the optimiser runs."""
        return bool(self.updated and self.added_to) and any(t._grad is not None for t in self.added_to)

    def run(self, values: dict | list) -> dict:
        """The results. At one image a call's Python takes a quarter of its time: so here is no work for each parameter that can be done before."""
        with self.stepping:
            for t in self.zeroed:
                t._grad = None
            before = [(t, t.grad) for t in self.added_to]  # a gradient that still lies in an arena would be lost there
            arena = self.trial.take()
            try:
                self._bind(arena, values)
                states = self._hyper(arena) if self.optimizer is not None else ()
                found = self._bind_results(arena)
                self.trial.play(arena)
                if arena.fault[0]:
                    self._complain(arena)
                gradient = arena.network.gradient
                for v, t in self.trained:
                    t._grad = partial(gradient, arena, v)
                for t, old in before:
                    if old is not None:
                        t._grad = old + t._grad()
                for state in states:
                    state["t"] += 1
            finally:
                self.trial.give(arena)
            if states:
                guard.edited(self.leaves)
            return found

    def _hyper(self, arena) -> list[dict]:
        """Writes the optimiser's numbers as they are now, and where its state lies; the states of the parameters."""
        optimizer, all_states = self.optimizer, self.optimizer.state
        states = [all_states[place] for place in self.places]
        if not all(states):  # the first step
            states = [optimizer.state_of(place) for place in self.places]
        steps = {state["t"] + 1 for state in states}
        numbers = optimizer.numbers(max(steps))
        if len(steps) > 1:
            arena.numbers = None
            for row, state in zip(arena.hyper, states):
                row[: len(numbers)] = optimizer.numbers(state["t"] + 1)
        elif arena.numbers != numbers:
            arena.numbers = numbers
            arena.hyper[:, : len(numbers)] = numbers
        for name, key in zip(optimizer.arrays, ("first", "second")):
            for v, place in self.updated:
                arena.bind((key, v), all_states[place][name])
        return states

    def profile(self, values: dict, rounds: int):
        with self.stepping:
            return super().profile(values, rounds)

    def _bind_rest(self, arena) -> list:
        if self.optimizer is not None:
            self._hyper(arena)
        return [*self.tensors, *((key, v) for v, _ in self.updated for key in ("first", "second") if (key, v) in arena.bound)]

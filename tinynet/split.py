"""From a recording (trace.py) to the parts of a plan (plan.py): programs of the longest runs of calls that the backend can
take (fused.py), and between them single calls, which their own ops play.

    conv2d  relu  exp  conv2d  add  relu  flatten  linear         one program, exp, one program

A run follows the order in which the calls ran. It ends before a call that no program takes, and, where gradients are
recorded, so that one result alone goes on from it: that is what a node of the tape is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinynet.fused import Differentiable, Inference, Step, kind_of
from tinynet.kernels.graph import Call, Graph, Unsupported
from tinynet.op import Op
from tinynet.tensor import FLOATS, Tensor
from tinynet.trace import Trace

LOSSES = ("cross_entropy", "nll_loss")
LAYERS = ("conv2d", "linear", "max_pool2d", "avg_pool2d")  # one of them makes a program faster than single ops


@dataclass
class Single:
    """A call that its own op plays, on the kernels that it always has.

    outside: what it reads from outside of the function. copies: arguments of which it reads a copy, for its result may be a
    view. reason: why it is in no program.
    """

    call: Call
    op: Op
    outside: dict
    copies: set[int]
    reason: str

    @property
    def inputs(self) -> list[int]:
        """What it reads of the values of a call."""
        return [v for v in self.call.inputs if v is not None and v not in self.outside]

    def __call__(self, values: dict) -> None:
        values[self.call.output] = self.op(*self.read(values), **self.call.parameters)

    def read(self, values: dict) -> list:
        """Its inputs."""
        return [self.call.numbers.get(place) if v is None else self._value(v, values) for place, v in enumerate(self.call.inputs)]

    def _value(self, v: int, values: dict):
        if v in self.outside:
            return self.outside[v]
        return np.array(values[v]) if v in self.copies else values[v]


class Splitting:
    """results: values that the function returns."""

    def __init__(self, trace: Trace, results: list[int], recording: bool, math: str):
        self.trace, self.calls, self.results, self.recording, self.math = trace, trace.calls, results, recording, math
        used = {v for call in self.calls for v in (*call.inputs, call.output) if v is not None}
        self.shapes = {v: trace.values[v].shape for v in used}
        self.root = None if trace.root is None else trace.numbers[id(trace.root)]
        self.last_read = {v: k for k, call in enumerate(self.calls) for v in call.inputs}
        self.last_read.update({v: len(self.calls) for v in (*results, self.root)})
        self.barred = {k: reason for k, call in enumerate(self.calls) if (reason := self._barred(call))}

    def _barred(self, call: Call) -> str:
        """Why a call is in no program, whatever runs around it; "" if nothing says so yet."""
        if not self.trace.ops[call.output].ours:
            return "it is an op of your own"
        if call.numbers:
            return "it has a number for an input; only single kernels take one"
        if self._dtype(call) not in FLOATS:
            return f"its result is {self._dtype(call)}"
        arrays = [t.data if isinstance(t := self.trace.outside[v], Tensor) else t for v in call.inputs if v in self.trace.outside]
        return "" if all(a.flags.c_contiguous for a in arrays) else "a parameter does not lie in one piece; use np.ascontiguousarray"

    def _dtype(self, call: Call):
        return self.trace.values[call.output].dtype

    def _needs(self, value: int) -> bool:
        return self.recording and isinstance(t := self.trace.values[value], Tensor) and t.requires_grad

    def _escaping(self, start: int, stop: int) -> list[int]:
        """Values of some calls in a row through which gradients come back from what is read later."""
        return [call.output for call in self.calls[start:stop] if self.last_read.get(call.output, -1) >= stop and self._needs(call.output)]

    def graph(self, start: int, stop: int) -> Graph:
        """Some calls in a row as a graph, whose results are what others read of them."""
        calls = self.calls[start:stop]
        made = {call.output: call for call in calls}
        outside = list(dict.fromkeys(v for call in calls for v in call.inputs if v is not None and v not in made))
        results = [v for v in made if self.last_read.get(v, -1) >= stop]
        batched = {v for v in outside if v not in self.trace.outside}
        seeds = self._escaping(start, stop)
        gradients = [v for v in outside if self._needs(v)] if seeds else []
        loss = next((v for v in seeds if made[v].op in LOSSES), None)
        return Graph(self.shapes, self._dtype(calls[0]), calls, outside, batched, results, loss, gradients)

    # --- a whole step -------------------------------------------------------------------------------------------

    def step(self) -> Step:
        """All calls, backward and the optimiser as one program. Raises Unsupported where that can't be."""
        trace, first, last = self.trace, self.calls[0], self.calls[-1]
        for k, reason in self.barred.items():
            raise Unsupported(self.calls[k], reason)
        graph = self.graph(0, len(self.calls))
        if graph.loss != self.root:
            raise Unsupported(last, "backward starts from something else than a loss")
        if any(v in graph.batched for v in graph.gradients):
            raise Unsupported(first, "an argument needs a gradient; in a whole step only parameters may")
        if trace.optimizer is not None:
            if not kind_of(trace.optimizer):
                raise Unsupported(last, f"{type(trace.optimizer).__name__} is no SGD, Adam or AdamW")
            values = {id(trace.outside[v]): v for v in graph.gradients}
            if any(id(p) not in values for p in trace.optimizer.parameters):
                raise Unsupported(last, "the optimiser has parameters that the loss does not depend on")
            graph.updates.update({values[id(p)]: kind_of(trace.optimizer) for p in trace.optimizer.parameters})
        return Step(graph, trace.outside, self.math, list({id(t): t for t in trace.zeroed}.values()), trace.optimizer)

    # --- part after part ----------------------------------------------------------------------------------------

    def parts(self) -> list[Inference | Single]:
        found, start = [], 0
        while start < len(self.calls):
            graph, reason = self._longest(start)
            if graph is None:
                found.append(self._single(self.calls[start], reason))
                start += 1
            else:
                found.append(self._program(graph))
                start += len(graph.calls)
        return found

    def _longest(self, start: int) -> tuple[Graph | None, str]:
        """The longest run from a call on that a program can take, or why there is none."""
        from tinynet.kernels.cpu.fuse import Fusing

        stop = next((k for k in range(start, len(self.calls)) if k in self.barred), len(self.calls))
        reason = self.barred.get(start, "")
        while stop > start:
            while len(self._escaping(start, stop)) > 1:
                stop -= 1
            graph = self.graph(start, stop)
            try:
                Fusing(graph)
            except Unsupported as unsupported:
                stop, reason = next(k for k, call in enumerate(self.calls) if call is unsupported.call), str(unsupported)
                continue
            if len(graph.calls) < len(self.calls) and not any(call.op in LAYERS for call in graph.calls):
                return None, "there is no layer beside it, and a program would copy what it reads"
            return graph, ""
        return None, reason

    def _single(self, call: Call, reason: str) -> Single:
        outside = {v: self.trace.outside[v] for v in call.inputs if v in self.trace.outside}
        return Single(call, self.trace.ops[call.output], outside, self.trace.copies & set(call.inputs), self.sentence(call, reason))

    def _program(self, graph: Graph) -> Inference:
        for v in graph.results:
            if self._needs(v):
                return Differentiable(graph, self.trace.outside, self.math, v)
        return Inference(graph, self.trace.outside, self.math)

    def sentence(self, call: Call, reason: str) -> str:
        shapes = ", ".join(str(self.shapes[v]) for v in call.inputs if v is not None)
        return f"{call.op} ({shapes}) is in no program: {reason}"

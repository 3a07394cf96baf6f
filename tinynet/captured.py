"""Compiled functions on a GPU: the ops of one call as one CUDA graph, which a later call launches as a whole.

    fill    what the call was given is copied into buffers of the graph's own
    write   the optimiser's numbers (lr, 1 - b2^t, ...) of this step go where the graph's kernels read them
    launch  forward, backward and the optimiser's update run; parameters and the optimiser's state change where they are
    copy    what the function returns is copied out; gradients stay in the graph's memory, until the next call

Nothing here waits for the GPU. A graph remembers addresses: where a parameter or the optimiser's state is another array, it is
captured anew. What can't be captured is played op by op, from the same buffers, and so is everything on
`cuda-emulator`, which has no graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from tinynet import guard
from tinynet.devices import here, moved
from tinynet.inputs import tensor
from tinynet.kernels.gpu_arrays import Graph
from tinynet.optim import SGD, Adam, AdamW
from tinynet.returned import NoPlan, Returned
from tinynet.runs import ConvPool, fused
from tinynet.split import Single
from tinynet.tensor import Tensor
from tinynet.trace import Trace


class Captured:
    """What plan.py keeps of a function on a GPU, as it keeps a Plan of one on the CPU."""

    def __init__(self, trace: Trace, result, recording: bool, device: str):
        self.returned, self.device, self.optimizer = Returned(trace, result), device, trace.optimizer
        self.root = None if trace.root is None else trace.numbers[id(trace.root)]
        if any(isinstance(a, Tensor) and a.requires_grad for a in trace.arguments):
            raise NoPlan("an argument needs a gradient; on a GPU only parameters may")
        if self.root is None and recording and any(trace.values[v].requires_grad for v in self.returned.results):
            raise NoPlan("its result needs a gradient, which no graph passes on; call backward inside, or call it in no_grad()")
        calls = [Single(call, trace.ops[call.output], {v: trace.outside[v] for v in call.inputs if v in trace.outside}, set(), "") for call in trace.calls]
        shapes = {v: trace.values[v].shape for call in trace.calls for v in (*call.inputs, call.output) if v is not None}
        self.ops, self.calls = len(calls), fused(calls, shapes, {*self.returned.results, self.root})
        self.zeroed = [t for t in trace.zeroed if not any(t is a for a in trace.arguments)]
        self.known = [(t, t.data, t._requires_grad) for t in trace.outside.values() if isinstance(t, Tensor)]
        trained = {id(t): t for t in (*(t for t, _, needs in self.known if needs), *(self.optimizer.parameters if self.optimizer else ()))}
        self.trained = list(trained.values()) if self.root is not None else []
        self.steps = type(self.optimizer) in (SGD, Adam, AdamW)  # inside: of others nobody knows what they do besides launching kernels
        self.buffers: list[Tensor] = []
        self.outputs: dict = {}
        self.gradients: list = []
        self.live: dict = {}  # the optimiser's numbers in the GPU's memory -> the places of the parameters that they are for
        self.graph: Graph | None = None
        self.reason = ""  # why there is no graph
        self.playing = threading.Lock()

    # --- a call ---------------------------------------------------------------------------------------------------

    def fits(self) -> bool:
        """Whether what is outside is still what was captured, at the same place."""
        return all(t.data is array and t._requires_grad is needs for t, array, needs in self.known)

    def adds(self) -> bool:
        """Whether gradients are there that this one would be added to."""
        kept = {id(t) for t in self.zeroed}
        return any(t._grad is not None for t in self.trained if id(t) not in kept)

    def __call__(self, leaves: list):
        with self.playing, here(self.device) as xp:
            self._fill(leaves)
            if self.graph is not None and self._is_current():
                self._launch()
            elif xp is np or self.reason:
                self._play()
            else:
                self._capture(xp)
            if self.optimizer is not None and not self.steps:
                self.optimizer.step()
            return self.returned.filled({v: Tensor(array.copy(), device=self.device) for v, array in self.outputs.items()})

    def _fill(self, leaves: list) -> None:
        if len(self.buffers) < len(leaves):
            self.buffers = [tensor(leaf, device=self.device) for leaf in leaves]
            return
        for buffer, leaf in zip(self.buffers, leaves):
            buffer.data[...] = moved(leaf.data if isinstance(leaf, Tensor) else leaf, self.device)

    def _play(self, step: Callable[[], None] | None = None) -> None:
        """Everything, op by op. step: how the optimiser steps, if not as always."""
        values = dict(enumerate(self.buffers))
        for t in self.zeroed:
            t._grad = None
        for single in self.calls:
            single(values)
        if self.root is not None:
            values[self.root].backward()
        if self.steps:
            (step or self.optimizer.step)()
        self.outputs = {v: values[v].data for v in self.returned.results}

    def _capture(self, xp) -> None:
        """Makes the graph, and launches it. While it is made nothing is computed, but Python's side of the step is done."""
        self.graph = None
        if self.steps:
            self._prepare_steps()
        gradients, states = [(t, t._grad) for t in self.trained], [dict(state) for state in self.optimizer.state] if self.steps else []
        try:
            self.graph = Graph(xp, lambda: self._play(self._step_live))
        except Exception as error:  # whatever CUDA or CuPy refuses: the same ops run by themselves, and say so if they are wrong
            self.reason = f"{type(error).__name__}: {error}"
            for t, gradient in gradients:
                t._grad = gradient
            for state, before in zip(self.optimizer.state if self.steps else [], states):
                state.update(before)
            self._play()
            return
        self.gradients, self.kept = [(t, t._grad) for t in self.trained], self._state()
        stepped = {live: [place for place in places if self.optimizer.parameters[place]._grad is not None] for live, places in self.live.items()}
        self.live = {live: places for live, places in stepped.items() if places}  # the rest got no gradient, and made no step
        self._write_numbers()
        self.graph.launch()

    def _prepare_steps(self) -> None:
        """What steps need before a graph is made, which would make it again in every launch: the optimiser's state, and memory for
        its numbers, the same for parameters that have made equally many steps."""
        from tinynet.kernels.cuda.optimizers import Live

        used, shared = {id(t) for t, _, _ in self.known}, {}
        for place, t in enumerate(self.optimizer.parameters):
            if id(t) in used:
                shared.setdefault((t.dtype, self.optimizer.state_of(place)["t"]), []).append(place)
        self.live = {Live(self.optimizer.parameters[places[0]].data): places for places in shared.values()}

    def _step_live(self) -> None:
        for live, places in self.live.items():
            with live:
                for place in places:
                    self.optimizer.step_of(place)

    def _write_numbers(self) -> None:
        for live, places in self.live.items():
            live.write(self.optimizer.numbers(self.optimizer.state[places[0]]["t"]))

    def _launch(self) -> None:
        for t, gradient in self.gradients:
            t._grad = gradient
        if self.steps:
            stepped = [(t, state) for t, state in zip(self.optimizer.parameters, self.optimizer.state) if t._grad is not None]
            for _, state in stepped:
                state["t"] += 1
            self._write_numbers()
            guard.edited(t for t, _ in stepped)
        self.graph.launch()

    def _state(self) -> tuple:
        """What a graph has in it of the optimiser: the names of what it keeps, and the arrays."""
        if not self.steps:
            return (), []
        return self.optimizer.arrays, [array for state in self.optimizer.state for name, array in state.items() if name != "t"]

    def _is_current(self) -> bool:
        (names, arrays), (were, kept) = self._state(), self.kept
        alike = all(len({self.optimizer.state[place].get("t") for place in places}) == 1 for places in self.live.values())
        return alike and names == were and len(arrays) == len(kept) and all(a is b for a, b in zip(arrays, kept))

    # --- looking inside -------------------------------------------------------------------------------------------

    def explain(self) -> str:
        rest = ", backward" * (self.root is not None) + f", {type(self.optimizer).__name__}'s update" * self.steps
        how = f"op by op, since no graph could be made: {self.reason}" if self.reason else "op by op: only a GPU has graphs" if self.device == "cuda-emulator" else "as one CUDA graph"
        lines = [f"{self.ops} ops{rest}, played on {self.device} {how}"]
        lines += [f"{' + '.join(single.op.name for single in run.calls)} are one kernel" for run in self.calls if isinstance(run, ConvPool)]
        if self.optimizer is not None and not self.steps:
            lines.append(f"{type(self.optimizer).__name__} steps by itself: a graph would repeat what it launched once, and nobody knows what else it does")
        return "\n".join(lines)

    def profile(self, leaves: list, rounds: int):
        raise ValueError("profile: only programs on cpu are timed step by step; `tinynet bench gpu` times kernels on a GPU")

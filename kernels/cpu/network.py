"""A whole network, forward and backward, as one program: what `tinynet.compile` runs on the CPU.

The walk of a network through this folder: fuse.py (which calls become one kernel); network_planner.py,
network_convolution.py, network_winograd.py, network_im2col.py and network_layers.py (for each unit, the kernels of its forward and backward); this file (the
phases they run in); memory.py (where everything lies); program.py and threads.py (who plays it).

Image by image: all layers of one image run one after the other on one thread, so that what lies between layers
never leaves the cache; the weights' gradients are summed a chunk of images at a time, then a bundle of chunks, then
all. Only layers whose weights are larger than the cache run as a phase of their own, over all images, and where there
are such, convolutions of small images with much padding do too. With fewer images than threads, each kernel is a phase
that threads share, by rows or by lanes, if that turns out to be faster (trial.py).

Weights stay in the parameters' own memory, so whoever changes them is seen; convolutions read a copy, in the
order that tiles want (it is small, or serves many pixels: network_im2col.py has those for which it is not). That is made at every call;
without training, only where weights are not what they were.

The gradient of a value is kept as it is behind its ReLU: whoever computes it applies the mask.
"""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np

from tinynet.kernels.cpu import layers, threads
from tinynet.kernels.cpu.fuse import Fusing
from tinynet.kernels.cpu.memory import Arena, At, Buffer, Memory, Outside, Program, lay_out
from tinynet.kernels.cpu.network_convolution import Convolutions
from tinynet.kernels.cpu.network_im2col import Im2col
from tinynet.kernels.cpu.network_layers import HYPER, Layers
from tinynet.kernels.cpu.network_planner import WORTH_SHARING, Step
from tinynet.kernels.cpu.network_winograd import Winograd
from tinynet.kernels.cpu.program import play, table_of
from tinynet.kernels.cpu.rows import HEAD, HEADS, ROW
from tinynet.kernels.graph import Graph

ALL_SUMS = 32 << 20  # bytes of the chunks' sums together: fewer chunks, 4 or a multiple that threads share evenly, where one is large


class Network(Convolutions, Winograd, Im2col, Layers):
    """The program of a graph. Raises Unsupported where a call has no kernel here.

    seeds: values whose gradient the caller gives for the backward pass, in place of a loss; then there are two programs.
    """

    def __init__(self, graph: Graph, seeds: tuple[int, ...] = (), math: str = "strict", slots: int | None = None):
        """slots: threads that play it; numba's setting if left out."""
        self.graph, self.seeds, self.math = graph, seeds, math
        fusing = Fusing(graph, math)
        self.units, self.made, self.layouts = fusing.units, fusing.made, fusing.layouts
        self.images = fusing.images
        self.dtype = np.dtype(graph.dtype)
        self.T, self.item = self.dtype.type, self.dtype.itemsize
        self.slots = slots or threads.count()
        self.training = bool(graph.gradients)
        few = self.slots > 1 and (self.images < self.slots or self.images < 4 * self.slots and self.images % self.slots)
        self.few = bool(few)
        self.memories: list[Memory] = []
        self.prepare: list[Step] = []  # weights: before the first image
        self.steps: list[Step] = []
        self.finish: list[Step] = []  # after the last image: sums, products over all images
        self.sums: list[Memory] = []
        self.views: dict = {}  # (value, planar) -> View
        self.rows: dict = {}  # value -> memory of a row
        self.gradients: dict[int, Buffer] = {}  # value -> buffer of its gradient so far
        self.weight_gradients: dict[int, Memory] = {}
        self.stepped: dict[int, tuple] = {}  # weights whose gradient is used at once, and kept nowhere: what it is computed from
        self.fault = self.memory(Memory(8, "fault"))
        self.scale = self.memory(Memory(16, "scale"))
        self.scaled = 1.0  # what a loss is multiplied by
        self.needs = self._needed()
        self.extents = self._extents()
        for unit in self.units:
            getattr(self, unit.kind)(unit)
        self._results()
        self.border = len(self.steps)
        if self.training:
            for v in seeds:
                if v != graph.loss:
                    self._bring_gradient(v)
            for unit in reversed(self.units):
                if self.needs.get(unit.output) and (unit.output in self.gradients or unit.kind in ("cross_entropy", "nll_loss")):
                    getattr(self, unit.kind + "_back")(unit)
            self._hand_out_gradients()
            self._update()
        self._assemble()

    @cached_property
    def apart(self) -> bool:
        """Whether some layer runs over all images at once in any case: then what lies between layers is in memory for all of them."""
        return any(self.wide(unit) if unit.kind == "linear" else unit.kind == "conv2d" and self.heavy(unit) for unit in self.units)

    # --- optimisers ---------------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        self.updates: list[Step] = []
        self.hyper = self.memory(Memory(len(self.graph.updates) * HYPER * 8 // self.item, "numbers of the optimiser"))
        for v, kind in self.graph.updates.items():
            if v not in self.weight_gradients:
                continue
            gradient, count = self.weight_gradients[v], prod(self.graph.shapes[v])

            def build(v=v, kind=kind, gradient=gradient, count=count):
                numbers = dict(
                    count=count, w=At(Outside(v), alone=True), g=At(gradient, alone=True), first=At(Outside(("first", v)), alone=True), second=At(Outside(("second", v)), alone=True),
                    hyper=self.hyper_of(v), fault=At(self.fault, alone=True),
                )  # fmt: skip
                return [(self.kernel(getattr(layers, kind)), layers.UPDATE, numbers)]

            self.step("update", build, [], 4 * count, once=True, into=self.updates, with_before=True)

    # --- phases, memory, tables ------------------------------------------------------------------------------------------------

    def _assemble(self) -> None:
        bytes_a_chunk = sum(m.size() for m in self.sums if not m.copies) * self.item
        many = max(4, min(16, ALL_SUMS // max(bytes_a_chunk, 1) // 4 * 4)) if self.sums else 64
        # With sums, from shapes alone: their order must not depend on the number of threads.
        self.chunks = min(self.images, many)
        by_chunks = [m for m in self.sums if not m.copies]
        for m in by_chunks:
            m.copies = self.chunks
        if by_chunks and self.folds:
            self.fold(by_chunks)
        updates = self.updates if self.training else []
        if self.seeds:
            parts = [self.prepare + self.steps[: self.border], self.steps[self.border :] + self.finish]
        else:
            parts = [self.prepare + self.steps + self.finish + updates]
        breaks = {id(group[0]) for group in (self.prepare, self.finish, updates) if group}
        self.phases: list[list[tuple[list[Step], int, int, int]]] = [self._phases(steps, breaks) for steps in parts]
        number = 0
        for program in self.phases:
            for steps, *_ in program:
                for step in steps:
                    for buffer in step.touches:
                        buffer.phases.add(number)
                        buffer.kept |= step.once and self.images > 1  # whoever goes over all images at once
                number += 1
        self.size = lay_out(self.memories, self.images, self.slots, self.item)
        self.programs = [self.program(phases) for phases in self.phases]

    def _phases(self, steps: list[Step], breaks: set[int]) -> list[tuple[list[Step], int, int, int]]:
        found: list[tuple[list[Step], int, int, int]] = []
        for step in steps:
            if step.once:
                schedule = (1, 1, step.shares)
                joins = step.with_before and id(step) not in breaks
            elif step.bundles:
                schedule, joins = (step.bundles, step.bundles, step.shares), False
            else:
                schedule = (self.images, self.chunks, step.shares or self.shares(step.flops))
                joins = schedule[2] == 1  # shares of one kernel must all be done before the next reads what they wrote
            if joins and found and found[-1][1:] == schedule:
                found[-1][0].append(step)
            else:
                found.append(([step], *schedule))
        # A phase that runs once is shared by all threads, in pieces small enough that none waits for long, and worth a piece.
        once = [0 if shares else sum(step.flops for step in steps) for steps, _, _, shares in found]
        shared = [(steps, images, chunks, shares or max(1, min(4 * self.slots, int(work / WORTH_SHARING)))) for (steps, images, chunks, shares), work in zip(found, once)]
        joined: list[tuple[list[Step], int, int, int]] = []
        for steps, *schedule in shared:
            if joined and schedule == [1, 1, 1] == list(joined[-1][1:]):  # one thread plays them all: nobody need wait in between
                joined[-1][0].extend(steps)
            else:
                joined.append((steps, *schedule))
        return joined

    def program(self, phases) -> Program:
        """The table of phases, (steps, images, chunks, shares) each: of all that there are, or of what profile.py times."""
        own, outside, laid = [], {}, []
        start = HEADS + HEAD * len(phases)
        for steps, *schedule in phases:
            rows = []
            for address, names, values in (r for step in steps for r in step.build()):
                rows.append(self._row(address, names, values, start, own, outside))
                start += ROW
            laid.append((rows, *schedule))
        return Program(table_of(laid, self.slots), own, outside)

    def _row(self, address: int, names, values: dict, start: int, own: list, outside: dict) -> list[int]:
        found = [address] + [0] * (ROW - 1)
        for name, value in values.items():
            at = 1 + getattr(names, name)
            for i, number in enumerate(value if isinstance(value, tuple) else (value,)):
                if not isinstance(number, At):
                    found[at + i] = int(number)
                    continue
                m, bytes_in = number.memory, number.numbers_in() * self.item
                if isinstance(m, Outside):
                    outside.setdefault(m.key, []).append((start + at + i, bytes_in))
                else:
                    own.append((start + at + i, m.offset + bytes_in))
                if not number.alone:
                    found[at + i + 1 : at + i + 3] = m.slot, m.image
        return found

    def explain(self) -> str:
        """The program in words: what runs as one kernel, in which phases, on how much memory."""
        lines = [f"{self.images} images, {self.size / 2**20:.1f} MiB on {self.slots} threads"]
        for program, name in zip(self.phases, ("forward", "backward") if self.seeds else ("program",)):
            for n, (steps, images, chunks, shares) in enumerate(program):
                how = f"for {images} bundles of chunks" if steps[0].bundles else f"image by image, in {chunks} chunks" if images > 1 or not steps[0].once else "once"
                lines.append(f"{name}, phase {n}: {how}" + (f", {shares} threads a kernel" if shares > 1 and not steps[0].once else ""))
                words = [step.what for step in steps]
                lines += [f"    {word}" + (f" (x {words.count(word)})" if words.count(word) > 1 else "") for word in dict.fromkeys(words)]
        return "\n".join(lines)

    # --- running --------------------------------------------------------------------------------------------------------------------

    def arena(self) -> Arena:
        arena = Arena(self.size, self.programs)
        arena.network, arena.seconds = self, 0.0  # seconds: see trial.py
        arena.view(self.scale, self.T, (1,))[0] = self.scaled
        arena.fault = arena.view(self.fault, np.int64, (1,))
        if self.training:
            arena.hyper, arena.numbers = arena.view(self.hyper, np.float64, (len(self.graph.updates), HYPER)), None
        return arena

    def gradient(self, arena: Arena, value: int) -> np.ndarray:
        """The gradient of a parameter that the program last computed; of one that was used at once, computed again."""
        if value not in self.stepped:
            return arena.view(self.weight_gradients[value], self.T, self.graph.shapes[value]).copy()
        x, dy, n, k, t = self.stepped[value]

        def rows(memory, count):
            if isinstance(memory, Outside):
                return arena.bound[memory.key]
            return np.stack([arena.memory[memory.offset + i * memory.image :][: count * self.item].view(self.T) for i in range(n)])

        return (rows(dy, k).T @ rows(x, t)).reshape(self.graph.shapes[value])

    def play(self, arena: Arena, program: int = 0) -> None:
        play(arena.addresses[program], self.slots)

"""A whole network, forward and backward, as one program: what `tinynet.compile` runs on the CPU.

The walk of a network through this folder: fuse.py (which calls become one kernel), this file (for each unit the
kernels of its forward and backward, and the phases they run in), memory.py (where everything lies), program.py (who
plays it).

Image by image: all layers of one image run one after the other on one thread, so that what lies between layers
never leaves the cache; the weights' gradients are summed a chunk of images at a time. Only layers whose weights
are larger than the cache (dense ones) run as a phase of their own, over all images. With fewer images than threads,
each kernel is a phase that threads share.

Weights stay in the parameters' own memory, so whoever changes them is seen; convolutions read a copy, in the
order that tiles want, which is made anew at every call (it is small).

The gradient of a value is kept as it is behind its ReLU: whoever computes it applies the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from tinynet.geometry import nchw, reach
from tinynet.kernels.cpu import layers, threads, tiles, tiles_winograd
from tinynet.kernels.cpu.conv2d_simd import phases, span
from tinynet.kernels.cpu.fuse import Fusing, Unit
from tinynet.kernels.cpu.memory import Arena, At, Buffer, Memory, Outside, Program, lanes_of, lay_out
from tinynet.kernels.cpu.program import HEAD, ROW, compiled, play
from tinynet.kernels.cpu.simd import TARGET
from tinynet.kernels.graph import Graph

SMALL = 256 << 10  # bytes of a dense layer's weights that stay in the cache, image after image
ALL_SUMS = 32 << 20  # bytes of the chunks' sums together: fewer chunks, but 4, where one is large
HYPER = 16  # numbers of an optimiser (float64), for each parameter
WORTH_A_KERNEL = 500_000  # operations of a layer on one image for which a kernel with a constant step between pixels is compiled
WORTH_SHARING = 20_000  # operations of a kernel on one image that are worth a thread's waking


@dataclass(frozen=True)
class View:
    """Images as a kernel reads them: a memory, steps from pixel to pixel, and to the next channel."""

    memory: Buffer | Outside
    channels: int
    rows: int
    columns: int
    steps: tuple[int, int, int] | None = None  # of what lies outside

    @property
    def y(self) -> int:
        return self.steps[0] if self.steps else self.memory.y

    @property
    def x(self) -> int:
        return self.steps[1] if self.steps else self.memory.x

    @property
    def channel(self) -> int:
        return self.steps[2] if self.steps else self.memory.channel

    def at(self, i: int = 0, j: int = 0) -> At:
        return At(self.memory, i * self.y + j * self.x) if self.steps else At(self.memory, 0, i, j)


@dataclass
class Step:
    """One kernel's rows. build: called when memory is laid out; touches: buffers it reads or writes.

    once: it runs once for all images; with_before: in the same phase as the step before it.
    """

    what: str
    build: Callable[[], list[tuple[int, object, dict]]]
    touches: list
    flops: float = 0
    once: bool = False
    with_before: bool = False


def joined(numbers: dict) -> None:
    """Taps of a row whose numbers follow each other in memory, images and weights alike, are one run of terms."""
    if numbers["tb"] == numbers["terms"] * numbers["tc"] and numbers["wb"] == numbers["terms"] * numbers.get("w_term", 0):
        numbers["terms"] *= numbers["taps_b"]
        numbers["taps_b"] = min(numbers["taps_b"], 1)


class Network:
    """The program of a graph. Raises Unsupported where a call has no kernel here.

    seeds: values whose gradient the caller gives for the backward pass, in place of a loss; then there are two programs.
    """

    def __init__(self, graph: Graph, seeds: tuple[int, ...] = (), math: str = "strict"):
        self.graph, self.seeds, self.math = graph, seeds, math
        fusing = Fusing(graph)
        self.units, self.made, self.layouts = fusing.units, fusing.made, fusing.layouts
        self.images = fusing.images
        self.dtype = np.dtype(graph.dtype)
        self.T, self.item = self.dtype.type, self.dtype.itemsize
        self.slots = threads.count()
        self.training = bool(graph.gradients)
        few = self.slots > 1 and (self.images < self.slots or self.images < 4 * self.slots and self.images % self.slots)
        self.few = bool(few)
        self.memories: list[Memory] = []
        self.prepare: list[Step] = []  # weights, zeros: before the first image
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
                self._bring_gradient(v)
            for unit in reversed(self.units):
                if self.needs.get(unit.output) and (unit.output in self.gradients or unit.kind in ("cross_entropy", "nll_loss")):
                    getattr(self, unit.kind + "_back")(unit)
            self._hand_out_gradients()
            self._update()
        self._assemble()

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def memory(self, m: Memory) -> Memory:
        self.memories.append(m)
        return m

    def buffer(self, channels: int, rows: int = 1, columns: int = 1, planar: bool = False, what: str = "") -> Buffer:
        return self.memory(Buffer(channels, rows, columns, planar, what))

    def step(self, what: str, build, touches, flops: float = 0, once: bool = False, into: list | None = None, with_before: bool = False) -> None:
        (self.steps if into is None else into).append(Step(what, build, [t for t in touches if isinstance(t, Buffer)], flops, once, with_before))

    def kernel(self, factory, *constants) -> int:
        return compiled(factory, *constants, self.T)

    def shape(self, value: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of an image: of a result, as many as somebody reads."""
        channels, *whole = nchw(self.graph.shapes[value], self.layouts[value])[1:]
        return (channels, *self.extents.get(value, whole))

    def _extents(self) -> dict[int, tuple[int, int]]:
        """Rows and columns of each image that are read. Windows that don't fit any more leave out the last ones: then nobody
        need compute those (the article's small network reads 14 x 14 of its first layer's 15 x 15)."""
        found: dict[int, tuple[int, int]] = {}

        def read(value: int, rows: int, columns: int) -> None:
            whole, before = nchw(self.graph.shapes[value], self.layouts[value])[2:], found.get(value, (0, 0))
            found[value] = tuple(min(w, max(b, n)) for w, b, n in zip(whole, before, (rows, columns)))

        for v in (*self.graph.results, *self.seeds):
            if self.is_image(v):
                read(v, *nchw(self.graph.shapes[v], self.layouts[v])[2:])
        for unit in reversed(self.units):
            if not self.is_image(unit.x):
                continue
            if not self.is_image(unit.output):
                read(unit.x, *nchw(self.graph.shapes[unit.x], self.layouts[unit.x])[2:])
                continue
            rows, columns = found.get(unit.output, (1, 1))
            if unit.other is not None:
                read(unit.other, rows, columns)
            if unit.pool:
                rows, columns = 2 * rows, 2 * columns
            if unit.window:
                p = unit.window
                kernel = p.get("kernel_size") or self.graph.shapes[unit.weight][2:]
                rows, columns = ((n - 1) * s + reach(k, d) - pad[0] for n, s, k, d, pad in zip((rows, columns), p["stride"], kernel, p["dilation"], p["padding"]))
            read(unit.x, max(rows, 1), max(columns, 1))
        return {v: n for v, n in found.items() if v not in self.graph.batched}

    def _needed(self) -> dict[int, bool]:
        needs = {v: True for v in self.graph.gradients}
        for unit in self.units:
            needs[unit.output] = any(needs.get(v, False) for v in (unit.x, unit.weight, unit.bias, unit.other) if v is not None)
        return needs

    def width(self, lanes: int) -> int:
        """Lanes of a vector for elementwise kernels: the widest that divides."""
        return next(w for w in tiles.widths(self.T) if lanes % w == 0)

    # --- values as images and rows -------------------------------------------------------------------------------

    def image(self, value: int, halo=(0, 0, 0, 0), planar: bool = False) -> View:
        """The value as images with at least this halo (top, bottom, left, right); planar: channels in planes will do."""
        outside = value in self.graph.batched
        channels, rows, columns = self.shape(value)
        planar = planar and outside and channels <= 8 and self.layouts[value] == "NCHW"
        found = self.views.get((value, planar))
        if found is None:
            if outside and planar and not any(halo):
                steps = (columns, 1, rows * columns)
                return View(Outside(value, channels * rows * columns * self.item), channels, rows, columns, steps)
            buffer = self.buffer(channels, rows, columns, planar, f"value {value}")
            found = self.views[value, planar] = View(buffer, channels, rows, columns)
            if outside:
                self._bring(value, found)
        if isinstance(found.memory, Buffer):
            found.memory.need(*halo)
        return found

    def _bring(self, value: int, view: View) -> None:
        buffer, (c, h, w) = view.memory, self.shape(value)
        source = Outside(value, c * h * w * self.item)
        self._copy_image(f"images into rows of {'columns' if buffer.planar else 'pixels'}", View(source, c, h, w, (w, 1, h * w) if self.layouts[value] == "NCHW" else (w * c, c, 1)), view)

    def _copy_image(self, what: str, source: View, target: View, into: list | None = None, mask: View | None = None) -> None:
        """Images from one order of their axes into another."""
        c, h, w = source.channels, source.rows, source.columns

        def build():
            if mask is None and source.channel == target.channel == 1 or source.x == target.x == 1:
                if source.x == 1:  # planes
                    extents = dict(planes=c, rows=h, run=w, x_plane=source.channel, x_row=source.y, y_plane=target.channel, y_row=target.y)
                else:
                    extents = dict(planes=h, rows=w, run=c, x_plane=source.y, x_row=source.x, y_plane=target.y, y_row=target.x)
                return [(self.kernel(layers.bring), layers.BRING, dict(extents, x=source.at(), y=target.at()))]
            if source.channel == 1:  # pixels to planes
                extents = dict(rows=h, high=w, wide=c, x_row=source.y, x_step=source.x, y_row=target.y, y_step=target.channel)
            else:
                extents = dict(rows=h, high=c, wide=w, x_row=source.y, x_step=source.channel, y_row=target.y, y_step=target.x)
            masked = dict(mask=mask.at(), mask_row=mask.y, mask_step=mask.x) if mask is not None else {}
            return [(self.kernel(layers.turn), layers.TURN, dict(extents, x=source.at(), y=target.at(), **masked))]

        self.step(what, build, [source.memory, target.memory, mask and mask.memory], c * h * w, into=into)

    def row(self, value: int):
        """(memory, numbers) of a value that is a row for each image."""
        count = prod(self.graph.shapes[value][1:])
        if value in self.graph.batched:
            return self.rows.setdefault(value, Outside(value, count * self.item)), count
        if value not in self.rows:
            self.rows[value] = self.buffer(count, what=f"value {value}")
        return self.rows[value], count

    # --- gradients ---------------------------------------------------------------------------------------------------

    def is_image(self, value: int) -> bool:
        return len(self.graph.shapes[value]) == 4

    def mask(self, value: int):
        """What lets a gradient of the value pass: the value itself, if it is ReLU's result; None if all passes."""
        unit = self.made.get(value)
        if unit is None or not unit.relu or unit.pool:
            return None
        return self.image(value) if self.is_image(value) else self.row(value)[0]

    def contribution(self, value: int) -> tuple[Buffer, Buffer | None]:
        """(where the next share of the value's gradient goes, what was there before, which is to be added)."""
        before = self.gradients.get(value)
        if self.is_image(value):
            c, h, w = self.shape(value)
            buffer = self.buffer(c, h, w, what=f"gradient of value {value}")
        else:
            buffer = self.buffer(prod(self.graph.shapes[value][1:]), what=f"gradient of value {value}")
        self.gradients[value] = buffer
        return buffer, before

    def joined(self, value: int) -> Buffer:
        """As `contribution`, for kernels that can't add: the sum is a step of its own, which `add_joined` appends."""
        buffer, before = self.contribution(value)
        if before is not None:
            self._pending = (value, before)
        return buffer

    def add_joined(self, value: int) -> None:
        pending = getattr(self, "_pending", None)
        if pending and pending[0] == value:
            share, before = self.gradients[value], pending[1]
            self._pending = None
            target, _ = self.contribution(value)
            self._combine("sum of gradients", share, before, target)

    def _combine(self, what: str, a, b, y, relu: bool = False, mask=None) -> None:
        def build():
            numbers = dict(rows=y.rows, columns=y.columns, lanes=y.channels, a=At(a), a_y=a.y, a_x=a.x, y=At(y), y_y=y.y, y_x=y.x, relu=relu)
            if b is not None:
                numbers.update(b=At(b), b_y=b.y, b_x=b.x)
            if mask is not None:
                numbers.update(mask=At(mask), mask_y=mask.y, mask_x=mask.x)
            return [(self.kernel(layers.combine), layers.COMBINE, numbers)]

        self.step(what, build, [a, b, y, mask], y.channels * y.rows * y.columns)

    def _bring_gradient(self, value: int) -> None:
        """A gradient that the caller gives: behind the value's ReLU, if it has one."""
        mask = self.mask(value)
        if self.is_image(value):
            c, h, w = self.shape(value)
            steps = (w, 1, h * w) if self.layouts[value] == "NCHW" else (w * c, c, 1)
            source = View(Outside(("dy", value), c * h * w * self.item), c, h, w, steps)
            buffer = self.buffer(c, h, w, what=f"gradient of value {value}")
            if mask is not None and self.layouts[value] == "NHWC":
                self._copy_image("gradient in", source, View(buffer, c, h, w))
                masked = self.buffer(c, h, w, what=f"gradient of value {value}")
                self._combine("ReLU's gradient", buffer, None, masked, mask=mask.memory)
                buffer = masked
            else:
                self._copy_image("gradient in", source, View(buffer, c, h, w), mask=mask)
        else:
            count = prod(self.graph.shapes[value][1:])
            buffer = self.buffer(count, what=f"gradient of value {value}")
            source = Outside(("dy", value), count * self.item)
            self.step("gradient in", lambda: [(self.kernel(layers.combine), layers.COMBINE, dict(rows=1, columns=1, lanes=count, a=At(source), y=At(buffer), **({"mask": At(mask)} if mask is not None else {})))], [buffer, mask], count)
        self.gradients[value] = buffer

    def _results(self) -> None:
        for v in self.graph.results:
            if not self.graph.shapes[v]:
                continue  # a loss, which is written where it is wanted
            if self.is_image(v):
                c, h, w = self.shape(v)
                steps = (w, 1, h * w) if self.layouts[v] == "NCHW" else (w * c, c, 1)
                self._copy_image("result", self.image(v), View(Outside(("result", v), c * h * w * self.item), c, h, w, steps))
            else:
                self._row_out("result", *self.row(v), Outside(("result", v), prod(self.graph.shapes[v][1:]) * self.item))

    def _row_out(self, what: str, source, count: int, target: Outside) -> None:
        self.step(what, lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(source), y=At(target)))], [source], count)

    def _hand_out_gradients(self) -> None:
        for v in self.graph.gradients:
            if v in self.graph.batched and v in self.gradients:
                target = Outside(("gradient", v), prod(self.graph.shapes[v][1:]) * self.item)
                if self.is_image(v):
                    c, h, w = self.shape(v)
                    steps = (w, 1, h * w) if self.layouts[v] == "NCHW" else (w * c, c, 1)
                    self._copy_image("gradient out", View(self.gradients[v], c, h, w), View(target, c, h, w, steps))
                else:
                    self._row_out("gradient out", self.gradients[v], prod(self.graph.shapes[v][1:]), target)

    # --- convolution -----------------------------------------------------------------------------------------------------

    def packed(self, unit: Unit, forward: bool) -> Memory:
        """The weights as tiles read them: (groups, taps, terms, lanes). forward: lanes are outputs; else they are inputs, and the
        taps are turned around."""
        k, c, kh, kw = self.graph.shapes[unit.weight]
        groups, kk, depthwise = unit.window["groups"], kh * kw, unit.kind == "depthwise"
        source, first = Outside(unit.weight), 0
        if depthwise:
            lanes = lanes_of(k)
            memory = self.memory(Memory(kk * lanes, f"weights of value {unit.output}"))
            numbers = dict(outer=1, inner=1, rows=k, w_row=kk, columns=kk, y_step=lanes)
        else:
            count, terms = (k // groups, c) if forward else (c, k // groups)
            lanes = lanes_of(count) if groups == 1 else count
            memory = self.memory(Memory(groups * kk * terms * lanes, f"weights of value {unit.output}{'' if forward else ', for its gradient'}"))
            numbers = dict(outer=groups, w_outer=k // groups * c * kk, y_outer=kk * terms * lanes)
            if kk == 1 and forward:  # one transposition
                numbers.update(inner=1, rows=count, w_row=c, columns=terms, y_step=lanes)
            else:
                w_inner, w_row = (kk, c * kk) if forward else (c * kk, kk)
                numbers.update(inner=terms, w_inner=w_inner, y_inner=lanes, rows=count, w_row=w_row, columns=kk, y_step=(1 if forward else -1) * terms * lanes)
                first = 0 if forward else (kk - 1) * terms * lanes
        self.step("weights", lambda: [(self.kernel(layers.pack), layers.PACK, dict(numbers, w=At(source, alone=True), y=At(memory, first, alone=True)))], [], 4 * memory.count, once=True, into=self.prepare, with_before=True)
        return memory

    def bias_of(self, unit: Unit, lanes: int) -> Memory | None:
        if unit.bias is None:
            return None
        count, = self.graph.shapes[unit.bias]
        memory = self.memory(Memory(lanes, f"bias of value {unit.output}"))
        self.step("bias", lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(Outside(unit.bias)), y=At(memory)))], [], once=True, into=self.prepare, with_before=True)
        return memory

    def taps(self, unit: Unit) -> tuple:
        """(kernel, stride, dilation, (top, left), rows and columns of the sums, before pooling)"""
        _, _, kh, kw = self.graph.shapes[unit.weight]
        window = unit.window
        _, rows, columns = self.shape(unit.output)
        outputs = (2 * rows, 2 * columns) if unit.pool else (rows, columns)
        return (kh, kw), window["stride"], window["dilation"], (window["padding"][0][0], window["padding"][1][0]), outputs

    def conv_input(self, unit: Unit, overhang: int = 1) -> View:
        """overhang: outputs are computed in multiples of it."""
        (kh, kw), stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        _, h, w = self.shape(unit.x)
        low = (ceil(rows / overhang) * overhang - 1) * stride[0] + reach(kh, dilation[0]) - top - h
        far = (ceil(columns / overhang) * overhang - 1) * stride[1] + reach(kw, dilation[1]) - left - w
        return self.image(unit.x, (top, max(low, 0), left, max(far, 0)), planar=unit.kind == "conv2d" and not self.by_winograd(unit))

    def by_winograd(self, unit: Unit) -> int:
        """The tiles' size, if a convolution is worth Winograd's transforms, else 0: many channels on both sides."""
        k, c, *kernel = self.graph.shapes[unit.weight]
        plain = kernel == [3, 3] and (*unit.window["stride"], *unit.window["dilation"], unit.window["groups"]) == (1,) * 5
        return tiles_winograd.best_size(*self.taps(unit)[4]) if self.math == "winograd" and unit.kind == "conv2d" and plain and min(k, c) >= 16 else 0

    def conv2d(self, unit: Unit) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        groups, depthwise = unit.window["groups"], unit.kind == "depthwise"
        lanes = lanes_of(k) if groups == 1 or depthwise else k // groups
        x = self.conv_input(unit)
        y = self.image(unit.output)
        m = self.by_winograd(unit)
        if m:
            w, bias = self.transformed(unit, True, m), self.bias_of(unit, lanes_of(k))
        else:
            w, bias = self.packed(unit, True), self.bias_of(unit, lanes_of(k))
        other = self.image(unit.other) if unit.other is not None else None
        winner = None
        if unit.pool and self.needs[unit.output]:
            winner = self.views[unit.output, "winner"] = self.buffer(k, y.rows, y.columns, what=f"winners of value {unit.output}")
            winner.halo = y.memory.halo  # at the same places
        flops = 2 * rows * columns * prod(self.graph.shapes[unit.weight])
        if m:
            self.winograd(unit.name, m, unit, x, (-top, -left), lanes_of(c), c, w, (rows, columns), y, lanes, flops, unit.pool, bias=bias, add=other, relu=unit.relu, winner=winner)
            return

        def build():
            numbers = dict(
                taps_a=kh, taps_b=kw, terms=c, ta=dilation[0] * x.y, tb=dilation[1] * x.x, tc=x.channel, iy=stride[0] * x.y, ix=stride[1] * x.x,
                lanes=lanes, x=x.at(-top, -left), x_first=stride[0] * x.y, w=At(w, alone=True), y=y.at(), y_first=y.y, oy=y.y, ox=y.x, relu=unit.relu,
            )  # fmt: skip
            if bias is not None:
                numbers.update(bias=At(bias, alone=True))
            if other is not None:
                numbers.update(add=other.at(), add_y=other.y, add_x=other.x)
            step = tiles.pixel_step(stride[1] * x.x, flops, WORTH_A_KERNEL)
            if depthwise:
                numbers.update(outputs=rows, columns=columns, wa=kw * lanes, wb=lanes)
                return [(self.kernel(layers.depthwise, *tiles.best_depthwise(rows, columns, lanes, self.T), step), tiles.CONV, numbers)]
            numbers.update(groups=groups, x_group=c * x.channel, w_group=kh * kw * c * lanes, wa=kw * c * lanes, wb=c * lanes, w_term=lanes)
            joined(numbers)
            shares = self.shares(flops)
            if unit.pool:
                numbers.update(outputs=y.rows, columns=y.columns)
                if winner is not None:
                    numbers.update(winner=At(winner))
                _, wide, v, width = tiles.best(2, 2 * y.columns, lanes, c * kh * kw, kh * kw, self.T, True)
                return [(self.kernel(tiles.conv_pool, wide // 2, v, width, step), tiles.CONV, numbers)]
            numbers.update(outputs=rows, limit=rows, columns=columns)
            tile = tiles.best(max(rows // shares, 1), columns, lanes, c * kh * kw, kh * kw, self.T)
            return [(self.kernel(tiles.conv, *tile, step), tiles.CONV, numbers)]

        self.step(unit.name, build, [x.memory, y.memory, other and other.memory, winner], flops)

    depthwise = conv2d

    def transformed(self, unit: Unit, forward: bool, m: int) -> Memory:
        """The weights as Winograd's products read them."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        terms, count = (c, k) if forward else (k, c)
        lanes, W = lanes_of(count), next(w for w in tiles.widths(self.T) if w <= lanes_of(count))
        u = self.memory(Memory((m + 2) ** 2 * terms * lanes, f"transformed weights of value {unit.output}"))
        taps = self.memory(Memory(9 * W, "taps", self.slots))

        def build():
            w_term, w_lane = (9, 9 * c) if forward else (9 * c, 9)
            numbers = dict(terms=terms, count=count, lanes=lanes, w=At(Outside(unit.weight), alone=True), w_term=w_term, w_lane=w_lane, flip=not forward, u=At(u, alone=True), taps=At(taps, alone=True), taps_slot=taps.step)
            return [(self.kernel(tiles_winograd.weights_in, m, W), tiles_winograd.WEIGHTS, numbers)]

        self.step("weights, transformed", build, [], 4 * u.count, once=True, into=self.prepare, with_before=True)
        return u

    def winograd(self, what: str, m: int, unit: Unit, x: View, start, channels: int, terms: int, u: Memory, outputs, y: View, lanes: int, flops: float, pool: bool = False, bias=None, add=None, relu=False, winner=None, mask=None) -> None:
        """A convolution by Winograd's algorithm, of outputs rows x columns."""
        cut = tiles_winograd.Tiles(m, *outputs, channels, lanes, self.T)
        work = self.memory(Memory(cut.work, "Winograd's transforms", self.slots))

        def build():
            numbers = dict(
                cut.numbers, terms=terms, iy=x.y, ix=x.x, x=x.at(*start), u=At(u, alone=True), work=At(work, alone=True), work_slot=work.step, y=y.at(), oy=y.y, ox=y.x, relu=relu,
                by_lanes=self.shares(flops) > ceil(outputs[0] / m),
            )  # fmt: skip
            if bias is not None:
                numbers.update(bias=At(bias, alone=True))
            if add is not None:
                numbers.update(add=add.at(), add_y=add.y, add_x=add.x)
            if mask is not None:
                numbers.update(mask=mask.at(), mask_y=mask.y, mask_x=mask.x)
            if winner is not None:
                numbers.update(winner=At(winner))
            return [(self.kernel(tiles_winograd.winograd, *cut.constants, int(pool)), tiles_winograd.WINOGRAD, numbers)]

        self.step(f"{what}, Winograd {m} x {m}", build, [x.memory, y.memory, add and add.memory, mask and mask.memory, winner], flops)

    def conv2d_back(self, unit: Unit) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        depthwise = unit.kind == "depthwise"
        dz = self.gradients[unit.output]
        lanes = lanes_of(k)
        sums = self.summed(lanes, f"bias of value {unit.output}") if unit.bias is not None and self.needs.get(unit.bias) else None
        W = self.width(lanes)
        if unit.pool:
            dy, winner = dz, self.views[unit.output, "winner"]
            dz = self.buffer(k, rows, columns, what=f"gradient before pooling of value {unit.output}")
            into = sums or self.memory(Memory(lanes, "sums that nobody reads"))

            def spread():
                numbers = dict(
                    rows=dy.rows, columns=dy.columns, lanes=lanes, dy=At(dy), dy_y=dy.y, dy_x=dy.x, winner=At(winner), winner_y=winner.y, winner_x=winner.x,
                    dz=At(dz), dz_y=dz.y, dz_x=dz.x, sums=At(into, alone=True), sums_chunk=into.step,
                )  # fmt: skip
                return [(self.kernel(layers.spread, W), layers.SPREAD, numbers)]

            self.step("gradient to the winners", spread, [dy, winner, dz], 4 * k * dy.rows * dy.columns)
        elif sums is not None:

            def bias_sums():
                numbers = dict(rows=rows, columns=columns, lanes=lanes, dy=At(dz), dy_y=dz.y, dy_x=dz.x, sums=At(sums, alone=True), sums_chunk=sums.step)
                return [(self.kernel(layers.channel_sums, W), layers.SPREAD, numbers)]

            self.step("gradient of the bias", bias_sums, [dz], k * rows * columns)
        if sums is not None:
            self._sum_rows(unit.bias, sums, k)
        if self.needs.get(unit.weight):
            self.conv_dw(unit, dz)
        if self.needs.get(unit.x):
            (self.depthwise_dx if depthwise else self.conv_dx)(unit, dz)
        if unit.other is not None and self.needs.get(unit.other):
            self.pass_on(unit.other, dz)

    depthwise_back = conv2d_back

    def pass_on(self, value: int, dy: Buffer) -> None:
        """A sum's gradient is each operand's."""
        mask = self.mask(value)
        if value not in self.gradients and mask is None:
            self.gradients[value] = dy
            return
        target, before = self.contribution(value)
        self._combine("gradient of a branch", dy, before, target, mask=None if mask is None else getattr(mask, "memory", mask))

    def summed(self, count: int, what: str) -> Memory:
        """Memory for sums over images, a chunk each; zeros at first."""
        memory = self.memory(Memory(count, f"sums for the gradient of the {what}"))
        self.sums.append(memory)
        return memory

    def _sum_rows(self, value: int, sums: Memory, count: int) -> None:
        gradient = self.weight_gradient(value)

        def build():
            return [(self.kernel(layers.row_sums), layers.FEATURES, dict(count=count, images=self.chunks, dy=At(sums, alone=True), dy_row=sums.step // self.item, y=At(gradient, alone=True)))]

        self.step("sums of chunks", build, [], 16 * count, once=True, into=self.finish, with_before=True)

    def weight_gradient(self, value: int) -> Memory:
        if value not in self.weight_gradients:
            self.weight_gradients[value] = self.memory(Memory(prod(self.graph.shapes[value]), f"gradient of value {value}"))
        return self.weight_gradients[value]

    def winograd_dw(self, unit: Unit, dz: Buffer) -> None:
        k, c, _, _ = self.graph.shapes[unit.weight]
        m, (top, left), (rows, columns) = self.by_winograd(unit), self.taps(unit)[3], (dz.rows, dz.columns)
        x, gradient = self.conv_input(unit, m), self.weight_gradient(unit.weight)
        dz.need(0, -rows % m, 0, -columns % m)
        channels, lanes = lanes_of(c), lanes_of(k)
        W = next(w for w in tiles.widths(self.T) if w <= lanes)
        cut = tiles_winograd.Tiles(m, rows, columns, channels, lanes, self.T, gradient=True)
        work = self.memory(Memory(cut.work, "Winograd's transforms", self.slots))
        sums = self.summed((m + 2) ** 2 * channels * lanes, f"weights of value {unit.output}")
        taps = self.memory(Memory(9 * W * c, "taps", self.slots))

        def build():
            numbers = dict(cut.numbers, iy=x.y, ix=x.x, x=x.at(-top, -left), gy=dz.y, gx=dz.x, dy=At(dz), work=At(work, alone=True), work_slot=work.step, sums=At(sums, alone=True), sums_chunk=sums.step)
            return [(self.kernel(tiles_winograd.winograd_dw, *cut.constants), tiles_winograd.WINOGRAD_DW, numbers)]

        def gather():
            numbers = dict(terms=c, channels=channels, count=k, lanes=lanes, sums=At(sums, alone=True), chunks=self.chunks, sums_chunk=sums.step, w=At(gradient, alone=True), taps=At(taps, alone=True), taps_slot=taps.step)
            return [(self.kernel(tiles_winograd.weights_out, m, W), tiles_winograd.WEIGHTS_OUT, numbers)]

        self.step(f"gradient of the weights, Winograd {m} x {m}", build, [x.memory, dz], 2 * rows * columns * prod(self.graph.shapes[unit.weight]))
        self.step("sums of chunks, transformed back", gather, [], 16 * sums.count, once=True, into=self.finish, with_before=True)

    def conv_dw(self, unit: Unit, dz: Buffer) -> None:
        if self.by_winograd(unit):
            self.winograd_dw(unit, dz)
            return
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), _ = self.taps(unit)
        rows, columns = dz.rows, dz.columns
        x, groups, depthwise = self.conv_input(unit), unit.window["groups"], unit.kind == "depthwise"
        lanes = lanes_of(k) if groups == 1 or depthwise else k // groups
        gradient = self.weight_gradient(unit.weight)

        def tile():
            steps = (dilation[0] * x.y, dilation[1] * x.x, x.channel)
            if depthwise:
                return tiles.DepthwiseWeights((kh, kw), steps, lanes, self.T)
            return tiles.Weights((kh, kw, c), steps, lanes, groups, self.T)

        sums = self.summed(0, f"weights of value {unit.output}")
        sums.size = lambda: tile().size

        def build():
            t = tile()
            numbers = dict(
                height=rows, columns=columns, **t.numbers, iy=stride[0] * x.y, ix=stride[1] * x.x, gy=dz.y, gx=dz.x, groups=groups, lanes=lanes, x_group=c * x.channel,
                x=x.at(-top, -left), dy=At(dz), sums=At(sums, alone=True), sums_chunk=sums.step, block=tiles.rows_at_once(rows, columns, dz.x + x.x),
            )  # fmt: skip
            return [(self.kernel(layers.depthwise_dw if depthwise else tiles.conv_dw, *t.constants), tiles.DW, numbers)]

        def gather():
            numbers = dict(x=At(sums, alone=True), chunks=self.chunks, x_chunk=sums.step // self.item, count=k if depthwise else k // groups, y=At(gradient, alone=True), **tile().gathered)
            return [(self.kernel(tiles.gather, tile().width), tiles.GATHER, numbers)]

        self.step("gradient of the weights", build, [x.memory, dz], 2 * rows * columns * prod(self.graph.shapes[unit.weight]))
        self.step("sums of chunks", gather, [], 16 * prod(self.graph.shapes[unit.weight]), once=True, into=self.finish, with_before=True)

    def conv_dx(self, unit: Unit, dz: Buffer) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        (_, _), stride, dilation, (top, left), _ = self.taps(unit)
        groups, depthwise = unit.window["groups"], unit.kind == "depthwise"
        _, h, w = self.shape(unit.x)
        down, across = phases(kh, stride[0], dilation[0], top, h), phases(kw, stride[1], dilation[1], left, w)
        (up, low), (near, far) = span(down), span(across)
        rows, columns = ceil(h / stride[0]), ceil(w / stride[1])
        dz.need(max(-up, 0), max(rows + low - dz.rows, 0), max(-near, 0), max(columns + far - dz.columns, 0))
        mask = self.mask(unit.x)
        dx, before = self.contribution(unit.x)
        m = tiles_winograd.best_size(h, w) if self.by_winograd(unit) and max(top, left) <= 2 else 0
        if m:
            dz.need(2 - top, max(h + top - dz.rows, 0), 2 - left, max(w + left - dz.columns, 0))
            share, prior = View(dx, c, h, w), None if before is None else View(before, c, h, w)
            work = 2 * dz.rows * dz.columns * prod(self.graph.shapes[unit.weight])
            self.winograd("gradient of the images", m, unit, View(dz, k, dz.rows, dz.columns), (top - 2, left - 2), lanes_of(k), k, self.transformed(unit, False, m), (h, w), share, lanes_of(c), work, add=prior, mask=mask)
            return
        weights = self.packed(unit, depthwise)
        terms = k // groups
        lanes = lanes_of(c) if groups == 1 else lanes_of(k) if depthwise else c
        flops = 2 * dz.rows * dz.columns * prod(self.graph.shapes[unit.weight])

        def build():
            found, step = [], tiles.pixel_step(dz.x, flops, WORTH_A_KERNEL)
            for phase, many, u, su, mu, offset, back in down:
                for side, wide, v, sv, mv, shift, aside in across:
                    tap = lanes if depthwise else terms * lanes
                    # from the last tap to the first: then dy is read forward, and the taps of a row may be one run
                    top_tap, left_tap = kh - 1 - u - (mu - 1) * su, kw - 1 - v - (mv - 1) * sv  # as they lie: turned around
                    if depthwise:
                        top_tap, left_tap = u + (mu - 1) * su, v + (mv - 1) * sv
                    way = -1 if depthwise else 1
                    numbers = dict(
                        outputs=many, limit=many, columns=wide, taps_a=mu if mv else 0, taps_b=mv, terms=terms, ta=back * dz.y, tb=aside * dz.x, tc=1,
                        wa=way * su * kw * tap, wb=way * sv * tap, w_term=lanes, iy=dz.y, ix=dz.x, groups=groups, lanes=lanes, x_group=terms, w_group=kh * kw * terms * lanes,
                        x=At(dz, 0, offset - (mu - 1) * back, shift - (mv - 1) * aside), x_first=dz.y, w=At(weights, (top_tap * kw + left_tap) * tap, alone=True),
                        y=At(dx, 0, phase, side), y_first=stride[0] * dx.y, oy=stride[0] * dx.y, ox=stride[1] * dx.x,
                    )  # fmt: skip
                    if before is not None:
                        numbers.update(add=At(before, 0, phase, side), add_y=stride[0] * before.y, add_x=stride[1] * before.x)
                    if mask is not None:
                        numbers.update(mask=mask.at(phase, side), mask_y=stride[0] * mask.y, mask_x=stride[1] * mask.x)
                    joined(numbers)
                    if depthwise:
                        found.append((self.kernel(layers.depthwise, *tiles.best_depthwise(many, wide, lanes, self.T), step), tiles.CONV, numbers))
                    else:
                        tile = tiles.best(max(many // self.shares(flops), 1), wide, lanes, terms * mu * mv, max(mu * mv, 1), self.T)
                        found.append((self.kernel(tiles.conv, *tile, step), tiles.CONV, numbers))
            return found

        self.step("gradient of the images", build, [dz, dx, before, mask and mask.memory], flops)

    depthwise_dx = conv_dx

    # --- pooling, ReLU and sums by themselves ------------------------------------------------------------------------------

    def _pool_numbers(self, unit: Unit) -> dict:
        p = unit.window
        (top, bottom), (left, right) = p["padding"]
        average = layers.MAXIMUM if unit.kind == "max_pool2d" else layers.AVERAGE if p["count_include_pad"] else layers.AVERAGE_INSIDE
        (_, h, w), (c, rows, columns) = self.shape(unit.x), self.shape(unit.output)
        return dict(
            rows=rows, columns=columns, lanes=lanes_of(c), height=h, width=w, kr=p["kernel_size"][0], kc=p["kernel_size"][1], sr=p["stride"][0], sc=p["stride"][1],
            dr=p["dilation"][0], dc=p["dilation"][1], top=top, bottom=bottom, left=left, right=right, average=average,
        )  # fmt: skip

    def max_pool2d(self, unit: Unit) -> None:
        x, y = self.image(unit.x), self.image(unit.output)
        numbers = self._pool_numbers(unit)

        def build():
            return [(self.kernel(layers.pool, self.width(numbers["lanes"])), layers.POOL, dict(numbers, x=x.at(), x_y=x.y, x_x=x.x, y=y.at(), y_y=y.y, y_x=y.x))]

        self.step(unit.name, build, [x.memory, y.memory], numbers["rows"] * numbers["columns"] * numbers["lanes"] * numbers["kr"] * numbers["kc"])

    avg_pool2d = max_pool2d

    def max_pool2d_back(self, unit: Unit) -> None:
        x, y, dy = self.image(unit.x), self.image(unit.output), self.gradients[unit.output]
        numbers = self._pool_numbers(unit)
        masks = self.mask(unit.x) is not None
        dx, before = self.contribution(unit.x)

        def build():
            places = dict(x=x.at(), x_y=x.y, x_x=x.x, y=y.at(), y_y=y.y, y_x=y.x, dy=At(dy), dy_y=dy.y, dy_x=dy.x, dx=At(dx), dx_y=dx.y, dx_x=dx.x, mask=masks)
            if before is not None:
                places.update(add=At(before), add_y=before.y, add_x=before.x)
            return [(self.kernel(layers.pool_back, self.width(numbers["lanes"])), layers.POOL, dict(numbers, **places))]

        self.step(f"gradient of {unit.kind}", build, [x.memory, y.memory, dy, dx, before], 3 * numbers["rows"] * numbers["columns"] * numbers["lanes"] * numbers["kr"] * numbers["kc"])

    avg_pool2d_back = max_pool2d_back

    def add(self, unit: Unit) -> None:
        values = [unit.x, unit.output] + ([unit.other] if unit.other is not None else [])
        a, y, *b = ([self.image(v).memory for v in values] if self.is_image(unit.x) else [self._own_row(v) for v in values])
        self._combine(unit.name, a, b[0] if b else None, y, relu=unit.relu)

    relu = add

    def _own_row(self, value: int) -> Buffer:
        """A row in a buffer: copied there if it is the caller's."""
        memory, count = self.row(value)
        if isinstance(memory, Buffer):
            return memory
        if (value, "own") not in self.views:
            buffer = self.views[value, "own"] = self.buffer(count, what=f"value {value}")
            self.step("rows in", lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(memory), y=At(buffer)))], [buffer], count)
        return self.views[value, "own"]

    def add_back(self, unit: Unit) -> None:
        dy = self.gradients[unit.output]
        for v in (unit.x, unit.other):
            if v is not None and self.needs.get(v):
                self.pass_on(v, dy)

    relu_back = add_back

    # --- rows ------------------------------------------------------------------------------------------------------------------

    def flatten(self, unit: Unit) -> None:
        if not self.is_image(unit.x):
            self.rows[unit.output], _ = self.row(unit.x)
            return
        c, h, w = self.shape(unit.x)
        target, _ = self.row(unit.output)
        self._copy_image("flatten", self.image(unit.x), View(target, c, h, w, self._flat(unit.x)))

    def _flat(self, value: int) -> tuple[int, int, int]:
        c, h, w = self.shape(value)
        return (w, 1, h * w) if self.layouts[value] == "NCHW" else (w * c, c, 1)

    def flatten_back(self, unit: Unit) -> None:
        dy = self.gradients[unit.output]
        if not self.is_image(unit.x):
            self.pass_on(unit.x, dy)
            return
        c, h, w = self.shape(unit.x)
        mask, dx = self.mask(unit.x), self.joined(unit.x)
        source = View(dy, c, h, w, self._flat(unit.x))
        if mask is not None and self.layouts[unit.x] == "NHWC":
            apart = self.buffer(c, h, w, what="gradient before ReLU's")
            self._copy_image("gradient of flatten", source, View(apart, c, h, w))
            self._combine("ReLU's gradient", apart, None, dx, mask=mask.memory)
        else:
            self._copy_image("gradient of flatten", source, View(dx, c, h, w), mask=mask)
        self.add_joined(unit.x)

    def wide(self, unit: Unit) -> bool:
        """Whether a dense layer runs over all images at once."""
        return self.few or prod(self.graph.shapes[unit.weight]) * self.item > SMALL

    def _gemm(self, rows: int, columns: int, terms: int, numbers: dict, into: list | None, touches: list, once: bool, what: str, whole: tuple | None = None) -> None:
        """c = a @ b. numbers: those that are known only when memory is laid out are functions."""
        tile, blocks = tiles.best_blocks(rows, columns, terms, self.T)
        tile = whole or tile

        def build():
            found = {name: value() if callable(value) else value for name, value in numbers.items()}
            return [(self.kernel(tiles.gemm, *tile), tiles.GEMM, dict(found, rows=rows, columns=columns, terms=terms, **blocks))]

        self.step(what, build, touches, 2 * rows * columns * terms, once=once, into=into, with_before=into is self.finish)

    def step_of(self, memory) -> int:
        """Numbers from one image's row to the next."""
        return memory.image // self.item

    def linear(self, unit: Unit) -> None:
        k, t = self.graph.shapes[unit.weight]
        (x, _), (y, _) = self.row(unit.x), self.row(unit.output)
        rows, once = (self.images, True) if self.wide(unit) else (1, False)
        if once:
            self._keep(x, y)
        bias = dict(bias=At(Outside(unit.bias), alone=True)) if unit.bias is not None else {}
        if rows <= 8 or k < 4:
            high, wide = tiles.best_dots(rows, k)

            def build():
                stay = max(high, (1 << 19) // (t * self.item) // high * high)
                numbers = dict(
                    rows=rows, columns=k, terms=t, a=At(x), a_row=self.step_of(x), b=At(Outside(unit.weight)), b_row=t,
                    c=At(y), c_row=self.step_of(y), stay=stay, row_shares=1, relu=unit.relu, **bias,
                )  # fmt: skip
                return [(self.kernel(tiles.dots, high, wide, max(TARGET.lanes(self.T), tiles.LEAST_LANES)), tiles.DOTS, numbers)]

            self.step(unit.name, build, [x, y], 2 * rows * k * t, once=once)
            return
        high, vectors, w = tiles.best_gemm(rows, k, t, self.T)
        panel = self.memory(Memory(t * vectors * w, "panels", self.slots))

        def build():
            numbers = dict(
                rows=rows, columns=k, terms=t, a=At(x), a_row=self.step_of(x), b=At(Outside(unit.weight)), b_column=t, c=At(y), c_row=self.step_of(y),
                panel=At(panel, alone=True), panel_slot=panel.step, relu=unit.relu, **bias,
            )  # fmt: skip
            return [(self.kernel(tiles.gemm_turned, high, vectors, w), tiles.GEMM, numbers)]

        self.step(unit.name, build, [x, y], 2 * rows * k * t, once=once)

    def _keep(self, *memories) -> None:
        for m in memories:
            if isinstance(m, Buffer):
                m.kept = True

    def linear_back(self, unit: Unit) -> None:
        k, t = self.graph.shapes[unit.weight]
        (x, _), dy = self.row(unit.x), self.gradients[unit.output]
        n = self.images
        rows, once = (n, True) if self.wide(unit) else (1, False)
        self._keep(x, dy)
        if unit.bias is not None and self.needs.get(unit.bias):
            total = self.weight_gradient(unit.bias)

            def build():
                return [(self.kernel(layers.row_sums), layers.FEATURES, dict(count=k, images=n, dy=At(dy, alone=True), dy_row=self.step_of(dy), y=At(total, alone=True)))]

            self.step("gradient of the bias", build, [dy], n * k, once=True, into=self.finish, with_before=True)
        if self.needs.get(unit.weight):
            numbers = dict(a=At(dy), a_row=1, a_term=lambda: self.step_of(dy), b=At(x), b_term=lambda: self.step_of(x), c_row=t)
            tile = tiles.best_gemm(k, t, n, self.T, True)
            if self.graph.updates.get(unit.weight) == "sgd" and tile and tile[0] * tile[1] >= 8:
                self.stepped[unit.weight] = (x, dy, n, k, t)
                numbers.update(c=At(Outside(unit.weight)), hyper=lambda: At(self.hyper, list(self.graph.updates).index(unit.weight) * HYPER * 8 // self.item, alone=True), fault=At(self.fault, alone=True))
                self._gemm(k, t, n, numbers, self.finish, [dy, x], True, "gradient of the weights and step of SGD", tile)
            else:
                gradient = self.weight_gradient(unit.weight)
                numbers.update(c=At(gradient))
                self._gemm(k, t, n, numbers, self.finish, [dy, x], True, "gradient of the weights")
        if self.needs.get(unit.x):
            mask, dx = self.mask(unit.x), self.joined(unit.x)
            if once:
                self._keep(dx)
            numbers = dict(a=At(dy), a_row=lambda: self.step_of(dy), a_term=1, b=At(Outside(unit.weight)), b_term=t, c=At(dx), c_row=lambda: self.step_of(dx))
            if mask is not None:
                self._keep(mask)
                numbers.update(mask=At(mask), mask_row=lambda: self.step_of(mask))
            self._gemm(rows, t, k, numbers, None, [dy, dx, mask], once, "gradient of the rows")
            self.add_joined(unit.x)

    def _rowwise(self, unit: Unit) -> None:
        (x, count), (y, _) = self.row(unit.x), self.row(unit.output)
        self.step(unit.name, lambda: [(self.kernel(getattr(layers, unit.kind)), layers.ROWS, dict(count=count, x=At(x), y=At(y)))], [x, y], 10 * count)

    def _rowwise_back(self, unit: Unit) -> None:
        (x, count), (y, _), dy = self.row(unit.x), self.row(unit.output), self.gradients[unit.output]
        mask, dx = self.mask(unit.x), self.joined(unit.x)
        if mask is not None:
            apart, dx = dx, self.buffer(count, what="gradient before ReLU's")
        self.step(f"gradient of {unit.kind}", lambda: [(self.kernel(getattr(layers, unit.kind + "_back")), layers.ROWS, dict(count=count, x=At(x), y=At(y), dy=At(dy), dx=At(dx)))], [x, y, dy, dx], 10 * count)
        if mask is not None:
            self._combine("ReLU's gradient", dx, None, apart, mask=self._own_row(unit.x))
        self.add_joined(unit.x)

    softmax = log_softmax = log = _rowwise
    softmax_back = log_softmax_back = log_back = _rowwise_back

    def _loss(self, unit: Unit) -> None:
        x, count = self.row(unit.x)
        target = Outside(unit.other, 8)
        losses = self.memory(Memory(self.images, "losses"))
        backward = self.graph.loss == unit.output and self.needs[unit.output]
        dx = None
        if backward:
            mask, dx = self.mask(unit.x), self.joined(unit.x)
            if mask is not None:
                apart, dx = dx, self.buffer(count, what="gradient before ReLU's")
        mean = unit.calls[0].parameters["reduction"] == "mean"
        self.scaled = 1 / self.images if mean else 1.0

        def build():
            numbers = dict(count=count, x=At(x), target=At(target), loss=(At(losses, alone=True), 0, self.item), scale=At(self.scale, alone=True), fault=At(self.fault, alone=True))
            if dx is not None:
                numbers.update(dx=At(dx))
            return [(self.kernel(getattr(layers, unit.kind)), layers.ROWS, numbers)]

        self.step(unit.name, build, [x, dx], 10 * count)
        if backward and mask is not None:
            self._combine("ReLU's gradient", dx, None, apart, mask=self._own_row(unit.x))
        if backward:
            self.add_joined(unit.x)
        if unit.output not in self.graph.results:
            return
        out = Outside(("result", unit.output))
        self.step("loss", lambda: [(self.kernel(layers.total), layers.ROWS, dict(count=self.images, loss=(At(losses, alone=True), 0, self.item), y=At(out), scale=At(self.scale, alone=True)))], [], once=True, into=self.finish, with_before=True)

    cross_entropy = nll_loss = _loss

    def _loss_back(self, unit: Unit) -> None:
        """Done with the loss itself."""

    cross_entropy_back = nll_loss_back = _loss_back

    # --- optimisers ---------------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        self.updates: list[Step] = []
        self.hyper = self.memory(Memory(len(self.graph.updates) * HYPER * 8 // self.item, "numbers of the optimiser"))
        for i, (v, kind) in enumerate(self.graph.updates.items()):
            if v not in self.weight_gradients:
                continue
            gradient, count = self.weight_gradients[v], prod(self.graph.shapes[v])

            def build(v=v, kind=kind, gradient=gradient, count=count, i=i):
                numbers = dict(
                    count=count, w=At(Outside(v), alone=True), g=At(gradient, alone=True), first=At(Outside(("first", v)), alone=True), second=At(Outside(("second", v)), alone=True),
                    hyper=At(self.hyper, i * HYPER * 8 // self.item, alone=True), fault=At(self.fault, alone=True),
                )  # fmt: skip
                return [(self.kernel(getattr(layers, kind)), layers.UPDATE, numbers)]

            self.step("update", build, [], 4 * count, once=True, into=self.updates, with_before=True)

    # --- phases, memory, tables ------------------------------------------------------------------------------------------------

    def shares(self, flops: float) -> int:
        """Into how many shares a kernel's work on one image is cut."""
        return self.slots if self.few and flops >= WORTH_SHARING else 1

    def _assemble(self) -> None:
        bytes_a_chunk = sum(m.size() for m in self.sums) * self.item
        many = max(4, min(16, ALL_SUMS // max(bytes_a_chunk, 1))) if self.sums else 64
        # With sums, from shapes alone: their order must not depend on the number of threads.
        self.chunks = min(self.images, many)
        for m in self.sums:
            m.copies = self.chunks
            self.step("zeros", lambda m=m: [(self.kernel(layers.fill), layers.FILL, dict(count=m.step * self.chunks // self.item, y=At(m)))], [], m.size() * self.chunks // 4, once=True, into=self.prepare, with_before=True)
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
                number += 1
        self.size = lay_out(self.memories, self.images, self.slots, self.item)
        self.programs = [self._program(phases) for phases in self.phases]

    def _phases(self, steps: list[Step], breaks: set[int]) -> list[tuple[list[Step], int, int, int]]:
        found: list[tuple[list[Step], int, int, int]] = []
        for step in steps:
            if step.once:
                schedule = (1, 1, 0)
                joins = step.with_before and id(step) not in breaks
            else:
                schedule = (self.images, self.chunks, self.shares(step.flops))
                joins = schedule[2] == 1  # shares of one kernel must all be done before the next reads what they wrote
            if joins and found and found[-1][1:] == schedule:
                found[-1][0].append(step)
            else:
                found.append(([step], *schedule))
        # A phase that runs once is shared by all threads, in pieces small enough that none waits for long, and worth a piece.
        once = [0 if shares else sum(step.flops for step in steps) for steps, _, _, shares in found]
        return [(steps, images, chunks, shares or max(1, min(4 * self.slots, int(work / WORTH_SHARING)))) for (steps, images, chunks, shares), work in zip(found, once)]

    def _program(self, phases) -> Program:
        numbers, own, outside, firsts = [], [], {}, []
        head = 1 + HEAD * len(phases)
        table = [len(phases)]
        rows = head
        for steps, images, chunks, shares in phases:
            firsts.append((len(table), rows))
            built = [r for step in steps for r in step.build()]
            table += [0, len(built), images, chunks, shares, 0, 0, 0]
            for address, names, values in built:
                numbers.append(self._row(address, names, values, rows, own, outside))
                rows += ROW
        table += [n for r in numbers for n in r]
        return Program(np.array(table, np.int64), own, outside, firsts)

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
                how = f"image by image, in {chunks} chunks" if images > 1 or not steps[0].once else "once"
                lines.append(f"{name}, phase {n}: {how}" + (f", {shares} threads a kernel" if shares > 1 and not steps[0].once else ""))
                words = [step.what for step in steps]
                lines += [f"    {word}" + (f" (x {words.count(word)})" if words.count(word) > 1 else "") for word in dict.fromkeys(words)]
        return "\n".join(lines)

    # --- running --------------------------------------------------------------------------------------------------------------------

    def arena(self) -> Arena:
        arena = Arena(self.size, self.programs)
        arena.view(self.scale, self.T, (1,))[0] = self.scaled
        arena.fault = arena.view(self.fault, np.int64, (1,))
        if self.training:
            arena.hyper, arena.numbers = arena.view(self.hyper, np.float64, (len(self.graph.updates), HYPER)), None
        return arena

    def gradient(self, arena: Arena, value: int) -> np.ndarray:
        """The gradient of a parameter that the program last computed; of one that was used at once, computed again."""
        if value not in self.stepped:
            return arena.copied(self.weight_gradients[value], self.T, self.graph.shapes[value])
        x, dy, n, k, t = self.stepped[value]

        def rows(memory, count):
            if isinstance(memory, Outside):
                return arena.bound[memory.key]
            return np.stack([arena.memory[memory.offset + i * memory.image :][: count * self.item].view(self.T) for i in range(n)])

        return rows(dy, k).T @ rows(x, t)

    def play(self, arena: Arena, program: int = 0) -> None:
        play(arena.addresses[program], self.slots)

"""What the planning of every unit needs (network.py): values as images and rows, steps, gradients that add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tinynet.geometry import nchw, reach
from tinynet.kernels.cpu import layers, tiles
from tinynet.kernels.cpu.fuse import Unit
from tinynet.kernels.cpu.images import chunk_sums
from tinynet.kernels.cpu.memory import At, Buffer, Memory, Outside
from tinynet.kernels.cpu.program import compiled
from tinynet.kernels.graph import Graph

BUNDLES = 4  # of chunks, whose sums are added up first
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

    once: it runs once for all images; bundles: or so often; with_before: in the same phase as the step before it. shares: into which an image is cut, and
    each taken from image to image, in a phase of its own; 0: as many as its operations are worth.
    """

    what: str
    build: Callable[[], list[tuple[int, object, dict]]]
    touches: list
    flops: float = 0
    once: bool = False
    with_before: bool = False
    shares: int = 0
    bundles: int = 0


class Planner:
    """Collects the steps of a program. network.Network says what is in it."""

    graph: Graph
    units: list[Unit]
    apart: bool  # whether some layer runs over all images at once in any case

    def memory(self, m: Memory) -> Memory:
        self.memories.append(m)
        return m

    def buffer(self, channels: int, rows: int = 1, columns: int = 1, planar: bool = False, what: str = "") -> Buffer:
        return self.memory(Buffer(channels, rows, columns, planar, what))

    def step(self, what: str, build, touches, flops: float = 0, once: bool = False, into: list | None = None, with_before: bool = False, shares: int = 0) -> None:
        (self.steps if into is None else into).append(Step(what, build, [t for t in touches if isinstance(t, Buffer)], flops, once, with_before, shares))

    def kernel(self, factory, *constants) -> int:
        return compiled(factory, *constants, self.T)

    def shape(self, value: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of an image: of a result, as many as somebody reads."""
        channels, *whole = nchw(self.graph.shapes[value], self.layouts[value])[1:]
        return (channels, *self.extents.get(value, whole))

    def kernel_of(self, unit: Unit) -> tuple[int, int]:
        """Rows and columns of its windows."""
        return unit.window.get("kernel_size") or self.graph.shapes[unit.weight][2:]

    def window_numbers(self, unit: Unit) -> dict:
        """Its windows, by the names of a row: how many, over what, their kernel, stride, dilation and padding before the first."""
        p, (_, height, width), (_, rows, columns) = unit.window, self.shape(unit.x), self.shape(unit.output)
        (kr, kc), (sr, sc), (dr, dc), ((top, _), (left, _)) = self.kernel_of(unit), p["stride"], p["dilation"], p["padding"]
        return dict(rows=rows, columns=columns, height=height, width=width, kr=kr, kc=kc, sr=sr, sc=sc, dr=dr, dc=dc, top=top, left=left)

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
                rows, columns = ((n - 1) * s + reach(k, d) - pad[0] for n, s, k, d, pad in zip((rows, columns), p["stride"], self.kernel_of(unit), p["dilation"], p["padding"]))
            read(unit.x, max(rows, 1), max(columns, 1))
        return {v: n for v, n in found.items() if v not in self.graph.batched}

    def _needed(self) -> dict[int, bool]:
        needs = {v: True for v in self.graph.gradients}
        for unit in self.units:
            needs[unit.output] = any(needs.get(v, False) for v in (unit.x, unit.weight, unit.bias, unit.other) if v is not None)
        return needs

    def width(self, lanes: int) -> int:
        """Lanes of a vector for elementwise kernels: the widest that divides."""
        return tiles.dividing(lanes, self.T)

    # --- values as images and rows -------------------------------------------------------------------------------

    def image(self, value: int, halo=(0, 0, 0, 0), planar: bool = False) -> View:
        """The value as images with at least this halo (top, bottom, left, right); planar: channels in planes will do."""
        outside = value in self.graph.batched
        channels, rows, columns = self.shape(value)
        planar = planar and outside and channels <= 8 and self.layouts[value] == "NCHW"
        found = self.views.get((value, planar))
        if found is None:
            if outside and planar and not any(halo):
                return self.outside(value, value)
            buffer = self.buffer(channels, rows, columns, planar, f"value {value}")
            found = self.views[value, planar] = View(buffer, channels, rows, columns)
            if outside:
                self._copy_image(f"images into rows of {'columns' if planar else 'pixels'}", self.outside(value, value), found)
        if isinstance(found.memory, Buffer):
            found.memory.need(*halo)
        return found

    def steps_outside(self, value: int) -> tuple[int, int, int]:
        """From row to row, column to column and channel to channel where the value lies as the caller sees it."""
        c, h, w = self.shape(value)
        return (w, 1, h * w) if self.layouts[value] == "NCHW" else (w * c, c, 1)

    def outside(self, key, value: int) -> View:
        """An array of the caller's, named `key`, that holds images like the value."""
        c, h, w = self.shape(value)
        return View(Outside(key, c * h * w * self.item), c, h, w, self.steps_outside(value))

    def _copy_image(self, what: str, source: View, target: View, mask: View | None = None) -> None:
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
                extents = dict(rows=h, high=c, wide=w, x_row=source.y, x_step=source.channel, y_row=target.y, y_step=target.x, y_lanes=target.x if source.x == 1 else 0)
            masked = dict(mask=mask.at(), mask_row=mask.y, mask_step=mask.x) if mask is not None else {}
            return [(self.kernel(layers.turn), layers.TURN, dict(extents, x=source.at(), y=target.at(), **masked))]

        self.step(what, build, [source.memory, target.memory, mask and mask.memory], c * h * w)

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

    def joined(self, value: int) -> tuple[Buffer, Callable[[], None]]:
        """As `contribution`, for kernels that can't add; the function that comes with the buffer adds afterwards."""
        share, before = self.contribution(value)

        def join() -> None:
            if before is not None:
                self._combine("sum of gradients", share, before, self.contribution(value)[0])

        return share, join

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
            source = self.outside(("dy", value), value)
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
                self._copy_image("result", self.image(v), self.outside(("result", v), v))
            else:
                self._row_out("result", *self.row(v), Outside(("result", v), prod(self.graph.shapes[v][1:]) * self.item))

    def _row_out(self, what: str, source, count: int, target: Outside) -> None:
        self.step(what, lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(source), y=At(target)))], [source], count)

    def _hand_out_gradients(self) -> None:
        for v in self.graph.gradients:
            if v in self.graph.batched and v in self.gradients:
                if self.is_image(v):
                    self._copy_image("gradient out", View(self.gradients[v], *self.shape(v)), self.outside(("gradient", v), v))
                else:
                    count = prod(self.graph.shapes[v][1:])
                    self._row_out("gradient out", self.gradients[v], count, Outside(("gradient", v), count * self.item))

    def pass_on(self, value: int, dy: Buffer) -> None:
        """A sum's gradient is each operand's."""
        mask = self.mask(value)
        if value not in self.gradients and mask is None:
            self.gradients[value] = dy
            return
        target, before = self.contribution(value)
        self._combine("gradient of a branch", dy, before, target, mask=None if mask is None else getattr(mask, "memory", mask))

    def summed(self, count: int, what: str, copies: int = 0) -> Memory:
        """Memory for sums over images, a chunk each if `copies` does not say how many."""
        memory = self.memory(Memory(count, f"sums for the gradient of the {what}", copies))
        self.sums.append(memory)
        return memory

    def chunk_sums(self, m: Memory) -> dict:
        """As images.chunk_sums: added to by one image after the other, or (one copy) by all of them at once."""
        images, chunks = (self.images, self.chunks) if m.copies == self.chunks else (1, 1)
        return chunk_sums(At(m, alone=True), m.step, images, chunks)

    def sums_left(self, sums: Memory) -> tuple[int, int]:
        """(how many sums over chunks of images are to be added, bytes from one to the next), when those of a bundle have been (`fold`)."""
        if sums.copies != self.chunks or not self.folds:
            return sums.copies, sums.step
        return BUNDLES, sums.copies // BUNDLES * sums.step

    @property
    def folds(self) -> bool:
        return self.chunks > BUNDLES and self.chunks % BUNDLES == 0

    def fold(self, memories: list[Memory]) -> None:
        """The step that adds up the sums of each bundle of chunks, before all that read them."""

        def build():
            together = self.chunks // BUNDLES
            return [(self.kernel(layers.fold), layers.FOLD, dict(count=m.size(), together=together, sums=At(m, alone=True), sums_chunk=m.step)) for m in memories]

        work = sum(m.size() for m in memories) * self.chunks
        self.finish.insert(0, Step("sums of chunks, in bundles", build, [], work, shares=max(1, min(self.slots, int(work / WORTH_SHARING))), bundles=BUNDLES))

    def _sum_rows(self, value: int, sums: Memory, count: int) -> None:
        gradient = self.weight_gradient(value)

        def build():
            chunks, step = self.sums_left(sums)
            return [(self.kernel(layers.row_sums), layers.FEATURES, dict(count=count, images=chunks, dy=At(sums, alone=True), dy_row=step // self.item, y=At(gradient, alone=True)))]

        self.step("sums of chunks", build, [], 16 * count, once=True, into=self.finish, with_before=True)

    def weight_gradient(self, value: int) -> Memory:
        if value not in self.weight_gradients:
            self.weight_gradients[value] = self.memory(Memory(prod(self.graph.shapes[value]), f"gradient of value {value}"))
        return self.weight_gradients[value]

    def shares(self, flops: float) -> int:
        """Into how many shares a kernel's work on one image is cut."""
        return self.slots if self.few and flops >= WORTH_SHARING else 1

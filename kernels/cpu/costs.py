"""What a step of a program costs: floating-point operations, bytes. profile.py has the times.

Operations are those that the definition asks for (an addition and a multiplication each count, as do exp, log, division and
comparison; copies have none); bytes: each array that the step reads or writes once a call, twice if it is updated. A call is one
image, or all of them where the step runs once. Halos, empty lanes and scratch memory don't count, nor do a convolution's terms
that lie in its padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinynet.kernels.cpu import layers, tiles, tiles_winograd
from tinynet.kernels.cpu.memory import At, Buffer, Outside
from tinynet.kernels.cpu.program import made

PRODUCTS = (tiles.conv, tiles.conv_pool, tiles.conv_batch, tiles.conv_dw, tiles.gemm, tiles.gemm_packed, tiles.dense_back, tiles.dense_back_few, tiles.dots, layers.depthwise, layers.depthwise_dw)
FEWER = (tiles_winograd.winograd, tiles_winograd.winograd_dx, tiles_winograd.winograd_dw)  # compute what the definition asks for with fewer operations than it does
AS_PLANNED = (*PRODUCTS, *FEWER, layers.pool, layers.pool_back, layers.spread, layers.channel_sums, layers.combine)  # Step.flops are their operations
EACH = {
    layers.softmax: 5, layers.softmax_back: 4, layers.log_softmax: 6, layers.log_softmax_back: 4, layers.log: 1, layers.log_back: 1, layers.cross_entropy: 6,
    layers.total: 1, layers.sgd: 2, layers.momentum: 4, layers.adam: 14,
}  # fmt: skip  # operations for each of `count` numbers, without weight decay
UPDATED = {"sums", "reached", "w", "first", "second"}  # names in a row of what is read and written, where the kernel does not only read it
UPDATES = (tiles.conv_dw, tiles.dense_back, tiles.dense_back_few, layers.depthwise_dw, layers.spread, layers.channel_sums, tiles_winograd.winograd_dw, layers.sgd, layers.momentum, layers.adam)
APART = {"work", "panel", "taps", "places", "hyper", "fault", "scale"}  # scratch memory, and a few numbers that all kernels share


@dataclass
class _Array:
    """An array that a step reads or writes. an_image, shared: bytes of it for each image, and those that are all images'."""

    an_image: int
    shared: int
    copies: int  # of the shared bytes, one a chunk
    in_slots: bool  # there is one image of it for each thread, not one for each image
    updated: bool = False


class Part:
    """A step in its place in a program: what it is, and what it costs."""

    def __init__(self, network, program: str, phase: int, step, schedule: tuple[int, int, int]):
        self.network, self.program, self.phase, self.step = network, program, phase, step
        self.calls, self.chunks, self.shares = self.schedule = schedule  # calls: images, or 1 for all of them
        self.rows = step.build()
        self.made = [made[address] for address, _, _ in self.rows]
        self.kinds = [factory for factory, _ in self.made]
        self.arrays = self._arrays()

    def alone(self, times: int):
        """A program of this step, so many times."""
        return self.network.program([([self.step], *self.schedule)] * times)

    @property
    def kernel(self) -> str:
        """The kernels as tiles.py or layers.py makes them."""
        words = [f"{factory.name}({', '.join(c.__name__ if isinstance(c, type) else str(c) for c in constants)})" for factory, constants in self.made]
        return ", ".join(word + (f" x {words.count(word)}" if words.count(word) > 1 else "") for word in dict.fromkeys(words))

    @property
    def on(self) -> str:
        """What it works on, in short: a matrix product's rows x terms x columns, else its images, or how many numbers."""
        _, _, numbers = self.rows[0]
        if self.kinds[0] in (tiles.gemm, tiles.gemm_packed, tiles.dense_back, tiles.dense_back_few, tiles.dots):
            return f"{numbers['rows']} x {numbers['terms']} x {numbers['columns']}"
        sizes = [f"{b.channels}x{b.rows}x{b.columns}" if b.rows * b.columns > 1 else str(b.channels) for b in self.step.touches]
        if sizes:
            return " and ".join(dict.fromkeys(sizes))
        return str(max((a.an_image + a.shared) // self.network.item for a in self.arrays))

    @property
    def operations(self) -> float | None:
        kind, numbers = self.kinds[0], self.rows[0][2]
        if kind in AS_PLANNED:
            return self.step.flops * self.calls
        if kind in EACH:
            return EACH[kind] * numbers["count"] * self.calls
        if kind is layers.row_sums:
            return numbers["count"] * (numbers["images"] - 1)
        if kind is layers.fold:
            return sum(row["count"] * (row["together"] - 1) for _, _, row in self.rows) * self.calls
        if kind is tiles.gather:
            return numbers["units"] * numbers["high"] * numbers["wide"] * numbers["vectors"] * (numbers["chunks"] - 1)
        return None

    @property
    def moved(self) -> int:
        return sum((a.an_image * self.network.images + a.shared * self.calls) * (2 if a.updated else 1) for a in self.arrays)

    @property
    def touched(self) -> int:
        at_once = min(self.network.slots, self.chunks * self.shares)
        return sum(a.an_image * (at_once if a.in_slots else self.network.images) + a.shared * min(a.copies, at_once) for a in self.arrays)

    def _arrays(self) -> list[_Array]:
        found: dict = {}
        for kind, (_, _, numbers) in zip(self.kinds, self.rows):
            for name, value in numbers.items():
                at, *steps = value if isinstance(value, tuple) else (value,)
                unchanged = "seen" in numbers and name in ("u", "y")  # weights were compared, and nothing was made of them again
                if not isinstance(at, At) or name in APART or unchanged or name == "first" and kind is layers.sgd or name == "second" and kind is not layers.adam:
                    continue
                array = found.setdefault(at.memory.key if isinstance(at.memory, Outside) else id(at.memory), self._array(at.memory, steps[-1] if steps else 0))
                array.updated |= kind in UPDATES and name in UPDATED or kind is tiles.gemm_packed and name == "c" and "hyper" in numbers
        return list(found.values())

    def _array(self, memory, an_image: int) -> _Array:
        """an_image: bytes, if the row itself says so."""
        if isinstance(memory, Outside):
            value = memory.key[1] if isinstance(memory.key, tuple) else memory.key
            return _Array(memory.image, 0 if memory.image else self.network.graph.bytes(value), 1, False)
        size = memory.count * self.network.item
        if isinstance(memory, Buffer):
            return _Array(memory.channels * memory.rows * memory.columns * self.network.item, 0, 1, memory.image == 0)
        if an_image:
            return _Array(an_image, 0, 1, False)
        copies, _ = self.network.sums_left(memory) if memory in self.network.sums else (memory.copies, 0)
        sums = memory.size() * self.network.item * (copies if self.step.once else memory.copies // self.calls if self.step.bundles else 1)
        return _Array(0, sums or size, 1 if self.step.once else memory.copies, False)


def parts(network) -> Iterator[Part]:
    names = ("forward", "backward") if network.seeds else ("program",)
    for name, program in zip(names, network.phases):
        for phase, (steps, *schedule) in enumerate(program):
            for step in steps:
                yield Part(network, name, phase, step, tuple(schedule))

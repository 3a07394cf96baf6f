"""Where the time of a compiled network goes: every step of its program by itself, beside the whole.

A step is played as a program of its own, on the memory that a run of the whole program has filled, with the same
kernels, images, chunks and shares; several times in a row where it is short, so that no start is counted. It leaves
sums and weights behind that a run would not, so all this happens in an arena of its own, on copies of the weights.

What is the same by itself and what is not: a step that shares a phase with others waits for all threads at its end
here, and there only the last one does; and it finds its own numbers in the cache, where there its neighbour's may be.
So the sum of the steps is not quite the time of the whole, and both are shown.

Beside its time a step has operations, floating-point ones that the definition asks for (an addition and a
multiplication each count, as do exp, log, division and comparison; copies have none), and bytes: each array that it
reads or writes once a call, twice if it is updated. A call is one image, or all of them where the step runs once.
Halos, empty lanes and scratch memory don't count, nor do a convolution's terms that lie in its padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import numpy as np

from tinynet.kernels.cpu import layers, tiles, tiles_winograd
from tinynet.kernels.cpu.memory import Arena, At, Buffer, Outside
from tinynet.kernels.cpu.program import made, play

PRODUCTS = (tiles.conv, tiles.conv_pool, tiles.conv_batch, tiles.conv_dw, tiles.gemm, tiles.gemm_packed, tiles.dense_back, tiles.dots, layers.depthwise, layers.depthwise_dw)
FEWER = (tiles_winograd.winograd, tiles_winograd.winograd_dx, tiles_winograd.winograd_dw)  # compute what the definition asks for with fewer operations than it does
AS_PLANNED = (*PRODUCTS, *FEWER, layers.pool, layers.pool_back, layers.spread, layers.channel_sums, layers.combine)  # Step.flops are their operations
EACH = {
    layers.softmax: 5, layers.softmax_back: 4, layers.log_softmax: 6, layers.log_softmax_back: 4, layers.log: 1, layers.log_back: 1, layers.cross_entropy: 6,
    layers.total: 1, layers.sgd: 2, layers.momentum: 4, layers.adam: 14,
}  # fmt: skip  # operations for each of `count` numbers, without weight decay
UPDATED = {"sums", "reached", "w", "first", "second"}  # names in a row of what is read and written, where the kernel does not only read it
UPDATES = (tiles.conv_dw, tiles.dense_back, layers.depthwise_dw, layers.spread, layers.channel_sums, tiles_winograd.winograd_dw, layers.sgd, layers.momentum, layers.adam)
APART = {"work", "panel", "taps", "places", "hyper", "fault", "scale"}  # scratch memory, and a few numbers that all kernels share
SHORT, MOST = 200e-6, 64  # a step is played often enough in a row to take that many seconds, at most so often


@dataclass(frozen=True)
class StepTime:
    """One step. seconds: of one run, the median of all rounds; low, high: of a round. operations: None where there is nothing to
    count; fewer: the kernel does with fewer. touched: bytes that are in use at once, which says what cache they fit."""

    name: str
    kernel: str
    on: str
    program: str
    phase: int
    seconds: float
    low: float
    high: float
    operations: float | None
    fewer: bool
    moved: int
    touched: int

    @property
    def gflops(self) -> float | None:
        return self.operations / self.seconds / 1e9 if self.operations else None

    @property
    def gb_s(self) -> float:
        return self.moved / self.seconds / 1e9


@dataclass(frozen=True)
class Profile:
    """steps: in the order in which they run. seconds: of the whole, forward and backward together."""

    images: int
    threads: int
    steps: list[StepTime]
    seconds: float

    @property
    def sum(self) -> float:
        return sum(step.seconds for step in self.steps)

    def __str__(self) -> str:
        lines = [f"{self.images} images on {self.threads} threads: {len(self.steps)} steps, each by itself, {self.sum * 1e6:,.1f} us together; the whole {self.seconds * 1e6:,.1f} us"]
        lines.append(f"{'share':>6} {'us':>10} {'GFLOP/s':>9} {'GB/s':>8}  step, on, kernel")
        for step in self.steps:
            rate = "" if step.gflops is None else f"{step.gflops:,.1f}"
            where = "" if step.program == "program" else f"{step.program}: "
            lines.append(f"{step.seconds / self.sum:6.1%} {step.seconds * 1e6:10,.1f} {rate:>9} {step.gb_s:8,.1f}  {where}{step.name}, {step.on}, {step.kernel}")
        return "\n".join(lines)

    def joined(self, others: list[Profile]) -> Profile:
        """With the profiles of programs that play after this one."""
        if not others:
            return self
        steps = [replace(step, program=f"program {n}, {step.program}".removesuffix(", program")) for n, profile in enumerate([self, *others]) for step in profile.steps]
        return Profile(self.images, self.threads, steps, self.seconds + sum(other.seconds for other in others))


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
        if self.kinds[0] in (tiles.gemm, tiles.gemm_packed, tiles.dense_back, tiles.dots):
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
                if not isinstance(at, At) or name in APART or name == "first" and kind is layers.sgd or name == "second" and kind is not layers.adam:
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
        sums = memory.size() * self.network.item * (memory.copies if self.step.once else 1)
        return _Array(0, sums or size, 1 if self.step.once else memory.copies, False)


def parts(network) -> Iterator[Part]:
    names = ("forward", "backward") if network.seeds else ("program",)
    for name, program in zip(names, network.phases):
        for phase, (steps, *schedule) in enumerate(program):
            for step in steps:
                yield Part(network, name, phase, step, tuple(schedule))


def profile(network, arena: Arena, changed: list, rounds: int = 7, block_s: float = 0.01) -> Profile:
    """Times all steps in turns, each for about `block_s` in every round, and in every round first, five times as long, the whole.

    arena: of nobody else, with everything bound. changed: keys of what a run changes outside of it: that runs on copies here.
    """
    programs = list(arena.addresses)
    kept = {key: arena.bound[key] for key in changed}
    for key, array in kept.items():
        arena.bind(key, array.copy())

    def restore() -> None:
        for key, array in kept.items():
            np.copyto(arena.bound[key], array)

    def whole() -> None:
        for address in programs:
            play(address, network.slots)

    def block(call: Callable[[], None], seconds: float, before: Callable[[], None] = lambda: None) -> float:
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while not samples or time.perf_counter() < end:
            before()
            began = time.perf_counter()
            call()
            samples.append(time.perf_counter() - began)
        return median(samples)

    restore()
    whole()
    found, calls = [(part, []) for part in parts(network)], []
    for part, _ in found:
        once = arena.add(part.alone(1))
        play(once, network.slots)
        began = time.perf_counter()
        play(once, network.slots)
        times = max(1, min(MOST, int(SHORT / (time.perf_counter() - began))))
        calls.append((arena.add(part.alone(times)), times))
    wholes: list[float] = []
    order = Random(0)
    for _ in range(rounds):
        wholes.append(block(whole, 5 * block_s, restore))
        for i in order.sample(range(len(found)), len(found)):
            restore()
            address, times = calls[i]
            play(address, network.slots)
            found[i][1].append(block(lambda: play(address, network.slots), block_s) / times)
    steps = [
        StepTime(
            part.step.what, part.kernel, part.on, part.program, part.phase, median(taken), min(taken), max(taken),
            part.operations, part.kinds[0] in FEWER, part.moved, part.touched,
        )
        for part, taken in found
    ]  # fmt: skip
    return Profile(network.images, network.slots, steps, median(wholes))

"""Where the time of a compiled network goes: every step of its program in its place, and by itself, beside the whole.

In its place: the program is played with a stamp (clock_kernels.py) between any two steps, which adds up how long each thread
was at each. That is what a step costs in this program: its neighbours have taken their part of the caches, and memory is busy
with what other threads do. What is left of a phase's time its threads have waited: to be woken, and at its end for the last one.

By itself: the step is a program of its own, on the memory that a run of the whole has filled, with the same kernels, images,
chunks and shares; several times in a row where it is short, so that no start is counted. That is what a kernel's author
can hold against the machine's peak (costs.py). A step that takes much longer in its place waits for memory there.

Steps by themselves leave sums and weights behind that a run would not, so all this happens in an arena of its own, on copies of the
weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import numpy as np

from tinynet.kernels.cpu import layers
from tinynet.kernels.cpu.costs import FEWER, parts
from tinynet.kernels.cpu.memory import Arena, At, Outside
from tinynet.kernels.cpu.network_planner import Step
from tinynet.kernels.cpu.program import compiled, play
from tinynet.kernels.cpu.target import LINE

AWAKE = 100e-6  # seconds in which a thread that slept wakes up, and does not yet fall asleep again
SHORT, MOST = 200e-6, 64  # a step by itself is played often enough in a row to take that many seconds, at most so often


@dataclass(frozen=True)
class StepTime:
    """One step. seconds: of one run by itself, the median of all rounds; low, high: of a round. in_place: of one run in the program, of all
    threads that play it together, divided by their number. operations: None where there is nothing to count; fewer: the kernel does with
    fewer. moved: bytes; touched: those in use at once, which says what cache they fit."""

    name: str
    kernel: str
    on: str
    program: str
    phase: int
    seconds: float
    low: float
    high: float
    in_place: float
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
class PhaseTime:
    """One phase in its place, from the end of the one before to its own. waited: what its threads were at no step, of the mean thread."""

    program: str
    phase: int
    seconds: float
    waited: float


@dataclass(frozen=True)
class Profile:
    """steps, phases: in the order in which they run. seconds: of the whole without a stamp, forward and backward together."""

    images: int
    threads: int
    steps: list[StepTime]
    phases: list[PhaseTime]
    seconds: float

    @property
    def sum(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def waited(self) -> float:
        return sum(phase.waited for phase in self.phases)

    @property
    def stamped(self) -> float:
        """The whole with its stamps: what the steps in their places and what was waited add up to."""
        return sum(phase.seconds for phase in self.phases)

    def __str__(self) -> str:
        lines = [
            f"{self.images} images on {self.threads} threads: {self.seconds * 1e6:,.1f} us. {len(self.steps)} steps: in their places {(self.stamped - self.waited) * 1e6:,.1f} us, "
            f"and {self.waited * 1e6:,.1f} us of waiting; each by itself, {self.sum * 1e6:,.1f} us together"
        ]
        lines.append(f"{'share':>6} {'in place':>10} {'by itself':>10} {'GFLOP/s':>9} {'GB/s':>8}  step, on, kernel; the rates are those of the step by itself, all times in us")
        for step in self.steps:
            rate = "" if step.gflops is None else f"{step.gflops:,.1f}"
            where = "" if step.program == "program" else f"{step.program}: "
            lines.append(f"{step.in_place / self.stamped:6.1%} {step.in_place * 1e6:10,.1f} {step.seconds * 1e6:10,.1f} {rate:>9} {step.gb_s:8,.1f}  {where}{step.name}, {step.on}, {step.kernel}")
        return "\n".join(lines)

    def joined(self, others: list[Profile]) -> Profile:
        """With the profiles of programs that play after this one."""
        if not others:
            return self

        def numbered(found: Callable[[Profile], list]) -> list:
            return [replace(each, program=f"program {n}, {each.program}".removesuffix(", program")) for n, profile in enumerate([self, *others]) for each in found(profile)]

        return Profile(self.images, self.threads, numbered(lambda p: p.steps), numbered(lambda p: p.phases), self.seconds + sum(other.seconds for other in others))


# --- in their places --------------------------------------------------------------------------------------


class Stamped:
    """The programs of a network with a stamp before the first step of each phase and after every step."""

    def __init__(self, network, arena: Arena):
        self.network = network
        phases = [phase for program in network.phases for phase in program]
        longest = max(len(steps) for steps, *_ in phases)
        # a phase, a thread: when it was at its last stamp, then the ticks of each step; no two threads write the same line
        self.stamps = np.zeros((1 + len(phases), network.slots, 1 + longest + LINE // 8), np.int64)
        self.threads = [min(network.slots, chunks * shares) for _, _, chunks, shares in phases]
        self.steps = [len(steps) for steps, *_ in phases]
        arena.bind("stamps", self.stamps)
        self.start = arena.add(network.program([([self._stamp(0, 0)], 1, 1, 1)]))
        numbers = iter(range(1, 1 + len(phases)))
        self.addresses = [arena.add(network.program([self._with_stamps(next(numbers), *phase) for phase in program])) for program in network.phases]

    def _stamp(self, phase: int, step: int) -> Step:
        at = At(Outside("stamps"), phase * self.stamps.strides[0] // self.network.item, alone=True)
        numbers = dict(stamps=at, stamps_slot=self.stamps.strides[1], step=step)
        return Step("stamp", lambda: [(compiled(layers.stamp), layers.STAMP, numbers)], [])

    def _with_stamps(self, phase: int, steps: list[Step], *schedule: int):
        return [self._stamp(phase, 0), *(each for n, step in enumerate(steps) for each in (step, self._stamp(phase, n + 1)))], *schedule

    def play(self) -> tuple[float, list[float], list[tuple[float, float]]]:
        """Plays all once. In ticks: of the whole; of each step; of each phase, and what was waited in it."""
        self.stamps[...] = 0
        play(self.start, 1)
        for address in self.addresses:
            play(address, self.network.slots)
        ends = self.stamps[:, :, 0].max(axis=1)
        steps, phases = [], []
        for phase, (count, threads) in enumerate(zip(self.steps, self.threads), 1):
            busy = self.stamps[phase, :, 1 : 1 + count].sum(axis=0) / threads
            seconds = float(ends[phase] - ends[phase - 1])
            steps += busy.tolist()
            phases.append((seconds, seconds - float(busy.sum())))
        return float(ends[-1] - ends[0]), steps, phases


def _middle(plays: list[tuple[float, list, list]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the phases of the plays of which a quarter took less time, and a quarter more: their mean, as all of them add up."""
    quarter = len(plays) // 4
    middle = sorted(plays, key=lambda each: each[0])[quarter : len(plays) - quarter]
    return np.mean([steps for _, steps, _ in middle], axis=0), np.mean([phases for _, _, phases in middle], axis=0)


def _per_tick(stamped: Stamped, began: tuple[float, int]) -> float:
    """Seconds a tick: by the system's clock, since a moment at which both were read."""
    play(stamped.start, 1)
    ticks = int(stamped.stamps[0, 0, 0]) - began[1]
    if ticks <= 0:
        raise RuntimeError("profile: this processor's counter of time does not count, so steps can't be timed in their places")
    return (time.perf_counter() - began[0]) / ticks


def profile(network, arena: Arena, changed: list, rounds: int = 7, block_s: float = 0.01) -> Profile:
    """Times all steps in turns, each by itself for about `block_s` in every round, and in every round first, five times as long each, the
    whole, and the whole with its stamps.

    arena: of nobody else, with everything bound. changed: keys of what a run changes outside of it: that runs on copies here.
    """
    programs = list(arena.addresses)
    kept = {key: arena.bound[key] for key in changed}
    for key, array in kept.items():
        arena.bind(key, array.copy())

    stamped = Stamped(network, arena)

    def restore() -> None:
        """As it was before a run, with all threads awake."""
        for key, array in kept.items():
            np.copyto(arena.bound[key], array)
        play(stamped.start, network.slots)
        until = time.perf_counter() + AWAKE
        while time.perf_counter() < until:
            pass

    def whole() -> None:
        for address in programs:
            play(address, network.slots)

    def block(call: Callable[[], object], seconds: float, before: Callable[[], None] = lambda: None) -> tuple[float, list]:
        """The median time of a call, and what the calls found."""
        samples, results = [], []
        end = time.perf_counter() + seconds
        while not samples or time.perf_counter() < end:
            before()
            began = time.perf_counter()
            results.append(call())
            samples.append(time.perf_counter() - began)
        return median(samples), results

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
    play(stamped.start, 1)
    began = time.perf_counter(), int(stamped.stamps[0, 0, 0])
    wholes: list[float] = []
    plays: list[tuple] = []
    order = Random(0)
    for _ in range(rounds):
        wholes.append(block(whole, 5 * block_s, restore)[0])
        plays += block(stamped.play, 5 * block_s, restore)[1]
        for i in order.sample(range(len(found)), len(found)):
            restore()
            address, times = calls[i]
            play(address, network.slots)
            found[i][1].append(block(lambda: play(address, network.slots), block_s)[0] / times)
    a_tick = _per_tick(stamped, began)
    in_place, in_phases = (a_tick * ticks for ticks in _middle(plays))
    steps = [
        StepTime(
            part.step.what, part.kernel, part.on, part.program, part.phase, median(taken), min(taken), max(taken), float(seconds),
            part.operations, part.kinds[0] in FEWER, part.moved, part.touched,
        )
        for (part, taken), seconds in zip(found, in_place)
    ]  # fmt: skip
    names = [(part.program, part.phase) for part, _ in found]
    phases = [PhaseTime(*name, float(seconds), float(waited)) for name, (seconds, waited) in zip(dict.fromkeys(names), in_phases)]
    return Profile(network.images, network.slots, steps, phases, median(wholes))

"""On how many threads a program for a few images is played: tried, since no rule knows.

Threads that share one image wait for each other after every kernel, and what one wrote another must fetch. That pays
on two cores of their own and costs on two threads of one core, and a virtual machine does not say which of them its processors
are. So a network of few images is laid out both ways, for all threads and for one; a program's calls are timed, a few in a row
each way (a thread that had nothing to do for a while is asleep, and late), and the faster is kept: at first for a
short while, for a process begins with much else to do, later for longer. Results are the same to the bit either way (network.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter

from tinynet.kernels.cpu.memory import Arena
from tinynet.kernels.cpu.network import Network

FIRST = 1  # calls before the first trial
RUN, RUNS = 5, 3  # calls in a row, of one way and of the other; and how often, of which the first time doesn't count: it wakes threads
KEPT, MOST = 40, 1_000  # calls for which the first outcome holds; 4 times as many after each trial, up to MOST: others may come and go on this machine


class Trial:
    """Who plays a network's calls: `take` an arena, `play` in it, `give` it back.

    alone: makes the same network for one thread.
    """

    def __init__(self, network: Network, alone: Callable[[], Network]):
        self.best, self.alone = network, alone
        self.free: dict[Network, list[Arena]] = {network: []}  # arenas that no call is using
        self.times: dict[Network, list[float]] = {}  # of the trial that is going on, if one is
        self.turns: list[Network] = []  # in it, whose calls have not begun yet
        self.patience = 0  # for how many more calls it waits for those that have
        self.left, self.kept = FIRST if network.few else float("inf"), KEPT
        self.mutex = threading.Lock()

    def take(self) -> Arena:
        network = self.best
        if self.left > 0:
            self.left -= 1
        else:
            network = self._next()
        try:
            return self.free[network].pop()
        except IndexError:
            return network.arena()

    def give(self, arena: Arena) -> None:
        if arena.network is self.best or self.times:
            self.free[arena.network].append(arena)

    def _next(self) -> Network:
        """Whose turn it is in a trial."""
        with self.mutex:
            if self.left > 0:  # another Python thread has just ended it
                return self.best
            if len(self.free) == 1:
                self.free[self.alone()] = []
            if not self.times:
                self.times = {network: [] for network in self.free}
                self.turns, self.patience = [network for _ in range(RUNS) for network in self.free for _ in range(RUN)], 2 * RUN
            if self.turns:
                return self.turns.pop(0)
            self.patience -= 1  # calls are under way in other threads, or nobody asks for their backward
            if self.patience == 0:
                self._settle()
            return self.best

    def play(self, arena: Arena, program: int = 0) -> None:
        if not self.times:
            arena.network.play(arena, program)
            return
        began = perf_counter()
        arena.network.play(arena, program)
        seconds = perf_counter() - began
        arena.seconds = seconds if program == 0 else arena.seconds + seconds
        if program == len(arena.network.programs) - 1:  # forward alone says nothing of both
            self._took(arena)

    def _took(self, arena: Arena) -> None:
        with self.mutex:
            times = self.times
            if times:
                times[arena.network].append(arena.seconds)
            if self.turns or not times or any(len(taken) < RUNS * RUN for taken in times.values()):
                return
            self.best = min(times, key=lambda network: median(times[network][RUN:]))  # so the first of a row doesn't count either
            self._settle()

    def _settle(self) -> None:
        """Ends a trial; without an outcome all stays as it was."""
        self.times, self.turns, self.left, self.kept = {}, [], self.kept, min(4 * self.kept, MOST)
        for network, arenas in self.free.items():
            if network is not self.best:
                arenas.clear()  # its memory, until the next trial

    def layouts(self) -> list[Network]:
        """All between which trials choose."""
        whole = next(iter(self.free))
        return [*self.free, self.alone()] if whole.few and len(self.free) == 1 else [*self.free]

    def explain(self) -> str:
        words = self.best.explain()
        if len(self.free) > 1 and not self.times:
            words += f"\ntried on {' and on '.join(str(network.slots) for network in self.free)} threads: {self.best.slots} {'was' if self.best.slots == 1 else 'were'} faster"
        return words

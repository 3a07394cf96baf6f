"""On how many threads a program for a few images is played: tried, since no rule knows.

Threads that share one image wait for each other after every kernel, and what one wrote another must fetch. That pays
on two cores of their own and costs on two threads of one core, and a virtual machine does not say which of them its processors
are. So a network of few images is laid out both ways, for all threads and for one; a program's calls are timed, in turns, and
the faster is kept for a while. Results are the same to the bit either way (network.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter

from tinynet.kernels.cpu.memory import Arena
from tinynet.kernels.cpu.network import Network

FIRST, TRIES, KEPT = 2, 8, 5000  # calls before the first trial; in which each way is timed; for which its outcome holds


class Trial:
    """Who plays a network's calls: `take` an arena, `play` in it, `give` it back.

    alone: makes the same network for one thread.
    """

    def __init__(self, network: Network, alone: Callable[[], Network]):
        self.best, self.alone = network, alone
        self.free: dict[Network, list[Arena]] = {network: []}  # arenas that no call is using
        self.times: dict[Network, list[float]] = {}  # of the trial that is going on, if one is
        self.left = FIRST if network.few else float("inf")
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
            return min(self.times, key=lambda network: len(self.times[network]))

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
            if not times or any(len(taken) < TRIES for taken in times.values()):
                return
            self.best, self.left, self.times = min(times, key=lambda network: median(times[network])), KEPT, {}
            for network in times:
                if network is not self.best:
                    self.free[network].clear()  # its memory, until the next trial

    def explain(self) -> str:
        words = self.best.explain()
        if len(self.free) > 1 and not self.times:
            words += f"\ntried on {' and on '.join(str(network.slots) for network in self.free)} threads: {self.best.slots} {'was' if self.best.slots == 1 else 'were'} faster"
        return words

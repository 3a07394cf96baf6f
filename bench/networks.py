"""`tinynet bench networks`: whole networks on tinynet and on everything else, in one run, taking turns.

A table is one network run forward or trained. Each of its contestants gets a process of its own, so that its peak
memory is of this table alone. For each batch size all are first held against the float64 truth (truth.py); who is
right is then timed in rounds, in random order, one block a round.

The result is plain data; tables.py shows it. A contestant that fails becomes a row that says how; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from tinynet.bench import contestant, truth
from tinynet.bench.contestant import ContestantProcess
from tinynet.bench.peers import CONTESTANTS, make
from tinynet.bench.peers.base import Trainer
from tinynet.bench.targets import MATHS, target
from tinynet.bench.zoo import NETWORKS, Network, initial_state
from tinynet.compare import worker
from tinynet.compare.job import record
from tinynet.compare.worker import PeerFailed

SCHEMA = "tinynet.bench.networks/1"
KINDS = ("forward", "training")
GROWTH = tuple(4**power for power in range(7))


@dataclass(frozen=True)
class Settings:
    """sizes: batch sizes; each network's own if empty."""

    networks: tuple[str, ...]
    kinds: tuple[str, ...]
    contestants: tuple[str, ...]
    sizes: tuple[int, ...]
    rounds: int
    threads: int
    block_s: float = 0.2
    seed: int = 0


class Run:
    """`say(stage, done, of)` is called as work goes on, `finished(table)` after every table."""

    def __init__(self, settings: Settings, logs: Path, say: Callable[[str, int, int], None], finished: Callable[[dict], None] = lambda table: None):
        self.settings, self.logs, self.say, self.finished = settings, logs, say, finished
        self.rng = np.random.default_rng(settings.seed)
        self.done, self.of = 0, sum(len(self.entrants(kind)) * (1 + len(self.sizes(name)) * (1 + settings.rounds)) for name in settings.networks for kind in settings.kinds)
        self.result = {
            **record(SCHEMA),
            "settings": asdict(settings),
            "tables": [],
            "ok": False,
        }

    def sizes(self, network: str) -> tuple[int, ...]:
        return self.settings.sizes or NETWORKS[network].sizes

    def entrants(self, kind: str) -> list[str]:
        return [name for name in self.settings.contestants if kind == "forward" or isinstance(make(name), Trainer)]

    def peak(self) -> float | None:
        """Operations that this processor can do in a nanosecond, for tinynet's times on it to be held against."""
        if not any(name in MATHS for name in self.settings.contestants):
            return None
        import numba

        from tinynet.bench import roofline

        numba.set_num_threads(min(self.settings.threads, numba.config.NUMBA_NUM_THREADS))
        return roofline.measure(sizes=()).peak / 1e9

    def step(self, stage: str) -> None:
        self.say(stage, self.done, self.of)
        self.done += 1

    def run(self) -> dict:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.result["peak_gflops"] = self.peak()
        for name in self.settings.networks:
            network, state = NETWORKS[name], initial_state(NETWORKS[name], self.settings.seed)
            self.say(f"{name}: choosing images", self.done, self.of)
            batches = {size: truth.images(network, state, size, self.settings.seed) for size in self.sizes(name)}
            for kind in self.settings.kinds:
                table = self.table(network, kind, state, batches)
                self.result["tables"].append(table)
                self.finished(table)
        cells = [cell for table in self.result["tables"] for row in table["rows"] for cell in row["cells"].values()]
        self.result["ok"] = any(c["status"] == "ok" for c in cells) and not any(c["status"] == "wrong" for c in cells)
        return self.result

    def table(self, network: Network, kind: str, state, batches: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict:
        busy = min(psutil.cpu_percent(interval=0.5) for _ in range(4))  # nothing of ours runs now, but the processes of the table before may still be ending
        entrants = [Entrant(name, tuple(batches), self.logs / f"{name}.txt") for name in self.entrants(kind)]
        try:
            for entrant in entrants:
                self.step(f"{network.name} {kind}: starting {entrant.name}")
                entrant.start(self.settings.threads)
            for size, (x, y) in batches.items():
                self.say(f"{network.name} {kind} of {size}: the truth in float64", self.done, self.of)
                want = truth.truth(network, kind, state, x, y)
                for entrant in entrants:
                    self.step(f"{network.name} {kind} of {size}: is {entrant.name} right?")
                    entrant.check(size, want, network, kind, state, x, y)
                for _ in range(self.settings.rounds):
                    for i in self.rng.permutation(len(entrants)):
                        self.step(f"{network.name} {kind} of {size}: timing {entrants[i].name}")
                        entrants[i].time(size, self.settings.block_s)
            for entrant in entrants:
                if entrant.name in CONTESTANTS:  # of a GPU's memory nobody's process says anything
                    entrant.weigh()
        finally:
            for entrant in entrants:
                entrant.end()
        rows = [entrant.row for entrant in entrants]
        return {"network": network.name, "title": network.title, "kind": kind, "busy_percent": busy, "sizes": list(batches), "rows": rows, "ratios": ratios(network, kind, rows, self.result["peak_gflops"])}


class Entrant:
    """One contestant of one table: its process, and its row as plain data with a cell for each batch size.

    A cell's status is "ok", "wrong", or what PeerFailed says; only a cell that is ok has samples (a list for each
    round) and a median. What a call does that fails is in the cell; if the process is gone, in all cells after it.
    """

    def __init__(self, name: str, sizes: tuple[int, ...], log: Path):
        self.name, self.log = name, log
        self.process: ContestantProcess | None = None
        self.threads = 0  # of that process
        cells = {size: {"status": "not run", "reason": "", "errors": {}, "first_s": None, "samples": [], "median_s": None} for size in sizes}
        self.row = {"contestant": name, "version": "", "log": str(log), "peak_mb": None, "cells": cells}

    def start(self, threads: int) -> None:
        self.threads = threads
        try:
            self.process = ContestantProcess(self.name, threads, self.log)
            started = self.process.submit(contestant.start, self.name, threads, timeout=180)
            self.row["version"], self.memory_mb = started["version"], started["memory_mb"]
        except PeerFailed as failure:
            self._fail(failure, None)
            self.end()

    def check(self, size: int, want: truth.Truth, network: Network, kind: str, state, x: np.ndarray, y: np.ndarray) -> None:
        """The first call on a batch, held against the truth. What was compiled for it is timed, and weighed, in a process that has not
        compiled it."""
        got = first = self._call(size, contestant.first_call, network, kind, state, x, y)
        if first and first["compiled"]:
            self.end()
            self.start(self.threads)
            got = self._call(size, contestant.first_call, network, kind, state, x, y)
        if got is None:
            return
        found = truth.errors(want, state, got)
        wrong = [f"the {name} errs by {error:.1e} of its norm, {allowed:.0e} is allowed" for name, (error, allowed) in found.items() if not error <= allowed]
        self.row["cells"][size].update(status="wrong" if wrong else "ok", reason="; ".join(wrong), errors={name: error for name, (error, _) in found.items()}, first_s=first["first_s"])

    def time(self, size: int, seconds: float) -> None:
        cell = self.row["cells"][size]
        if cell["status"] != "ok":
            return
        block = self._call(size, contestant.time_block, seconds)
        if block is not None:
            cell["samples"].append(block)
            cell["median_s"] = median(median(block) for block in cell["samples"])

    def weigh(self) -> None:
        """The most memory that the process has held, above what its framework takes by itself."""
        ran = any(cell["median_s"] is not None for cell in self.row["cells"].values())
        highest = self._call(None, worker.highest_memory) if ran else None
        if highest is not None:
            self.row["peak_mb"] = highest - self.memory_mb

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None

    def _call(self, size: int | None, function: Callable, *args):
        """What the function returns in the process, or None if it failed or there is no process any more."""
        if self.process is None:
            return None
        try:
            return self.process.submit(function, *args)
        except PeerFailed as failure:
            self._fail(failure, size)
            if failure.status != "failed":
                self.end()
            return None

    def _fail(self, failure: PeerFailed, size: int | None) -> None:
        gone = failure.status != "failed" or self.row["version"] == ""
        for each, cell in self.row["cells"].items():
            if each == size or gone and cell["status"] == "not run":
                cell.update(status=failure.status, reason=str(failure), samples=[], median_s=None)


def ratios(network: Network, kind: str, rows: list[dict], peak_gflops: float | None) -> list[dict]:
    """How many times as fast as the best of the others tinynet's compiled contestants are: one entry a contestant and batch size.

    low, high: the least and the largest ratio of a round, in which all were timed one soon after the other. Where there
    is a target, "against" is the ratio to the best of those that it names, and "at_peak", of strict math, what that would be if tinynet
    computed all products at the processor's peak, and nothing else: a target above it can't be met.
    """
    found = []
    others = [row for row in rows if not row["contestant"].startswith("tinynet-")]
    for row in rows:
        for size, cell in row["cells"].items():
            best = best_of(others, size)
            if not row["contestant"].startswith("tinynet-") or row["contestant"].endswith("-eager") or cell["median_s"] is None or best is None:
                continue
            wanted = target(network.name, kind, row["contestant"], size)
            entry = {"contestant": row["contestant"], "size": size, **_ratio(best, cell, size), "target": None}
            rival = wanted and best_of([other for other in others if other["contestant"] in wanted.against], size)
            if rival:
                against, bounded = _ratio(rival, cell, size), peak_gflops and MATHS[row["contestant"]] == "strict"
                at_peak = rival["cells"][size]["median_s"] * peak_gflops * 1e9 / (size * network.operations(kind)) if bounded else None
                entry["target"] = {"ratio": wanted.ratio, "floor": wanted.floor, "against": against, "met": against["ratio"] >= wanted.ratio, "floor_met": against["ratio"] >= wanted.floor, "at_peak": at_peak}
            found.append(entry)
    return found


def best_of(rows: list[dict], size: int) -> dict | None:
    """The row with the least median time of a batch of this size."""
    timed = [row for row in rows if row["cells"][size]["median_s"] is not None]
    return min(timed, key=lambda row: row["cells"][size]["median_s"], default=None)


def _ratio(other: dict, cell: dict, size: int) -> dict:
    rival = other["cells"][size]
    in_rounds = [median(theirs) / median(ours) for theirs, ours in zip(rival["samples"], cell["samples"], strict=True)]
    return {"other": other["contestant"], "ratio": rival["median_s"] / cell["median_s"], "low": min(in_rounds), "high": max(in_rounds)}

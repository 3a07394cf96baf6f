"""`tinynet compare`: the stages in their order, each peer in its own process, everything into one result.

The result is plain data (report.json); report.py turns it into pages. A peer that fails becomes a
row that says how; what the others have done stays.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

import tinynet
from tinynet.compare import bounds, networks, parity
from tinynet.compare.peers import SGD, make
from tinynet.compare.worker import PeerFailed, PeerProcess
from tinynet.data import load_digits

SCHEMA = "tinynet.compare/1"
PARITY_IMAGES = 32
TRAIN_BATCH = 32
WANTED_ACCURACY = 0.95


@dataclass(frozen=True)
class Settings:
    networks: tuple[str, ...]
    peers: tuple[str, ...]
    modes: tuple[str, ...]  # empty: all
    batch_sizes: tuple[int, ...]
    threads: int
    rounds: int
    block_s: float
    epochs: int
    seed: int = 0
    quick: bool = False


class Job:
    """`say(stage, done, of)` is called as work goes on."""

    def __init__(self, settings: Settings, out: Path, say: Callable[[str, int, int], None]):
        self.settings, self.out, self.say = settings, out, say
        self.processes: dict[str, PeerProcess] = {}
        self.result = {
            **record(SCHEMA),
            "settings": asdict(settings),
            "peers": [],
            "networks": {},
            "parity": [],
            "training": [],
            "speed": [],
            "failures": [],
            "ok": False,
        }

    def run(self) -> dict:
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        try:
            self.start()
            self.check()
            self.train()
            self.race()
            self.weigh()
        finally:
            for process in self.processes.values():
                process.kill()
        checks = [c["ok"] for row in self.result["parity"] for c in row["checks"]]
        trained = [row["ok"] for row in self.result["training"]]
        self.result["ok"] = bool(checks) and bool(trained) and all(checks) and all(trained) and not self.result["failures"]
        return self.result

    # --- stages ---

    def start(self) -> None:
        for i, name in enumerate(self.settings.peers):
            self.say(f"starting {name}", i, len(self.settings.peers))
            row = {"name": name, "modes": self.modes(name), "status": "ok", "reason": "", "install": make(name).install}
            if not row["modes"]:
                row.update(status="left out", reason=f"it has none of the chosen modes, only {', '.join(make(name).modes)}", install="")
                self.result["peers"].append(row)
                continue
            try:
                process = PeerProcess(name, self.settings.threads, self.out / "logs" / f"{name}.txt")
                self.processes[name] = process
                row.update(process.call("start", self.settings.threads, timeout=180))
            except PeerFailed as failure:
                self.drop(name, None, None, "start", failure)
                row.update(status=failure.status, reason=str(failure))
            self.result["peers"].append(row)

    def modes(self, name: str) -> list[str]:
        return [m for m in make(name).modes if not self.settings.modes or m in self.settings.modes]

    def each(self, network: str):
        return [(name, mode) for name in self.settings.peers for mode in self.modes(name) if name in self.processes]

    def check(self) -> None:
        training, _ = load_digits()
        self.states = {name: networks.canonical_state(networks.get(name), self.settings.seed) for name in self.settings.networks}
        for network in self.settings.networks:
            self.say(f"parity, network {network}: the truth in float64", 0, 1)
            state = self.states[network]
            x, y, looked_at = parity.batch(networks.get(network), state, training, PARITY_IMAGES)
            truth = bounds.truth(networks.get(network), state, x, y)
            self.result["networks"][network] = {
                "output": networks.get(network).output,
                "parameters": sum(a.size for a in state.values()),
                "images": len(x),
                "images_looked_at": looked_at,
                "choices": truth.choices,
            }
            pairs = self.each(network)
            for i, (name, mode) in enumerate(pairs):
                self.say(f"parity, network {network}: {name} {mode}", i, len(pairs))
                result = self.attempt(name, mode, network, "parity", "parity", network, mode, state, x, y, parity.STEP)
                if result is not None:
                    self.result["parity"].append({"network": network, "peer": name, "mode": mode, "checks": parity.checks(state, truth, result)})

    def train(self) -> None:
        training, held_out = load_digits()
        orders = [np.random.default_rng([self.settings.seed, e]).permutation(len(training.images)) for e in range(self.settings.epochs)]
        optimizer = SGD()
        chosen = self.settings.networks
        if self.settings.quick:
            chosen = (min(chosen, key=lambda network: self.result["networks"][network]["parameters"]),)
        for network in chosen:
            for name in list(self.processes):
                mode = self.training_mode(name)
                row = {"network": network, "peer": name, "mode": mode, "losses": [], "epochs": []}
                began = time.perf_counter()
                for epoch, order in enumerate(orders):
                    self.say(f"training network {network}: {name} {mode}", epoch, len(orders))
                    state = self.states[network] if epoch == 0 else None
                    losses = self.attempt(name, mode, network, "training", "train_epoch", network, mode, state, *training, order, TRAIN_BATCH, optimizer)
                    right = None if losses is None else self.attempt(name, mode, network, "training", "accuracy", network, mode, *held_out)
                    if right is None:
                        break
                    row["losses"] += losses
                    row["epochs"].append({"epoch": epoch + 1, "loss": statistics.fmean(losses), "accuracy": right})
                else:
                    row["seconds"] = time.perf_counter() - began
                    row["passed_in"] = next((e["epoch"] for e in row["epochs"] if e["accuracy"] >= WANTED_ACCURACY), None)
                    row["ok"] = row["passed_in"] is not None
                    self.result["training"].append(row)

    def training_mode(self, name: str) -> str:
        """The mode people train in: the framework's graph where it has one, else its plainest."""
        modes = self.modes(name)
        return "graph" if "graph" in modes else modes[0]

    def race(self) -> None:
        """Forward and training step, all candidates in turns: rounds in random order, one block each."""
        s = self.settings
        training, _ = load_digits()
        rng = np.random.default_rng(s.seed)
        cells = [(network, kind, size) for network in s.networks for kind in ("forward", "training") for size in s.batch_sizes]
        for c, (network, kind, size) in enumerate(cells):
            x, y = training.images[:size], training.classes[:size]
            rows = []
            for name, mode in self.each(network):
                self.say(f"speed, {network} {kind} of {size}: first call of {name} {mode}", c, len(cells))
                first = self.attempt(name, mode, network, "speed", "first_call", network, mode, kind, self.states[network], x, y, SGD(1e-4))
                if first is not None:
                    rows.append({"network": network, "kind": kind, "batch": size, "peer": name, "mode": mode, "first_call_s": first, "rounds": [], "calls": 0})
            for _ in range(s.rounds):
                for i in rng.permutation(len(rows)):
                    row = rows[i]
                    if row["peer"] not in self.processes:
                        continue
                    self.say(f"speed, {network} {kind} of {size}: {row['peer']} {row['mode']}", c, len(cells))
                    samples = self.attempt(row["peer"], row["mode"], network, "speed", "time_block", network, row["mode"], kind, size, s.block_s)
                    if samples is not None:
                        row["rounds"].append(statistics.median(samples))
                        row["calls"] += len(samples)
            for row in rows:
                if row["rounds"]:
                    # From the least to the largest of R rounds' medians holds the true one with probability 1 - 2^(1-R).
                    row.update(median_s=statistics.median(row["rounds"]), low_s=min(row["rounds"]), high_s=max(row["rounds"]))
                    self.result["speed"].append(row)

    def weigh(self) -> None:
        for row in self.result["peers"]:
            if row["name"] in self.processes:
                memory = self.attempt(row["name"], None, None, "memory", "memory")
                if memory:
                    row["peak_mb"] = memory["peak_mb"]

    # --- failures ---

    def attempt(self, name: str, mode, network, stage: str, function: str, *args):
        """The peer's answer, or None if it failed: then the failure is a row and, if its process is gone, so is the peer."""
        if name not in self.processes:
            return None
        try:
            return self.processes[name].call(function, *args)
        except PeerFailed as failure:
            self.drop(name, mode, network, stage, failure)
            return None

    def drop(self, name, mode, network, stage: str, failure: PeerFailed) -> None:
        log = self.out / "logs" / f"{name}.txt"
        self.result["failures"].append({"peer": name, "mode": mode, "network": network, "stage": stage, "status": failure.status, "reason": str(failure), "install": make(name).install if failure.status == "missing" else "", "log": str(log)})
        if failure.status != "failed" and name in self.processes:
            self.processes.pop(name).kill()


def record(schema: str | int) -> dict:
    """What every result begins with: what it is, when and where it was made."""
    return {"schema": schema, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}


def _vectors() -> str:
    """The processor's, as the kernels use them (a machine with wider ones is another machine); empty where there are no kernels for it."""
    if tinynet.devices()["cpu"] is not None:
        return ""
    from tinynet.kernels.cpu.target import TARGET

    return str(TARGET)


def machine() -> dict:
    """Where the numbers come from."""
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as info:
            cpu = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), cpu)
    return {
        "cpu": cpu or platform.machine(),
        "vectors": _vectors(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tinynet": tinynet.__version__,
        "load": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else [],
    }


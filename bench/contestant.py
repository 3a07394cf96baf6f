"""One process a contestant: `ContestantProcess` is the parent's side, the functions below it run in the process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinynet.bench.peers import Contestant, make
from tinynet.bench.truth import LEARNING_RATE
from tinynet.bench.zoo import Network
from tinynet.compare import worker
from tinynet.compare.worker import MEBIBYTE, OwnProcess

MOST_SAMPLES = 1000  # of a block: more say nothing new


class ContestantProcess(OwnProcess):
    """Raises PeerFailed if the process doesn't start, or in `submit` if its framework is missing or what it runs fails."""

    def __init__(self, name: str, threads: int, log: Path):
        made = make(name)
        hides = {"CUDA_VISIBLE_DEVICES"} if made.device == "cuda" else set()  # set for contestants on the CPU, which would look for a GPU
        super().__init__({**worker.limits(threads), **{k: v for k, v in made.environment.items() if k not in hides}}, worker.write_to, (str(log),), log)


# --- in the contestant's process --------------------------------------------------------------------

_held: Contestant
_call: Callable[[], object]


def start(name: str, threads: int) -> dict:
    """Imports the framework; its version, and the memory that it takes by itself."""
    global _held
    _held = make(name)
    try:
        version = _held.start(threads)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; {_held.install}", name=error.name) from None
    return {"version": version, "memory_mb": memory_from_here()}


def first_call(network: Network, kind: str, state, x: np.ndarray, y: np.ndarray) -> dict:
    """Builds the network and runs it once from `state`: what it returned, the seconds, tracing and compiling included, and whether this
    process has compiled kernels that the next one finds on disk: our compiler takes more memory than any network."""
    global _call
    _held.build(network, state)
    began = time.perf_counter()
    if kind == "forward":
        _call = _held.forward(x)
        got = {"output": np.array(_call())}
    else:
        _call = _held.training(x, y, LEARNING_RATE)
        got = {"loss": _call(), "state": _held.state()}
    return {**got, "first_s": time.perf_counter() - began, "compiled": "tinynet.kernels.cpu.compiler" in sys.modules}


def time_block(seconds: float) -> list[float]:
    """Seconds of single calls, for about `seconds` and at least one, after one that isn't counted."""
    _call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or (time.perf_counter() < end and len(samples) < MOST_SAMPLES):
        began = time.perf_counter()
        result = _call()
        samples.append(time.perf_counter() - began)
    if not np.isfinite(np.asarray(result)).all():
        raise FloatingPointError("what it returns is no longer a number, after as many calls as were timed")
    return samples


def memory_from_here() -> float:
    """Resident memory in MiB; where Linux allows it, the highest that worker.highest_memory returns counts from now on."""
    import psutil

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # another system: importing the framework counts too
    return psutil.Process().memory_info().rss / MEBIBYTE

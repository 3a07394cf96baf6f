"""One process a peer: frameworks don't share threads, allocators or floating-point modes with each other.

`OwnProcess` and `PeerProcess` are the parent's side, `_begin` and `_call` run in the process. The environment
(thread limits, KERAS_BACKEND) is set before the process starts, so before anything is imported.
A process that crashes or doesn't answer in time is reported as `PeerFailed` and killed; the others go on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import Thread

import psutil

from tinynet.compare import networks
from tinynet.compare.peers import SGD, make

MEBIBYTE = 2**20


class PeerFailed(Exception):
    """status: "missing", "crashed", "timed out" or "failed"; the message says what happened."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


def limits(threads: int) -> dict[str, str]:
    """What every peer's process is told about threads before anything is imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {name: str(threads) for name in names}


@contextmanager
def environment(variables: dict[str, str]):
    """The environment of processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class OwnProcess:
    """A process that runs functions one after the other; `begin(*arguments)` is its first."""

    def __init__(self, variables: dict[str, str], begin: Callable, arguments: tuple, log: Path, timeout: float = 120):
        log.write_text("")  # of this run alone
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin, initargs=arguments)
        others = set(active_children())
        with environment(variables):
            answer = self.pool.submit(os.getpid)
        self.started = set(active_children()) - others  # known before it answers, so that one that hangs can be ended
        self._wait(answer, timeout)

    def submit(self, function: Callable, *args, timeout: float = 600):
        """What the function of a module returns in the process. Raises PeerFailed."""
        return self._wait(self.pool.submit(function, *args), timeout)

    def _wait(self, future, timeout: float):
        try:
            return future.result(timeout)
        except TimeoutError:
            self.kill()
            raise PeerFailed("timed out", f"no answer within {timeout:.0f} s") from None
        except BrokenProcessPool:
            raise PeerFailed("crashed", "its process ended unexpectedly; see its log") from None
        except ImportError as error:
            raise PeerFailed("missing", str(error)) from None
        except Exception as error:  # whatever the framework raised is this peer's result, not ours
            raise PeerFailed("failed", f"{type(error).__name__}: {error}") from error

    def kill(self) -> None:
        """Ends the process and all that it started."""
        for started in self.started:
            try:
                process = psutil.Process(started.pid)
                for each in [*process.children(recursive=True), process]:
                    each.kill()
            except psutil.NoSuchProcess:
                continue  # it ended by itself
        # The pool's own thread notices soon. Who leaves Python before it has may see a traceback from there, so we wait; but not for ever.
        ending = Thread(target=self.pool.shutdown, kwargs=dict(cancel_futures=True), daemon=True)
        ending.start()
        ending.join(10)


class PeerProcess(OwnProcess):
    def __init__(self, name: str, threads: int, log: Path, timeout: float = 120):
        super().__init__({**limits(threads), **make(name).environment}, _begin, (name, str(log)), log, timeout)
        self.name = name

    def call(self, function: str, *args, timeout: float = 600):
        """Runs a function of this file in the peer's process. Raises PeerFailed."""
        return self.submit(_call, function, args, timeout=timeout)


# --- in the peer's process --------------------------------------------------------------------------

_name = ""
_threads = 0
_built: dict[tuple[str, str], object] = {}  # (network, mode) -> Peer
_calls: dict[tuple, object] = {}


def _begin(name: str, log: str) -> None:
    global _name
    _name = name
    write_to(log)


def write_to(log: str) -> None:
    """What a framework prints belongs to its log, not between our progress bars."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)


def _call(function: str, args):
    return globals()[function](*args)


def start(threads: int) -> dict:
    """Imports the framework; what it is, how long that took, and the memory it takes by itself."""
    global _threads
    _threads = threads
    began = time.perf_counter()
    info = make(_name).start(threads)
    return {"framework": info.framework, "version": info.version, "details": info.details, "start_s": time.perf_counter() - began, "memory_mb": memory()["now_mb"]}


def memory() -> dict:
    """Resident memory of this process, now and at its highest."""
    return {"now_mb": psutil.Process().memory_info().rss / MEBIBYTE, "peak_mb": highest_memory()}


def highest_memory() -> float:
    """The most resident memory, in MiB, that this process has had.

    Not getrusage's where it can be helped: on Linux a process inherits the highest memory of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MEBIBYTE
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MEBIBYTE


def peer(network: str, mode: str):
    """The peer that holds `network` in `mode`, built at its first use."""
    key = (network, mode)
    if key not in _built:
        made = make(_name)
        made.start(_threads)
        made.build(networks.get(network), mode)
        _built[key] = made
    return _built[key]


def parity(network: str, mode: str, state, x, y, optimizer: SGD) -> dict:
    """One forward pass, one backward pass and one training step from `state`: everything that is held against the truth."""
    p = peer(network, mode)
    p.set_state(state)
    back = p.get_state()
    loss, gradients = p.loss_and_gradients(x, y)
    output = p.forward(x)
    p.train_step(x, y, optimizer)
    return {"state": back, "output": output, "loss": loss, "gradients": gradients, "stepped": p.get_state()}


def train_epoch(network: str, mode: str, state, x, y, order, batch: int, optimizer: SGD) -> list[float]:
    """One pass over the images in `order`; returns each step's loss. `state` is given for the first epoch alone."""
    p = peer(network, mode)
    if state is not None:
        p.set_state(state)
    return [p.train_step(x[at], y[at], optimizer) for at in np_split(order, batch)]


def np_split(order, batch: int):
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def accuracy(network: str, mode: str, x, y) -> float:
    """The share of images whose class has the largest output."""
    right = sum(int((peer(network, mode).forward(x[i : i + 120]).argmax(axis=1) == y[i : i + 120]).sum()) for i in range(0, len(x), 120))
    return right / len(x)


def first_call(network: str, mode: str, kind: str, state, x, y, optimizer: SGD) -> float:
    """Prepares a batch and times the first call on it: tracing and compiling included."""
    p = peer(network, mode)
    p.set_state(state)
    batch = p.prepare(x, y)
    call = p.timed_forward(batch) if kind == "forward" else p.timed_train_step(batch, optimizer)
    _calls[network, mode, kind, len(x)] = call
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def time_block(network: str, mode: str, kind: str, size: int, seconds: float) -> list[float]:
    """Seconds of single calls, for about `seconds` and at least one, after one that isn't counted."""
    call = _calls[network, mode, kind, size]
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or (time.perf_counter() < end and len(samples) < 2000):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return samples

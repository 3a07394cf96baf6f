"""Whether ops make nodes, and whether someone writes down what they do: of each thread by itself."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator, contextmanager


class _Mode(threading.local):
    pauses = 0
    trace = None  # what writes down the ops of this thread, while `tinynet.compile` captures them (trace.py)


mode = _Mode()


class trainings:
    """How often the training mode of any module was set, in all threads: who has read the modes at this count need not read them again."""

    count = 0


class no_grad(ContextDecorator):
    """Inside `with no_grad():`, or a function decorated with `@no_grad()`, ops make no nodes (in this thread)."""

    def __enter__(self):
        mode.pauses += 1

    def __exit__(self, *_):
        mode.pauses -= 1


def is_recording() -> bool:
    return not mode.pauses


def tracing():
    return mode.trace


@contextmanager
def traced_by(trace):
    """Ops of this thread are written down by `trace` inside; by nobody if it is None."""
    before, mode.trace = mode.trace, trace
    try:
        yield trace
    finally:
        mode.trace = before

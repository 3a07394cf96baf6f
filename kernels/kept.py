"""What is compiled once and kept on disk: where it lies, and what is said on stderr while it is made.

Used by every backend that compiles: kernels/cpu/objects.py keeps numba's object code, kernels/cuda/emulator/build.py
what g++ makes of .cu files.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path


def folders(beside: Path) -> list[Path]:
    """Where compiled code may lie, the first choice first: NUMBA_CACHE_DIR, which chooses for all of it, or `__pycache__` in
    the folder of what was compiled, or the user's cache."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(chosen) / "tinynet"]
    home = Path(os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [beside / "__pycache__", home / "tinynet"]


class _Announced(threading.local):
    inside = False


_announced = _Announced()


@contextmanager
def announced(what: str):
    """Says on stderr what is compiled inside, and how long it took: the first call of a kernel is slow only once."""
    began, outermost = time.perf_counter(), not _announced.inside  # what is compiled into another belongs to that one
    _announced.inside = True
    if outermost:
        say(f"tinynet: compiling {what} (once; it is kept on disk) ...")
    try:
        yield
    finally:
        if outermost:
            _announced.inside = False
            say(f" {time.perf_counter() - began:.1f} s\n")


def say(text: str) -> None:
    if os.environ.get("TINYNET_QUIET") != "1":
        sys.stderr.write(text)
        sys.stderr.flush()

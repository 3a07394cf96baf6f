"""Keeps arrays that a graph has saved from being edited under it.

A gradient computed from an edited array would be wrong without a sign. So the memory that
is saved for `backward` is read-only until its graph is released, and numpy refuses the edit
where it happens: "assignment destination is read-only". Optimisers and `load_state_dict`
edit parameters on purpose: they say so with `writable`, which counts the edit, and a graph
that saved the values before it refuses to run backward.

Both hold for the owner of the memory, so that a tensor, its `detach()` and its views are
one. What numpy can't do: other views that were taken earlier stay writable, and so does
memory that another library owns (there, as on a GPU, only edits with `writable` are noticed).
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np


class Hold:
    """Memory that graphs hold: how many of them, how often it was edited since, and what was made read-only."""

    __slots__ = ("owner", "graphs", "edits", "closed")

    def __init__(self, owner):
        self.owner = owner  # kept alive here, so that no other array gets its id
        self.graphs = 0
        self.edits = 0
        self.closed: list = []  # arrays made read-only, the owner first: a view can't be writable before it
        # numpy gives write permission back only where it owns the memory
        if isinstance(owner, np.ndarray) and owner.base is None and owner.flags.writeable:
            owner.setflags(False)
            self.closed.append(owner)


_holds: dict[int, Hold] = {}  # by the id of the owner
_mutex = threading.Lock()
_let_go: deque[Hold] = deque()  # released, but not yet counted


def owner_of(array):
    """The array whose memory this one is a view of; itself if it is none."""
    while array.base is not None and isinstance(array.base, (np.ndarray, type(array))):
        array = array.base
    return array


def hold(values: dict, kind: type) -> list[tuple[str, Hold, int]]:
    """Makes the arrays (of this kind) among the values, and their owners, read-only for one more graph.

    Returns the name, the hold and its edits before, of each; `release` wants them back.
    """
    found = []
    with _mutex:
        for name, array in values.items():
            if not isinstance(array, kind):
                continue
            owner = array if array.base is None else owner_of(array)
            held = _holds.get(id(owner))
            if held is None:
                held = _holds[id(owner)] = Hold(owner)
            held.graphs += 1
            if array is not owner and held.closed and array.flags.writeable:
                array.setflags(False)
                held.closed.append(array)
            found.append((name, held, held.edits))
    if _let_go:
        _settle()
    return found


def release(holds: list[tuple[str, Hold, int]]) -> None:
    """One graph lets go; with the last one the arrays can be written again."""
    _let_go.extend([held for _, held, _ in holds])
    _settle()


def _settle() -> None:
    # The garbage collector may end a graph, and so call `release`, anywhere: in the middle of `hold`
    # too. So nobody waits for the mutex here: who has it counts what others have left, before or after.
    while _let_go and _mutex.acquire(False):
        try:
            while _let_go:
                held = _let_go.popleft()
                held.graphs -= 1
                if not held.graphs:
                    del _holds[id(held.owner)]
                    _set_writable(held, True)
        finally:
            _mutex.release()


def _set_writable(held: Hold, wanted: bool) -> None:
    for array in held.closed:
        array.setflags(wanted)


def edited(tensors) -> None:
    """Marks older graphs of these tensors as stale, after edits that numpy did not see."""
    if _holds:
        keys = [id(owner_of(t.data)) for t in tensors]
        with _mutex:
            for key in keys:
                if key in _holds:
                    _holds[key].edits += 1


class writable:
    """`with writable(tensor) as array:` is for an edit of its array in place; it marks older graphs as stale."""

    def __init__(self, tensor):
        self.array, self.key = tensor.data, id(owner_of(tensor.data))

    def __enter__(self):
        if _holds:
            with _mutex:
                if self.key in _holds:
                    _set_writable(_holds[self.key], True)
        return self.array

    def __exit__(self, *_):
        if _holds:
            with _mutex:
                if self.key in _holds:
                    _holds[self.key].edits += 1
                    _set_writable(_holds[self.key], False)
            _settle()

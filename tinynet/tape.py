"""The tape: what an op leaves behind for its gradients, and the walk back from a result to its leaves.

A Node is one application of an op. Its edges lead to where the inputs came from: to the node
that made one, to a leaf (a tensor nobody computed) or, where no gradient is needed, to None.
"""

from __future__ import annotations

import threading

import numpy as np

from tinynet import guard
from tinynet.devices import beside


class Node:
    __slots__ = ("op", "k", "edges", "shapes", "saved", "holds", "__weakref__")

    def __init__(self, op, k, tensors, arrays, out, parameters: dict, saved: dict):
        self.op, self.k = op, k
        self.edges = [(t.node or t) if t is not None and t.requires_grad else None for t in tensors]
        self.shapes = [getattr(a, "shape", ()) for a in arrays]
        self.saved = {}
        for name, edge in zip(op.inputs, self.edges):
            if edge is None:
                continue
            if name not in op.gradients:
                raise TypeError(f"{op.name}: there is no gradient for {name}; write one with @{op.name}.gradient({name!r}), or pass {name}.detach()")
            for wanted in op.gradients[name][1]:
                if wanted in self.saved:
                    continue
                if wanted in op.inputs:
                    place = op.inputs.index(wanted)
                    value = arrays[place]
                    if tensors[place] is None and isinstance(value, k.xp.ndarray):
                        value = value.copy()  # the caller's own array, theirs to edit before backward
                else:
                    value = out if wanted == "out" else _known(wanted, op, saved, parameters)
                self.saved[wanted] = value
        self.holds = guard.hold(self.saved, k.xp.ndarray)

    def pull_back(self, dy, retain: bool) -> list[tuple]:
        """(edge, gradient) for each input that needs one, from the gradient of the result."""
        self.check_saved()
        shares = []
        for name, edge, shape in zip(self.op.inputs, self.edges, self.shapes):
            if edge is not None:
                function, asked = self.op.gradients[name]
                with self.k.here:
                    share = function(self.k, dy, **{wanted: self.saved[wanted] for wanted in asked})
                    if share.shape != shape:
                        share = _summed_to(share, shape, self.op.name)
                shares.append((edge, np.asarray(share) if isinstance(share, np.generic) else share))
        if not retain:
            self.release()
        return shares

    def check_saved(self) -> None:
        """Raises RuntimeError if what was saved is gone, or was changed since."""
        if self.saved is None:
            raise RuntimeError(f"backward: the graph through {self.op.name} was already used and released; compute the result again, or call backward(retain_graph=True) the first time")
        for name, held, edits in self.holds:
            if held.edits != edits:
                raise RuntimeError(
                    f"backward: {name} of {self.op.name} (shape {self.saved[name].shape}) was changed in place (by an optimiser step or load_state_dict) after it was saved; call backward before the change, or compute the result again"
                )

    def release(self) -> None:
        """Lets go of everything that was saved, and of the graph behind."""
        holds, self.saved, self.holds, self.edges = self.holds, None, (), ()
        if holds:
            guard.release(holds)

    def __del__(self):
        # A graph that nobody ran backward through: its arrays must become writable again.
        if holds := getattr(self, "holds", ()):
            guard.release(holds)


class Pulled(Node):
    """Many ops as one node (plan.py): `pull(dy)` gives the gradients of `tensors`; `free` is called when nobody will pull again."""

    __slots__ = ("pull", "free")

    def __init__(self, op, tensors: list, arrays: list, pull, free):
        self.op, self.pull, self.free = op, pull, free
        self.edges = [t.node or t for t in tensors]
        self.saved = {f"value {i}": a for i, a in enumerate(arrays)}
        self.holds = guard.hold(self.saved, np.ndarray)

    def pull_back(self, dy, retain: bool) -> list[tuple]:
        self.check_saved()
        shares = list(zip(self.edges, self.pull(dy)))
        if not retain:
            self.release()
        return shares

    def release(self) -> None:
        super().release()
        self._let_go()

    def _let_go(self) -> None:
        free, self.free = getattr(self, "free", None), None
        if free is not None:
            free()

    def __del__(self):
        super().__del__()
        self._let_go()


def _known(name: str, op, saved: dict, parameters: dict):
    for values in (saved, parameters, op.defaults):
        if name in values:
            return values[name]
    raise TypeError(f"{op.name}: a gradient asks for {name!r}, which is neither an input ({', '.join(op.inputs)}), nor a parameter, nor saved by the forward")


def backward(root, dy, retain: bool) -> None:
    """Hands `dy` down from `root`, a node or a leaf, and adds what arrives to the `grad` of the leaves."""
    if not isinstance(root, Node):
        _add_to_grad(root, dy, shared=True)
        return
    # A node may run only when all its consumers have handed it their share: with
    # b = a + a; c = b + b; d = c + b, running b before c would lose c's share of it. So
    # count the consumers of each node first, then run a node when its count is down to 0.
    waiting = _count_consumers(root)
    shares = {root: dy}
    ready = [root]
    while ready:
        node = ready.pop()
        dy = shares.pop(node)
        for edge, share in node.pull_back(dy, retain):
            with beside(share):
                if not isinstance(edge, Node):
                    _add_to_grad(edge, share, shared=share is dy)
                    continue
                shares[edge] = shares[edge] + share if edge in shares else share
            waiting[edge] -= 1
            if waiting[edge] == 0:
                ready.append(edge)


def _count_consumers(root: Node) -> dict[Node, int]:
    """How many edges lead to each node from the nodes that `root` was computed from (without recursion:
    a graph may be many thousands of nodes deep)."""
    counts = {root: 0}
    stack = [root]
    while stack:
        for edge in stack.pop().edges:
            if isinstance(edge, Node):
                if edge not in counts:
                    counts[edge] = 0
                    stack.append(edge)
                counts[edge] += 1
    return counts


_adding = threading.Lock()  # two threads may meet in one leaf


def _add_to_grad(leaf, share, shared: bool) -> None:
    # `grad` is always an array of its own, so that editing one in place (clipping, say) never changes
    # another: what a gradient function passed on (`shared`), or a view, or a read-only array, is copied.
    with _adding:
        before = leaf._grad() if callable(leaf._grad) else leaf._grad  # a compiled step hands its gradients out when asked
        if before is not None:
            leaf._grad = before + share
        elif shared or share.base is not None or not share.flags.c_contiguous or not getattr(share.flags, "writeable", True):
            leaf._grad = share.copy()
        else:
            leaf._grad = share


def _summed_to(share, shape: tuple[int, ...], name: str):
    """An input that was broadcast was used many times: its gradient is the sum over those uses."""
    extra = share.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and share.shape[extra + i] != 1)
    summed = share.sum(axis=axes).reshape(shape) if extra >= 0 and axes else share
    if summed.shape != shape:
        raise RuntimeError(f"{name}: a gradient function returned shape {share.shape} for an input of shape {shape}")
    return summed

"""Tensor: an array that remembers how it was made.

A tensor holds an array (`data`) and, if it was computed from tensors that need a gradient,
the Node of the op that made it; `backward` walks from node to node to the leaves (tape.py).
No op is named here: an op attaches its own method or operator (ops/).

Next on the walk: op.py, where nodes are made.
"""

from __future__ import annotations

import numpy as np

from tinynet import tape
from tinynet.devices import array_module, here, home_of, on_gpu, shared, to_host
from tinynet.mode import mode

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Tensor:
    """`Tensor(array)` shares the array's memory; `tinynet.tensor(values)` makes a copy.

    data: the numpy (or CuPy) array. grad: an array of the same kind, shape and dtype, or
    None. node: what made it, None for a leaf.
    """

    __slots__ = ("data", "_grad", "_requires_grad", "node", "device", "__weakref__")
    __array_ufunc__ = None  # so that `ndarray + Tensor` is ours to answer, not an array of objects

    def __init__(self, data, requires_grad: bool = False, device: str = "cpu"):
        plain = isinstance(data, np.ndarray)
        self.data = data if plain else _as_array(data)
        self._grad = self.node = None
        self.device = device if plain and device == "cpu" else home_of(self.data, device)
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    @property
    def grad(self):
        if mode.trace is not None:
            mode.trace.forbid("reads a gradient")
        if callable(self._grad):  # a compiled step leaves its gradients where they are until someone asks
            self._grad = self._grad()
        return self._grad

    @grad.setter
    def grad(self, array) -> None:
        if mode.trace is not None:
            mode.trace.set_grad(self, array)
        self._grad = array

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted and self.dtype not in FLOATS:
            raise TypeError(f"requires_grad: only float32 and float64 tensors can require a gradient; this one is {self.dtype}; make it with dtype=np.float32, or use .astype(np.float32)")
        self._requires_grad = bool(wanted)

    def made_by(self, node: tape.Node) -> None:
        """Makes this tensor the result of a node: no leaf any more."""
        self.node, self._requires_grad = node, True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no first axis; use .item() for its value")
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", threshold=20, prefix="tensor(")
        extra = f", device={self.device!r}" if self.device != "cpu" else ""
        made = f", made by {self.node.op.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}, shape={self.shape}, {self.dtype}{extra}{made})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def _not_compared(self, other):
        if not isinstance(other, (Tensor, np.ndarray, np.generic, int, float, list, tuple)):
            return NotImplemented
        raise TypeError("Tensor: tensors are not compared with ==, < and the like; compare arrays, a.numpy() == b.numpy(), or ask with `is` whether two are the same tensor")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _not_compared
    __hash__ = object.__hash__  # by identity: tensors can be keys

    def __reduce_ex__(self, protocol):
        if self.node is not None:
            raise TypeError(f"Tensor: a tensor made by {self.node.op.name} can't be copied or pickled, its graph is not part of it; use .detach() first")
        return super().__reduce_ex__(protocol)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def item(self):
        """The value of a tensor of one element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: only a tensor of one element is a number; this one has shape {self.shape}; use .numpy() for all of them")
        return self.numpy().item()

    def numpy(self) -> np.ndarray:
        """The values as a numpy array: the tensor's own memory on the CPU, a copy from a GPU."""
        if mode.trace is not None:
            mode.trace.forbid("reads the values of a tensor")
        return to_host(self.data)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options):
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def detach(self) -> "Tensor":
        """The same array outside of any graph."""
        return Tensor(self.data, device=self.device)

    def backward(self, gradient=None, *, retain_graph: bool = False) -> None:
        """Adds d(self)/d(leaf) to the `grad` of every leaf that requires one.

        gradient: d(result)/d(self), of this tensor's shape and dtype; 1 if it is left out,
        which only a tensor of one element allows. The graph is released on the way, so a
        second call through it is an error unless `retain_graph=True`.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward: this tensor requires no gradient; it was computed without recording (no_grad, detach) or "
                "from tensors that don't require one; set requires_grad=True on a leaf before computing"
            )
        if mode.trace is not None and mode.trace.backward(self, gradient, retain_graph):
            return
        with here(self.device):
            tape.backward(self.node or self, self._cotangent(gradient), retain_graph)

    def _cotangent(self, gradient):
        xp = array_module(self.device)
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(f"backward: the result has shape {self.shape}; give gradient= an array of that shape, or reduce it to one number first (.sum(), .mean())")
            return xp.ones(self.shape, self.dtype)
        if isinstance(gradient, Tensor):
            gradient = gradient.data
        gradient = xp.asarray(gradient, None if isinstance(gradient, xp.ndarray) else self.dtype)
        if gradient.shape != self.shape or gradient.dtype != self.dtype:
            raise ValueError(f"backward: gradient must be {self.dtype} of shape {self.shape}, as the tensor is; got {gradient.dtype} of shape {gradient.shape}")
        return gradient


def _as_array(data):
    if isinstance(data, np.generic):  # numpy turns 0-d results into scalars
        return np.asarray(data)
    if not on_gpu(data):
        raise TypeError(f"Tensor: data must be an array; got {type(data).__name__}; tinynet.tensor(values) makes one of numbers and lists")
    return shared(data)

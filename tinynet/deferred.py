"""Results that are not computed yet: how `tinynet.compile` captures a function without computing it twice.

While trace.py writes a function down, its ops need to know shapes and dtypes alone. So they run on blanks: arrays of
the right shape with no memory behind them, which numpy's functions turn into other blanks. What an op returns is a tensor that
waits. When the function has returned, the program made of it (plan.py) computes what it returned. And where somebody
looks at a value before, or no program can be made, the ops that were written down run then, each as always.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinynet.inputs import prepare
from tinynet.kernels.contract import CONTRACTS
from tinynet.tensor import FLOATS, Tensor


class Blank(np.ndarray):
    """An array whose values nobody may read: all are one number in memory. Made by `blank`."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        if any(not isinstance(array, Blank) for array in out):
            return NotImplemented  # someone's real array would get no values
        if method == "reduce" and not out:
            like = ufunc.reduce(_one(inputs[0]), **options)
            return blank(_reduced(inputs[0].shape, options.get("axis", 0), options.get("keepdims", False)), like.dtype)
        if method == "__call__" and ufunc.signature is None and ufunc.nout == 1:
            shape = np.broadcast_shapes(*[getattr(i, "shape", ()) for i in inputs])
            return out[0] if out else blank(shape, ufunc(*map(_one, inputs), **options).dtype)
        return NotImplemented

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"{function.__name__} would read an array that has no values")

    def astype(self, dtype, **options):
        return blank(self.shape, dtype)


def blank(shape, dtype) -> Blank:
    return np.broadcast_to(np.ones((), dtype), shape).view(Blank)


def _one(value):
    """The same with all axes of length 1: numpy says what dtype comes of it."""
    return np.ones((1,) * value.ndim, value.dtype) if isinstance(value, np.ndarray) else value


def _reduced(shape: tuple[int, ...], axis, keepdims: bool) -> tuple[int, ...]:
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = {a % len(shape) for a in axes}
    return tuple(1 if a in axes else n for a, n in enumerate(shape) if keepdims or a not in axes)


class _Module:
    """numpy, but new arrays are blank."""

    def __getattr__(self, name: str):
        return getattr(np, name)

    @staticmethod
    def zeros(shape, dtype):
        return blank(shape, dtype)

    @staticmethod
    def broadcast_to(array, shape):
        return blank(shape, array.dtype)


class _Kernels:
    """The `k` of an op that runs on blanks: a kernel returns what its contract says that it would."""

    device, xp = "cpu", _Module()

    def __getattr__(self, name: str):
        def launch(*arrays, **parameters):
            made = tuple(blank(*output) for output in CONTRACTS[name].spec(*arrays, **parameters).outputs)
            return made if len(made) > 1 else made[0]

        return launch


_KERNELS = _Kernels()


@dataclass
class Promise:
    """What stands where a waiting tensor's array will be. compute: makes all waiting tensors of its function real."""

    shape: tuple[int, ...]
    dtype: np.dtype
    compute: object


_array = Tensor.data  # the slot itself, which Waiting hides


class Waiting(Tensor):
    """The result of an op that was written down and did not run. It becomes a Tensor like any other, in place."""

    __slots__ = ()

    def __init__(self, promise: Promise, requires_grad: bool):
        _array.__set__(self, promise)
        self._grad = self.node = None
        self.device, self._requires_grad = "cpu", requires_grad

    @property
    def data(self):
        _array.__get__(self).compute()
        return _array.__get__(self)

    @data.setter
    def data(self, array) -> None:
        _array.__get__(self).compute()
        _array.__set__(self, array)

    @property
    def shape(self):
        return _array.__get__(self).shape

    @property
    def dtype(self):
        return _array.__get__(self).dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def become(self, made: Tensor) -> None:
        """The value has been computed: from now on this is the tensor `made`."""
        self.__class__ = Tensor
        self.data, self.node, self._requires_grad = made.data, made.node, made._requires_grad

    def __reduce_ex__(self, protocol):
        _array.__get__(self).compute()
        return self.__reduce_ex__(protocol)  # Tensor's


def deferred(op, inputs: tuple, parameters: dict, recording: bool, compute) -> Waiting | None:
    """What the op will return for these inputs; None if that can't be known without running it."""
    if not op.ours:  # it may do anything with an array, hand its address to C for example
        return None
    try:
        arrays, _, device, needed = prepare(op, tuple(map(_blanked, inputs)))
        if device != "cpu" or "device" in parameters:  # `move`: its result lies elsewhere
            return None
        out = op.forward(_KERNELS, *arrays, **parameters)
    except Exception:  # noqa: BLE001  (the op runs now, and whatever is wrong is said by it)
        return None
    out = out[0] if type(out) is tuple else out
    return Waiting(Promise(out.shape, out.dtype, compute), needed and recording and out.dtype.kind == "f")


def _blanked(value):
    """Numbers of floating point are not read. Integers are, if they are there: classes are checked at once."""
    if isinstance(value, Waiting) or isinstance(value, (np.ndarray, Tensor)) and value.dtype in FLOATS:
        made = blank(value.shape, value.dtype)
        return Tensor(made, value.requires_grad and made.dtype in FLOATS, value.device) if isinstance(value, Tensor) else made
    return value

"""Between numpy and the library of the function under test. No library is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinynet.oracle.bounds import dtype_of


@dataclass(frozen=True)
class Adapter:
    """How to give a function its arrays (`into`) and to read its result (`out`: waits for it, and moves it to the host).

    flushes: the library sets subnormal numbers to zero. strided: `into` keeps strides, so that
    a non-contiguous input arrives as one.
    """

    name: str
    into: Callable
    out: Callable
    flushes: bool = False
    strided: bool = False


def _same(a):
    return a


def _into_torch(a: np.ndarray):
    import torch

    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def _out_of_torch(t):
    if not hasattr(t, "detach"):
        return np.asarray(t)
    t = t.detach().cpu()
    if str(t.dtype) == "torch.bfloat16":
        import torch

        return t.contiguous().view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return t.numpy()


def _into_tensorflow(a: np.ndarray):
    import tensorflow

    return tensorflow.constant(a)


def _out_of_tensorflow(t):
    return np.asarray(t.numpy() if hasattr(t, "numpy") else t)


def _into_jax(a: np.ndarray):
    import jax.numpy

    return jax.numpy.array(a)


def _into_cupy(a: np.ndarray):
    import cupy

    return cupy.asarray(a)


def _out_of_cupy(a):
    return a.get() if hasattr(a, "get") else np.asarray(a)


ADAPTERS = {
    "numpy": Adapter("numpy", _same, _same, strided=True),
    "torch": Adapter("torch", _into_torch, _out_of_torch, strided=True),
    "tensorflow": Adapter("tensorflow", _into_tensorflow, _out_of_tensorflow, flushes=True),
    "jax": Adapter("jax", _into_jax, np.asarray, flushes=True),
    "cupy": Adapter("cupy", _into_cupy, _out_of_cupy),
}


def adapter(adapt) -> Adapter:
    """From a name, an Adapter, or a pair of functions (into, out); None is numpy."""
    if isinstance(adapt, Adapter):
        return adapt
    if adapt is None or isinstance(adapt, str) and adapt in ADAPTERS:
        return ADAPTERS[adapt or "numpy"]
    if isinstance(adapt, tuple) and len(adapt) == 2 and all(map(callable, adapt)):
        return Adapter("custom", *adapt)
    raise ValueError(f"oracle: adapt must be one of {', '.join(ADAPTERS)}, an Adapter, or a pair (into, out) of functions on one array; got {adapt!r}")


def tree(f: Callable, value):
    """f on an array, or on each array of a tuple or list; None stays."""
    if isinstance(value, (tuple, list)):
        return tuple(tree(f, v) for v in value)
    return None if value is None else f(value)


def with_out(kernel, name: str) -> Callable:
    """A kernel of the contract, `kernel(*arrays, **parameters, out=...)`, as a function that returns its
    result: the outputs are made by the contract, and poisoned (NaN, or a place that does not exist).
    kernel: the function, or its Implementation (dispatch.find), whose declared norm `check` then uses."""
    from tinynet.kernels.contract import CONTRACTS
    from tinynet.oracle.calls import completed

    if name not in CONTRACTS:
        raise ValueError(f"oracle.with_out: {name!r} is no kernel of the contract; those are {', '.join(CONTRACTS)}")

    function = getattr(kernel, "function", kernel)

    def without_out(*arrays, **parameters):
        arrays, parameters = completed(name, arrays, parameters)
        outputs = CONTRACTS[name].spec(*arrays, **parameters).outputs
        made = tuple(np.full(shape, np.iinfo(dtype).min if dtype.kind == "i" else np.nan, dtype) for shape, dtype in outputs)
        out = made if len(made) > 1 else made[0]
        function(*arrays, **parameters, out=out)
        return out

    without_out.__name__ = getattr(function, "__name__", name)
    without_out.norm = getattr(kernel, "norm", None)
    return without_out

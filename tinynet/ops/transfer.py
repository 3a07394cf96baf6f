"""To another device or another dtype; the gradient comes back the same way."""

import numpy as np

from tinynet.devices import moved
from tinynet.inputs import check_supported
from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iub")
def astype(k, x, *, dtype):
    return x.astype(dtype), {"before": x.dtype}


@astype.gradient("x")
def _(k, dy, *, before):
    return dy.astype(before)


def _astype(x, dtype):
    dtype = np.dtype(dtype)
    check_supported(dtype, "astype")
    return astype(x, dtype=dtype)


@op(also="iub")
def move(k, x, *, device):
    return moved(x, device), {"home": k.device}


@move.gradient("x")
def _(k, dy, *, home):
    return moved(dy, home)


def _to(x, device):
    return x if device == x.device else move(x, device=device)


Tensor.astype, Tensor.to = _astype, _to


@astype.samples
def _(rng):
    yield (3, 4), dict(dtype=np.dtype(np.float64))

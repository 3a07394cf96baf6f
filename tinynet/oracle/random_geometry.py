"""`random_cases(name, count)`: cases in geometries drawn at random, for runs longer than the built-in table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinynet.geometry import reach
from tinynet.oracle import casebook
from tinynet.oracle import tables_kernels as tables
from tinynet.oracle.bounds import format_of
from tinynet.oracle.casebook import Case

_CONVOLUTIONS = dict(conv2d=tables.make_conv2d, conv2d_dx=tables.make_conv2d_dx, conv2d_dw=tables.make_conv2d_dw, conv2d_db=tables.make_conv2d_db)
_POOLS = dict(max_pool2d=tables.make_max_pool2d, max_pool2d_dx=tables.make_max_pool2d_dx, avg_pool2d=tables.make_avg_pool2d, avg_pool2d_dx=tables.make_avg_pool2d_dx)


def random_cases(name: str, count: int, *, seed: int = 0, dtype="float32") -> list[Case]:
    """`count` cases of `name`. Convolutions, pools and products get random sizes, strides, padding, dilation,
    groups and layouts; the other names their built-in table again and again with new numbers."""
    dtype = format_of(dtype, "oracle.random_cases").name
    rng = np.random.default_rng([seed, 2])
    if name in _CONVOLUTIONS:
        build, kinds = (lambda: _conv(rng)), ("ints", "reals")
        make = _CONVOLUTIONS[name]
    elif name in _POOLS:
        build, kinds = (lambda: _pool(rng, name.startswith("max"))), ("unique", "ties") if name == "max_pool2d" else ("ints", "reals")
        make = _POOLS[name]
    elif name == "matmul":
        build, kinds, make = (lambda: _product(rng)), ("ints", "reals"), tables.make_matmul
    else:
        table = casebook.cases(name, dtype=dtype)
        again = -(-count // len(table))
        return [replace(case, seed=seed + 1 + i) for i in range(again) for case in table][:count]
    found = []
    for i in range(count):
        kind, geometry = kinds[i % len(kinds)], build()
        text = geometry.label if hasattr(geometry, "label") else " times ".join(map(str, geometry))
        found.append(Case(name, f"random {i}: {text}", kind, make(geometry, kind, dtype), dtype, seed, zeros=True))
    return found


def _pick(rng, *values):
    return values[rng.integers(len(values))]


def _axis(rng) -> tuple[int, int, int, int, tuple[int, int]]:
    """size, kernel, stride, dilation and padding of one axis, in which at least one window fits."""
    kernel, stride, dilation = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(_pick(rng, 1, 1, 1, 2, 3))
    padding = tuple(int(v) for v in rng.integers(0, 4, 2))
    least = max(reach(kernel, dilation) - sum(padding), 1)
    return int(rng.integers(least, least + 14)), kernel, stride, dilation, padding


def _conv(rng) -> tables.Conv:
    (h, kh, sh, dh, ph), (w, kw, sw, dw, pw) = _axis(rng), _axis(rng)
    groups = int(_pick(rng, 1, 1, 1, 2, 3))
    x = (int(rng.integers(1, 4)), groups * int(rng.integers(1, 9)), h, w)
    k, layout, bias = groups * int(rng.integers(1, 9)), _pick(rng, "NCHW", "NHWC"), bool(rng.integers(2))
    label = f"x {x}, {k} filters {kh}x{kw}, stride {sh}x{sw}, padding {ph} {pw}, dilation {dh}x{dw}, {groups} groups, {layout}"
    return tables.Conv(label, x, k, (kh, kw), (sh, sw), (ph, pw), (dh, dw), groups, layout, bias)


def _pool(rng, largest: bool) -> tables.Pool:
    (h, kh, sh, dh, ph), (w, kw, sw, dw, pw) = _axis(rng), _axis(rng)
    if not largest:  # averages have no dilation, and then a smaller window fits as well
        dh = dw = 1
    x = (int(rng.integers(1, 4)), int(rng.integers(1, 9)), h, w)
    ceil_mode, layout, count_pad = bool(rng.integers(2)), _pick(rng, "NCHW", "NHWC"), bool(rng.integers(2))
    label = f"x {x}, {kh}x{kw}, stride {sh}x{sw}, padding {ph} {pw}, dilation {dh}x{dw}, ceil_mode={ceil_mode}, count_include_pad={count_pad}, {layout}"
    return tables.Pool(label, x, (kh, kw), (sh, sw), (ph, pw), ceil_mode, layout, (dh, dw), count_pad)


def _product(rng):
    batch = tuple(int(v) for v in rng.integers(1, 4, rng.integers(3)))
    i, t, j = (int(v) for v in rng.integers(1, 70, 3))
    return (*batch, i, t), (*batch, t, j)

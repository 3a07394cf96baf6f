"""The built-in cases of the contract's kernels.

What each geometry is there for is its label. H is never W and C never K unless the label says
so, and kernels are not square, so that no swapped axis can pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tinynet.geometry import PoolWindow, Window, in_layout, nchw, output_sizes
from tinynet.oracle import inputs
from tinynet.oracle.casebook import Case
from tinynet.oracle.truth_kernels import run


@dataclass(frozen=True)
class Conv:
    """One convolution: x (n, c, h, w) in NCHW terms, k filters."""

    label: str
    x: tuple[int, int, int, int]
    k: int
    kernel: tuple[int, int]
    stride: object = 1
    padding: object = 0
    dilation: object = 1
    groups: int = 1
    layout: str = "NCHW"
    bias: bool = True

    def window(self) -> Window:
        return Window(self.x_shape, self.weight_shape, self.stride, self.padding, self.dilation, self.groups, self.layout, self.label)

    @property
    def x_shape(self):
        return in_layout(*self.x, self.layout)

    @property
    def weight_shape(self):
        return self.k, self.x[1] // self.groups, *self.kernel

    @property
    def y_shape(self):
        w = self.window()
        sizes = output_sizes(self.label, self.x[2:], self.kernel, w["stride"], w["dilation"], w["padding"])
        return in_layout(self.x[0], self.k, *sizes, self.layout)


CONVS = (
    Conv("same, stride 2x1", (2, 3, 7, 5), 4, (3, 2), (2, 1), "same"),
    Conv("NHWC, uneven padding", (2, 3, 7, 5), 4, (3, 2), 1, ((0, 2), (1, 0)), layout="NHWC"),
    Conv("dilation and groups", (3, 4, 9, 6), 6, (2, 3), 1, (1, 2), (2, 1), groups=2, bias=False),
    Conv("depthwise, stride 3", (1, 3, 8, 7), 3, (3, 3), 3, "valid", groups=3),
    Conv("depthwise x2, NHWC", (2, 3, 6, 5), 6, (2, 3), 1, (0, 1), groups=3, layout="NHWC"),
    Conv("stride does not divide", (2, 5, 11, 8), 3, (4, 3), (3, 2), ((1, 0), (0, 1))),
    Conv("stride over the kernel", (2, 3, 8, 9), 4, (1, 2), (3, 4)),
    Conv("dilation 2x3, NHWC", (1, 2, 10, 9), 3, (3, 2), (1, 2), 1, (2, 3), layout="NHWC"),
    Conv("same, even kernel, NHWC", (2, 3, 9, 6), 4, (4, 2), 2, "same", layout="NHWC"),
    Conv("padding wider than the kernel", (1, 2, 3, 4), 3, (2, 2), 1, ((3, 4), (2, 0))),
    Conv("kernel as large as the image", (2, 2, 4, 5), 3, (4, 5)),
    Conv("one pixel", (2, 3, 1, 1), 4, (1, 1)),
    Conv("one channel", (1, 1, 6, 9), 1, (5, 3), 1, (2, 1), bias=False),
    Conv("1x1 kernel", (2, 7, 5, 4), 6, (1, 1)),
    Conv("odd channels", (1, 17, 6, 5), 19, (3, 3), 1, "same"),
    Conv("odd channels, NHWC", (1, 17, 6, 5), 19, (3, 3), 1, "same", layout="NHWC"),
    Conv("odd width", (1, 2, 3, 37), 5, (3, 3), 1, "same"),
    Conv("typical, C = 8, K = 16", (2, 8, 10, 8), 16, (3, 3), 1, 1),
    Conv("square, C = K", (2, 5, 6, 6), 5, (3, 3), 1, 1),
)
LARGE = {
    "conv2d": Conv("large reduction", (1, 512, 4, 5), 3, (3, 3), 1, 0),
    "conv2d_dx": Conv("large reduction", (1, 3, 4, 5), 512, (3, 3), 1, 0),
    "conv2d_dw": Conv("large reduction", (8, 2, 121, 110), 3, (2, 1), 1, 0),
    "conv2d_db": Conv("large reduction", (8, 1, 121, 110), 3, (2, 1), 1, 0),
}
HALF = ("float16", "bfloat16")  # whole numbers whose large sums fit are mostly 0 there
EMPTY = Conv("empty batch", (0, 3, 7, 5), 4, (3, 2), 1, 1)
SPECIAL = (CONVS[5], Conv("no padding, NHWC", (2, 3, 7, 5), 4, (3, 2), 1, 0, layout="NHWC"), Conv("no padding", (2, 3, 8, 6), 4, (2, 3), 2, 0))


def _pair(kind: str, rng, a_shape, b_shape, n: int, dtype: str):
    """Two factors of sums of n products. Special and subnormal numbers come in the first alone: with the second
    finite and not 0, no implementation may turn them into anything else."""
    if kind == "ints":
        return inputs.factors(rng, a_shape, b_shape, n=n, dtype=dtype)
    first = {"reals": inputs.reals, "special": inputs.special, "subnormal": inputs.subnormal}[kind](rng, a_shape, dtype=dtype)
    return first, inputs.reals(rng, b_shape, dtype=dtype)


def make_conv2d(g: Conv, kind, dtype):
    def make(rng):
        n = prod(g.weight_shape[1:]) + g.bias
        x, weight = _pair(kind, rng, g.x_shape, g.weight_shape, n, dtype)
        bias = None
        if g.bias:
            bias = inputs.ints(rng, (g.k,), n=n, dtype=dtype, most=4) if kind == "ints" else inputs.reals(rng, (g.k,), dtype=dtype)
        return (x, weight, bias), g.window()

    return make


def make_conv2d_dx(g: Conv, kind, dtype):
    def make(rng):
        dy, weight = _pair(kind, rng, g.y_shape, g.weight_shape, g.k // g.groups * prod(g.kernel), dtype)
        return (dy, weight), dict(g.window(), x_shape=g.x_shape)

    return make


def make_conv2d_dw(g: Conv, kind, dtype):
    def make(rng):
        dy, x = _pair(kind, rng, g.y_shape, g.x_shape, prod(g.y_shape) // g.k, dtype)
        return (dy, x), dict(g.window(), weight_shape=g.weight_shape)

    return make


def make_conv2d_db(g: Conv, kind, dtype):
    def make(rng):
        shape = g.y_shape
        dy = inputs.ints(rng, shape, n=prod(shape) // g.k, dtype=dtype) if kind == "ints" else _pair(kind, rng, shape, (1,), 1, dtype)[0]
        return (dy,), dict(layout=g.layout)

    return make


def _convolution(name: str, builder):
    def table(dtype: str) -> list[Case]:
        geometries = (*CONVS, LARGE[name])
        found = [Case(name, g.label, kind, builder(g, kind, dtype), dtype, zeros="over the kernel" in g.label or "large" in g.label and dtype in HALF) for g in geometries for kind in ("ints", "reals")]
        found += [Case(name, g.label, kind, builder(g, kind, dtype), dtype) for g in _specials(name) for kind in ("special", "subnormal")]
        return found + [Case(name, EMPTY.label, "reals", builder(EMPTY, "reals", dtype), dtype, zeros=True)]

    return table


def _pooled(dtype: str) -> list[Case]:
    """Of the convolutions those with windows of 2 x 2, in whole numbers with many ties and results that ReLU lets through or not."""
    geometries = [g for g in (*CONVS, LARGE["conv2d"]) if min(nchw(g.y_shape, g.layout)[2:]) >= 2]
    found = [Case("", g.label, kind, make_conv2d(g, kind, dtype), dtype) for g in geometries for kind in ("ints", "reals")]
    found += [Case("", g.label, kind, make_conv2d(g, kind, dtype), dtype, zeros=kind == "subnormal") for g in SPECIAL for kind in ("special", "subnormal")]
    return [*found, Case("", EMPTY.label, "reals", make_conv2d(EMPTY, "reals", dtype), dtype, zeros=True)]


def _specials(name: str):
    """No padding where infinity would meet its zeros: 0 * inf is NaN to those who multiply, and nothing to those who skip."""
    return SPECIAL[1:] if name == "conv2d_dw" else SPECIAL


# --- pooling -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    label: str
    x: tuple[int, int, int, int]
    kernel: object
    stride: object = None
    padding: object = 0
    ceil_mode: bool = False
    layout: str = "NCHW"
    dilation: object = 1
    count_include_pad: bool = True

    @property
    def x_shape(self):
        return in_layout(*self.x, self.layout)

    def max_window(self) -> PoolWindow:
        return PoolWindow(self.x_shape, self.kernel, self.stride, self.padding, self.ceil_mode, self.layout, self.label, self.dilation)

    def avg_window(self) -> PoolWindow:
        window = PoolWindow(self.x_shape, self.kernel, self.stride, self.padding, self.ceil_mode, self.layout, self.label)
        window["count_include_pad"] = self.count_include_pad
        return window

    def y_shape(self, window):
        sizes = output_sizes(self.label, self.x[2:], window["kernel_size"], window["stride"], window.get("dilation", (1, 1)), window["padding"], self.ceil_mode)
        return in_layout(*self.x[:2], *sizes, self.layout)


POOLS = (
    Pool("2x2", (2, 3, 8, 6), 2),
    Pool("2x2, NHWC", (2, 3, 8, 6), 2, layout="NHWC"),
    Pool("2x2, stride does not divide", (2, 3, 7, 5), 2),
    Pool("3x2, same, stride 2x1", (2, 3, 7, 5), (3, 2), (2, 1), "same", count_include_pad=False),
    Pool("2x3, uneven padding, NHWC", (2, 3, 7, 5), (2, 3), 2, ((1, 0), (1, 1)), layout="NHWC"),
    Pool("overlapping, padding 1", (2, 3, 9, 7), 3, 2, 1),
    Pool("overlapping, stride 1", (1, 2, 6, 8), (3, 2), 1),
    Pool("ceil_mode, padding 1", (1, 2, 9, 8), 3, 2, 1, True),
    Pool("ceil_mode, NHWC", (1, 3, 8, 7), (3, 2), (3, 2), 0, True, "NHWC", count_include_pad=False),
    Pool("stride over the kernel", (2, 2, 9, 8), (2, 1), (4, 3)),
    Pool("global", (2, 3, 5, 4), (5, 4)),
    Pool("1x1", (2, 3, 4, 5), 1),
    Pool("one pixel", (3, 2, 1, 1), 1),
    Pool("odd channels, NHWC", (1, 17, 6, 9), (2, 3), (2, 3), layout="NHWC"),
    Pool("odd width", (1, 2, 4, 37), 2),
)
DILATED = (Pool("dilation 2x3", (2, 2, 9, 8), 2, (2, 1), 0, dilation=(2, 3)), Pool("dilation 3x2, ceil_mode", (1, 2, 9, 8), 2, 3, 0, True, dilation=(3, 2)))
OUTSIDE = Pool("windows in the padding alone", (1, 2, 4, 5), 2, 2, ((2, 3), (0, 2)))
NOTHING = Pool("empty batch", (0, 3, 6, 5), 2)
ALL_POOLS = (*POOLS, OUTSIDE)


def make_max_pool2d(g: Pool, kind, dtype):
    return lambda rng: ((getattr(inputs, kind)(rng, g.x_shape, dtype=dtype),), g.max_window())


def _max_pool2d_table(dtype: str) -> list[Case]:
    geometries = (*ALL_POOLS, *DILATED)
    found = [Case("", g.label, kind, make_max_pool2d(g, kind, dtype), dtype) for g in geometries for kind in ("unique", "ties")]
    found += [Case("", g.label, kind, make_max_pool2d(g, kind, dtype), dtype) for g in (POOLS[0], POOLS[4], POOLS[5]) for kind in ("special", "subnormal")]
    return [*found, Case("", NOTHING.label, "unique", make_max_pool2d(NOTHING, "unique", dtype), dtype)]


def make_max_pool2d_dx(g: Pool, kind, dtype):
    def make(rng):
        window = g.max_window()
        x = inputs.unique(rng, g.x_shape, dtype="float64")
        _, argmax = run("max_pool2d", x, **window)
        return (_one(kind, rng, g.y_shape(window), prod(window["kernel_size"]), dtype), argmax), dict(x_shape=g.x_shape, layout=g.layout)

    return make


def _one(kind, rng, shape, n, dtype):
    return inputs.ints(rng, shape, n=n, dtype=dtype) if kind == "ints" else getattr(inputs, kind)(rng, shape, dtype=dtype)


def _max_pool2d_dx_table(dtype: str) -> list[Case]:
    found = [Case("", g.label, kind, make_max_pool2d_dx(g, kind, dtype), dtype, zeros=True) for g in (*ALL_POOLS, *DILATED) for kind in ("ints", "reals")]
    found += [Case("", g.label, kind, make_max_pool2d_dx(g, kind, dtype), dtype, zeros=True) for g in (POOLS[0], POOLS[5]) for kind in ("special", "subnormal")]
    return [*found, Case("", NOTHING.label, "reals", make_max_pool2d_dx(NOTHING, "reals", dtype), dtype, zeros=True)]


def make_avg_pool2d(g: Pool, kind, dtype):
    def make(rng):
        window = g.avg_window()
        return (_one(kind, rng, g.x_shape, prod(window["kernel_size"]), dtype),), window

    return make


def make_avg_pool2d_dx(g: Pool, kind, dtype):
    def make(rng):
        window = g.avg_window()
        return (_one(kind, rng, g.y_shape(window), prod(window["kernel_size"]), dtype),), dict(window, x_shape=g.x_shape)

    return make


def _averaging(builder):
    def table(dtype: str) -> list[Case]:
        found = []
        for g in ALL_POOLS:
            found += [Case("", g.label, kind, builder(g, kind, dtype), dtype, zeros="over the kernel" in g.label) for kind in ("ints", "reals")]
        found += [Case("", g.label, kind, builder(g, kind, dtype), dtype) for g in (POOLS[0], POOLS[4], POOLS[6]) for kind in ("special", "subnormal")]
        return [*found, Case("", NOTHING.label, "reals", builder(NOTHING, "reals", dtype), dtype, zeros=True)]

    return table


# --- matrix product ------------------------------------------------------------------------------

PRODUCTS = {
    "small": ((5, 7), (7, 3)),
    "square": ((6, 6), (6, 6)),
    "one element": ((1, 1), (1, 1)),
    "row times column": ((1, 64), (64, 1)),
    "column times row": ((9, 1), (1, 5)),
    "odd sizes": ((17, 33), (33, 19)),
    "tiles and a rest": ((66, 40), (40, 50)),
    "batch": ((3, 4, 5), (3, 5, 2)),
    "batch of two axes": ((2, 3, 4, 6), (2, 3, 6, 5)),
    "large reduction": ((2, 100_000), (100_000, 3)),
}


def make_matmul(shapes, kind, dtype):
    a, b = shapes
    return lambda rng: (_pair(kind, rng, a, b, a[-1], dtype), {})


def _matmul_table(dtype: str) -> list[Case]:
    found = [Case("", label, kind, make_matmul(shapes, kind, dtype), dtype, zeros="large" in label and dtype in HALF) for label, shapes in PRODUCTS.items() for kind in ("ints", "reals")]
    found += [Case("", label, kind, make_matmul(PRODUCTS[label], kind, dtype), dtype) for label in ("odd sizes", "batch") for kind in ("special", "subnormal")]
    empty = {"empty batch": ((0, 4, 5), (0, 5, 3)), "no rows": ((0, 5), (5, 3)), "nothing to sum": ((4, 0), (0, 3))}
    return found + [Case("", label, "reals", make_matmul(shapes, "reals", dtype), dtype, zeros=True) for label, shapes in empty.items()]


TABLES = {
    **{name: _convolution(name, builder) for name, builder in dict(conv2d=make_conv2d, conv2d_dx=make_conv2d_dx, conv2d_dw=make_conv2d_dw, conv2d_db=make_conv2d_db).items()},
    "conv2d_relu_max_pool2d": _pooled,
    "max_pool2d": _max_pool2d_table,
    "max_pool2d_dx": _max_pool2d_dx_table,
    "avg_pool2d": _averaging(make_avg_pool2d),
    "avg_pool2d_dx": _averaging(make_avg_pool2d_dx),
    "matmul": _matmul_table,
}

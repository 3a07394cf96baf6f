"""Cliffs: shapes whose neighbour, one step away in one dimension, takes more than 4 times as long for what it computes.

A base is a shape that a network may have. From each we walk along every dimension by itself, over all its values; two
values that follow each other, and are both valid, are neighbours. The roofline says how long each must take at least, for
its operations or its bytes, whichever bounds it. A neighbour may take as many times that as this one does, and where this
one is short, under `SHORT`, no less than its whole time: that is a call's fixed cost. A neighbour's `excess` is its time
beside that.

Every shape is held against the oracle before it is timed. The sweep takes the least of few samples; pairs that look
like cliffs are then timed anew, in turns, and it is these medians that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tinynet import oracle
from tinynet.bench.kernels import Work, call, prove
from tinynet.bench.roofline import Roofline
from tinynet.bench.timing import in_turns, once
from tinynet.dispatch import find
from tinynet.geometry import PoolWindow, Window, in_layout

SCHEMA = "tinynet.bench.cliffs/1"
SHORT = 50e-6  # seconds: below, a call's fixed cost counts, not its rate
CLIFF = 4.0
SUSPECT = 3.0  # an excess of the sweep from which a pair is timed anew

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = (*range(1, 10), 12, *range(15, 18), 24, *range(31, 34), 48, *range(63, 66), 70)
SIZES = (*range(1, 41), 47, 48, 49, 55, 56, 57, 63, 64, 65)
CONVOLUTION = {
    "size": SIZES, "channels": CHANNELS, "filters": CHANNELS, "kernel": range(1, 8), "stride": (1, 2, 3), "padding": (0, 1, 2, 3), "dilation": (1, 2),
    "groups": ("1", "2", "4", "8", "16", "C/2", "C"), "layout": LAYOUTS, "images": (1, 2, 3, 7, 8),
}  # fmt: skip
POOLING = {"size": SIZES, "channels": CHANNELS, "kernel": range(1, 8), "stride": (1, 2, 3), "padding": (0, 1, 2, 3), "dilation": (1, 2), "ceil_mode": (False, True), "layout": LAYOUTS, "images": (1, 2, 3, 7, 8)}
LENGTHS = (*range(1, 41), *range(47, 50), *range(63, 67), 96, *range(127, 130), 200, *range(255, 258), 400, *range(511, 514))
PRODUCT = {"rows": LENGTHS, "terms": LENGTHS, "columns": LENGTHS, "a": ("plain", "turned"), "b": ("plain", "turned"), "batch": (1, 2, 3, 7, 8)}

# filters "=": as many as channels, whatever these are
_CONVOLUTIONS = (
    dict(channels=16, filters=16, size=14, kernel=3, stride=1, padding=1, dilation=1, groups="1"),
    dict(channels=3, filters=32, size=32, kernel=3, stride=1, padding=1, dilation=1, groups="1"),
    dict(channels=64, filters=64, size=8, kernel=3, stride=1, padding=1, dilation=1, groups="1"),
    dict(channels=1, filters=6, size=28, kernel=5, stride=1, padding=2, dilation=1, groups="1"),
    dict(channels=32, filters=16, size=20, kernel=1, stride=1, padding=0, dilation=1, groups="1"),
    dict(channels=8, filters=12, size=17, kernel=3, stride=2, padding=1, dilation=1, groups="1"),
    dict(channels=32, filters="=", size=16, kernel=3, stride=1, padding=1, dilation=1, groups="C"),
    dict(channels=24, filters="=", size=12, kernel=3, stride=1, padding=1, dilation=1, groups="2"),
)
_POOLINGS = (
    dict(channels=16, size=14, kernel=2, stride=2, padding=0, dilation=1, ceil_mode=False),
    dict(channels=32, size=31, kernel=3, stride=2, padding=1, dilation=1, ceil_mode=False),
    dict(channels=3, size=40, kernel=3, stride=1, padding=0, dilation=1, ceil_mode=False),
)
_PRODUCTS = (dict(rows=32, terms=256, columns=64), dict(rows=1, terms=512, columns=128), dict(rows=128, terms=10, columns=400), dict(rows=8, terms=64, columns=10))


def _everywhere(bases, dimensions: dict, options: tuple[str, ...]) -> list[dict]:
    """The bases with the first and the last value of each option."""
    found = list(bases)
    for name in options:
        found = [dict(base, **{name: value}) for base in found for value in (dimensions[name][0], dimensions[name][-1])]
    return found


@dataclass(frozen=True)
class Family:
    """Kernels that are walked over the same shapes. make(kernel, shape, numbers): the call, or None if there is no such call."""

    dimensions: dict
    bases: list[dict]
    make: Callable[[str, dict, Callable], Work | None]


class Numbers:
    """Normal numbers without waiting for them: pieces of one pool, each beginning elsewhere."""

    def __init__(self, seed: int = 0, count: int = 1 << 22):
        self.pool, self.at = np.random.default_rng(seed).standard_normal(count).astype(np.float32), 0

    def __call__(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        start = self.at = (self.at + 7919) % self.pool.size
        return np.resize(self.pool[start:], shape) if count > self.pool.size - start else self.pool[start : start + count].reshape(shape)


def _valid(kind, *arguments):
    try:
        return dict(kind(*arguments))
    except ValueError:
        return None


def convolution(kernel: str, shape: dict, numbers: Callable) -> Work | None:
    c = shape["channels"]
    k = c if shape["filters"] == "=" else shape["filters"]
    text = shape["groups"]
    groups = c // 2 if text == "C/2" else c if text == "C" else int(text)
    named = text.isdigit() and 1 < groups and c <= 2 * groups or text == "C/2" and groups < 2  # the same groups by another name
    if named or groups < 1 or c % groups or k % groups:
        return None
    x_shape, weight_shape = in_layout(shape["images"], c, shape["size"], shape["size"], shape["layout"]), (k, c // groups, shape["kernel"], shape["kernel"])
    window = _valid(Window, x_shape, weight_shape, shape["stride"], shape["padding"], shape["dilation"], groups, shape["layout"])
    if window is None:
        return None
    x, weight = numbers(*x_shape), numbers(*weight_shape)
    forward = Work("conv2d", "", (x, weight, numbers(k)), window)
    ((y_shape, _),) = forward.spec.outputs
    if kernel == "conv2d":
        return forward
    dy = numbers(*y_shape)
    return Work(kernel, "", (dy, weight), dict(window, x_shape=x_shape)) if kernel == "conv2d_dx" else Work(kernel, "", (dy, x), dict(window, weight_shape=weight_shape))


def pooling(kernel: str, shape: dict, numbers: Callable) -> Work | None:
    average, name = kernel.startswith("avg"), kernel.removesuffix("_dx")
    if average and shape["dilation"] > 1:
        return None
    x_shape = in_layout(shape["images"], shape["channels"], shape["size"], shape["size"], shape["layout"])
    window = _valid(PoolWindow, x_shape, shape["kernel"], shape["stride"], shape["padding"], shape["ceil_mode"], shape["layout"], name, None if average else shape["dilation"])
    if window is None or 2 * shape["padding"] > shape["kernel"]:
        return None
    forward = Work(name, "", (numbers(*x_shape),), dict(window, count_include_pad=True) if average else window)
    if kernel == name:
        return forward
    dy = numbers(*forward.spec.outputs[0][0])
    if average:
        return Work(kernel, "", (dy,), dict(forward.parameters, x_shape=x_shape))
    _, argmax = oracle.reference.max_pool2d(*forward.arrays, **window)
    return Work(kernel, "", (dy, argmax.value.astype(np.int32)), dict(x_shape=x_shape, layout=shape["layout"]))


def product(kernel: str, shape: dict, numbers: Callable) -> Work | None:
    def matrix(order: str, rows: int, columns: int):
        return numbers(shape["batch"], rows, columns) if order == "plain" else numbers(shape["batch"], columns, rows).swapaxes(1, 2)

    return Work(kernel, "", (matrix(shape["a"], shape["rows"], shape["terms"]), matrix(shape["b"], shape["terms"], shape["columns"])), {})


_CONVOLVED = Family(CONVOLUTION, _everywhere(_CONVOLUTIONS, CONVOLUTION, ("layout", "images")), convolution)
_POOLED = Family(POOLING, _everywhere(_POOLINGS, POOLING, ("layout", "images")), pooling)
FAMILIES = {
    "conv2d": _CONVOLVED,
    "conv2d_dx": _CONVOLVED,
    "conv2d_dw": _CONVOLVED,
    "matmul": Family(PRODUCT, _everywhere(_PRODUCTS, PRODUCT, ("a", "b", "batch")), product),
    "max_pool2d": _POOLED,
    "max_pool2d_dx": _POOLED,
    "avg_pool2d": _POOLED,
    "avg_pool2d_dx": _POOLED,
}


def walks(family: Family, base: dict) -> Iterator[tuple[str, list[dict]]]:
    """Each dimension, and the base's shapes along it."""
    for name, values in family.dimensions.items():
        if base.get(name) == "=":
            continue
        yield name, [dict(base, **{name: value}) for value in values]


def key_of(shape: dict) -> tuple:
    return tuple(sorted(shape.items()))


@dataclass(frozen=True)
class Point:
    """One shape that was timed. least: seconds that it must take (roofline.py). verdict: the oracle's; without one that is true
    there are no seconds."""

    shape: dict
    least: float
    verdict: str
    seconds: float | None


@dataclass(frozen=True)
class Pair:
    """Two neighbours along `dimension`; `slow` takes `excess` times what `fast` lets expect."""

    kernel: str
    dimension: str
    fast: Point
    slow: Point

    @property
    def excess(self) -> float:
        return excess(self.fast, self.slow)


def excess(one: Point, other: Point) -> float:
    """The other's time beside what the one lets expect of it; see the top of this file."""
    expected = max(one.seconds * other.least / one.least, min(one.seconds, SHORT))
    return other.seconds / expected


class Sweep:
    """All walks of one kernel's default variant on the CPU. points: every shape once, though many walks meet it."""

    def __init__(self, kernel: str, roof: Roofline, family: Family | None = None):
        self.kernel, self.roof, self.family, self.numbers = kernel, roof, family or FAMILIES[kernel], Numbers()
        self.implementation = find(kernel, "cpu")
        self.points: dict[tuple, Point | None] = {}
        self.pairs: list[Pair] = []

    def bases(self) -> list[dict]:
        return self.family.bases

    def walk(self, base: dict) -> None:
        for dimension, shapes in walks(self.family, base):
            before = None
            for shape in shapes:
                point = self.point(shape)
                if point is None:
                    continue
                if before is not None and before.seconds and point.seconds:
                    fast, slow = sorted((before, point), key=lambda p: excess(p, point if p is before else before), reverse=True)
                    self.pairs.append(Pair(self.kernel, dimension, fast, slow))
                before = point

    def point(self, shape: dict) -> Point | None:
        """The shape, proved and timed; None if there is no such call."""
        key = key_of(shape)
        if key not in self.points:
            self.points[key] = self._measured(shape)
        return self.points[key]

    def _measured(self, shape: dict) -> Point | None:
        work = self.family.make(self.kernel, shape, self.numbers)
        if work is None:
            return None
        verdict = prove(work, self.implementation)
        seconds = quickly(call(work, self.implementation)) if verdict else None
        return Point(shape, self.roof.least(work.spec.flops, work.moved), str(verdict.band), seconds)

    @property
    def timed(self) -> int:
        return sum(point is not None and point.seconds is not None for point in self.points.values())

    @property
    def wrong(self) -> list[Point]:
        return [point for point in self.points.values() if point is not None and point.seconds is None]

    def worst(self, most: int, *, rounds: int = 5, block_s: float = 0.02, suspect: float = SUSPECT) -> list[Pair]:
        """The pairs with the largest excess, the worst first, each once; those that are suspect timed anew, in turns."""
        chosen = {}
        for pair in sorted(self.pairs, key=lambda pair: -pair.excess):
            chosen.setdefault(frozenset((key_of(pair.fast.shape), key_of(pair.slow.shape))), pair)
        ranked = list(chosen.values())
        again = [self._again(pair, rounds, block_s) for pair in ranked if pair.excess > suspect]
        return sorted([*again, *ranked[len(again) :][:most]], key=lambda pair: -pair.excess)[: max(most, sum(pair.excess > CLIFF for pair in again))]

    def _again(self, pair: Pair, rounds: int, block_s: float) -> Pair:
        calls = {name: call(self.family.make(self.kernel, point.shape, self.numbers), self.implementation) for name, point in (("fast", pair.fast), ("slow", pair.slow))}
        times = in_turns(calls, rounds=rounds, block_s=block_s)
        fast, slow = (Point(p.shape, p.least, p.verdict, times[name].median) for name, p in (("fast", pair.fast), ("slow", pair.slow)))
        return Pair(pair.kernel, pair.dimension, fast, slow) if excess(fast, slow) >= excess(slow, fast) else Pair(pair.kernel, pair.dimension, slow, fast)


def as_data(sweep: Sweep, worst: list[Pair]) -> dict:
    """Plain data, for --json."""

    def point(p: Point) -> dict:
        return {"shape": p.shape, "least_seconds": p.least, "seconds": p.seconds}

    pairs = [{"dimension": p.dimension, "times_as_long": p.excess, "fast": point(p.fast), "slow": point(p.slow)} for p in worst]
    wrong = [{"shape": p.shape, "verdict": p.verdict} for p in sweep.wrong]
    return {"kernel": sweep.kernel, "shapes": sweep.timed, "neighbours": len(sweep.pairs), "worst": pairs, "wrong": wrong}


def quickly(call: Callable[[], object], least: int = 3, most: int = 15, seconds: float = 0.002) -> float:
    """The least of a few samples: what others on the machine do only adds to it."""
    call()
    samples: list[float] = []
    while len(samples) < least or len(samples) < most and sum(samples) < seconds:
        samples.append(once(call))
    return min(samples)


def text_of(shape: dict, without: str = "") -> str:
    """16 channels, 14x14, kernel 3, ..."""
    words = {"size": lambda v: f"{v}x{v}", "layout": str, "ceil_mode": lambda v: "ceil_mode" if v else "", "a": lambda v: f"a {v}", "b": lambda v: f"b {v}"}
    numbered = {"images", "channels", "filters", "rows", "terms", "columns"}
    parts = []
    for name, value in shape.items():
        if name == without:
            continue
        if name in words:
            parts.append(words[name](value))
        elif name in numbered:
            parts.append("as many filters" if value == "=" else f"{value} {name if value != 1 else name[:-1]}")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(filter(None, parts))

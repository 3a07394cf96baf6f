"""Random windows over all that the contract allows, one for each seed, and what they are in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinynet.geometry import PoolWindow, Window, in_layout, nchw


@dataclass(frozen=True)
class Convolution:
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    bias: bool
    options: dict  # as a user gives them to F.conv2d

    @property
    def window(self) -> Window:
        return Window(self.x_shape, self.weight_shape, **self.options)

    def __str__(self) -> str:
        return f"x {self.x_shape} weight {self.weight_shape} {self.options}"


@dataclass(frozen=True)
class Pooling:
    x_shape: tuple[int, ...]
    options: dict  # as a user gives them to F.max_pool2d or F.avg_pool2d, kernel_size with them

    def __str__(self) -> str:
        return f"x {self.x_shape} {self.options}"

    def window(self) -> PoolWindow:
        options = {"stride": None, "padding": 0, "ceil_mode": False, "layout": "NCHW", "dilation": 1, **self.options}
        include = options.pop("count_include_pad", None)
        if include is None:
            return PoolWindow(self.x_shape, where="max_pool2d", **options)
        del options["dilation"]
        window = PoolWindow(self.x_shape, where="avg_pool2d", **options)
        window["count_include_pad"] = include
        return window


def _choose(rng, *values):
    return values[rng.integers(len(values))]


def _one_or_pair(rng, low: int, high: int):
    first, second = (int(v) for v in rng.integers(low, high + 1, 2))
    return _choose(rng, first, (first, second), (first, second))


def _padding(rng):
    four = tuple((int(a), int(b)) for a, b in rng.integers(0, 5, (2, 2)))
    return _choose(rng, "same", "valid", 0, _one_or_pair(rng, 0, 2), _one_or_pair(rng, 2, 5), four, four)


def _until_one_fits(rng, draw):
    while True:
        found = draw()
        try:
            found.window() if isinstance(found, Pooling) else found.window
        except ValueError as error:
            assert "does not fit" in str(error), error  # the only thing that may be wrong with it
        else:
            return found


def convolution(seed: int) -> Convolution:
    rng = np.random.default_rng([seed, 1])

    def draw():
        groups = _choose(rng, 1, 1, 2, 3, 5)
        within = _choose(rng, 1, 1, 2, 3)  # 1 with several groups is depthwise
        out = groups * _choose(rng, 1, 1, 2, 3, 5)
        n = _choose(rng, 0, 1, 1, 1, 2, 2, 3, 3)
        h, w = (int(v) for v in rng.integers(1, 10, 2))
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        layout = _choose(rng, "NCHW", "NHWC")
        options = dict(
            stride=_one_or_pair(rng, 1, 3), padding=_padding(rng), dilation=_choose(rng, 1, 1, _one_or_pair(rng, 1, 3)), groups=groups, layout=layout
        )
        return Convolution(in_layout(n, groups * within, h, w, layout), (out, within, *kernel), bool(rng.integers(2)), options)

    return _until_one_fits(rng, draw)


def pooling(seed: int, average: bool = False) -> Pooling:
    rng = np.random.default_rng([seed, 2])

    def draw():
        n, c = _choose(rng, 0, 1, 1, 2), int(rng.integers(1, 5))
        h, w = (int(v) for v in rng.integers(1, 11, 2))
        layout = _choose(rng, "NCHW", "NHWC")
        options = dict(kernel_size=_one_or_pair(rng, 1, 4), padding=_padding(rng), ceil_mode=bool(rng.integers(2)), layout=layout)
        if rng.integers(3):
            options["stride"] = _one_or_pair(rng, 1, 4)
        if average:
            options["count_include_pad"] = bool(rng.integers(2))
        else:
            options["dilation"] = _choose(rng, 1, 1, _one_or_pair(rng, 1, 3))
        return Pooling(in_layout(n, c, h, w, layout), options)

    return _until_one_fits(rng, draw)


def to_nchw(a: np.ndarray, layout: str) -> np.ndarray:
    return a if layout == "NCHW" else np.ascontiguousarray(a.transpose(0, 3, 1, 2))


def from_nchw(a: np.ndarray, layout: str) -> np.ndarray:
    return a if layout == "NCHW" else np.ascontiguousarray(a.transpose(0, 2, 3, 1))


def has_windows_in_the_padding_alone(pooling: Pooling) -> bool:
    window = pooling.window()
    sizes = nchw(pooling.x_shape, window["layout"])[2:]
    kernel, dilation = window["kernel_size"], window.get("dilation", (1, 1))
    return any(p[0] > (e - 1) * d or p[1] > (e - 1) * d + s - 1 for p, e, d, s, _ in zip(window["padding"], kernel, dilation, window["stride"], sizes))

"""Where windows fall: output sizes, padding and layouts. The only place with such arithmetic.

Notation, here and in every kernel: n image, c input channel, k output channel,
(i, j) a place in the output, (u, v) a place in the kernel (a *tap*), (h, w) a place
in the input. A window of kernel size e with dilation d reaches over d*(e-1)+1 rows.

Next on the walk: kernels/contract.py, which uses this to say what a kernel returns.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from numbers import Integral  # numpy's integers too: sizes are often computed from shapes

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]  # ((top, bottom), (left, right))

LAYOUTS = ("NCHW", "NHWC")


def is_int(value, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def pair(value, where: str, name: str, least: int = 1) -> Pair:
    """An int or a pair of ints as (rows, columns); each at least `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(is_int(v, least) for v in both):
        raise ValueError(f"{where}: {name} must be an int >= {least} or a pair of them (rows, columns); got {value!r}")
    return int(both[0]), int(both[1])


def axes_of(axis, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """`axis` (None for all, an int, or several) as axes counted from 0."""
    if axis is None:
        return tuple(range(len(shape)))
    wanted = axis if isinstance(axis, (tuple, list)) else (axis,)
    if not all(is_int(a, -len(shape)) and a < len(shape) for a in wanted) or len({a % len(shape) for a in wanted}) != len(wanted):
        some = f"from {-len(shape)} to {len(shape) - 1}" if shape else "None: x has no axes"
        raise ValueError(f"{where}: axis must be {some}, each named once (x is {tuple(shape)}); got {axis!r}")
    return tuple(a % len(shape) for a in wanted)


def check_one_axis(axis, shape: tuple[int, ...], where: str) -> None:
    if not is_int(axis, -len(shape)):
        raise ValueError(f"{where}: axis must be an int from {-len(shape)} to {len(shape) - 1} (x is {tuple(shape)}); got {axis!r}")
    axes_of(axis, shape, where)


def check_layout(layout: str, where: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f'{where}: layout must be "NCHW" or "NHWC"; got {layout!r}')


def nchw(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    """The shape of a batch of images as (images, channels, rows, columns), whatever its layout."""
    if layout == "NCHW":
        return shape
    n, h, w, c = shape
    return n, c, h, w


def in_layout(n: int, c: int, h: int, w: int, layout: str) -> tuple[int, int, int, int]:
    """The inverse of `nchw`."""
    return (n, c, h, w) if layout == "NCHW" else (n, h, w, c)


def check_images(shape: tuple[int, ...], layout: str, where: str, name: str = "x") -> None:
    check_layout(layout, where)
    if len(shape) != 4:
        axes = "images, channels, rows, columns" if layout == "NCHW" else "images, rows, columns, channels"
        raise ValueError(f"{where}: {name} must have 4 axes, {layout} ({axes}); got shape {tuple(shape)} (a single image needs an axis of length 1 in front)")
    if 0 in shape[1:]:
        raise ValueError(f"{where}: the images of {name} have no pixels or no channels (its shape is {tuple(shape)}, {layout}); only the batch may be empty")


def reach(kernel: int, dilation: int) -> int:
    """How many rows a window covers from its first tap to its last."""
    return dilation * (kernel - 1) + 1


def same(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """TensorFlow's SAME: ceil(size / stride) outputs; the odd row of padding goes to the bottom (right)."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + reach(kernel, dilation) - size, 0)
    return total // 2, total - total // 2


def pads(padding, where: str, sizes: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    """Every accepted form of `padding` as ((top, bottom), (left, right)).

    An int (all four sides), a pair (rows, columns), "same" (TensorFlow's rule),
    "valid" (none), or the four sides themselves.
    """
    if isinstance(padding, str):
        if padding == "same":
            top_bottom, left_right = (same(*axis) for axis in zip(sizes, kernel, stride, dilation))
            return top_bottom, left_right
        sides = (0, 0) if padding == "valid" else None
    else:
        sides = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    # from here on a pair, each of it an amount for both of its sides, or a pair of amounts
    sides = [tuple(p) if isinstance(p, (tuple, list)) else (p, p) for p in sides or ()]
    if len(sides) != 2 or not all(len(p) == 2 and is_int(p[0], 0) and is_int(p[1], 0) for p in sides):
        raise ValueError(f'{where}: padding must be an int >= 0, a pair (rows, columns), "same", "valid" or ((top, bottom), (left, right)); got {padding!r}')
    (top, bottom), (left, right) = sides
    return (int(top), int(bottom)), (int(left), int(right))


def output_size(size: int, kernel: int, stride: int, dilation: int, pad: Pair, ceil_mode: bool = False) -> int:
    """How many windows fit along one axis; 0 or less if not even one does.

    floor((size + pads - reach) / stride) + 1; with `ceil_mode` rows that are left over get one
    more window, an incomplete one, if it starts inside the image or its leading pad (PyTorch's rule).
    """
    room = size + pad[0] + pad[1] - reach(kernel, dilation)
    if not ceil_mode:
        return room // stride + 1
    complete, rest = divmod(room, stride)
    starts_inside = (complete + 1) * stride < size + pad[0]
    return complete + 1 + (rest > 0 and starts_inside)


def output_sizes(where: str, sizes: Pair, kernel: Pair, stride: Pair, dilation: Pair, padding: Pads, ceil_mode: bool = False) -> Pair:
    """Rows and columns of the output; a clear error where no window fits."""
    found = []
    for axis, size, e, s, d, p in zip(("rows", "columns"), sizes, kernel, stride, dilation, padding):
        # An incomplete window counts only beside a complete one: ceil_mode never rescues a kernel that can't fit.
        outputs = output_size(size, e, s, d, p, ceil_mode) if size + sum(p) >= reach(e, d) else 0
        if outputs < 1:
            raise ValueError(
                f"{where}: a window of {reach(e, d)} {axis} (kernel {e}, dilation {d}) does not fit into "
                f"{size + sum(p)} padded {axis} ({size} + {p[0]} + {p[1]}); use a smaller kernel or more padding"
            )
        found.append(outputs)
    return found[0], found[1]


def taps(kernel: Pair, stride: Pair, dilation: Pair, outputs: Pair) -> Iterator[tuple[int, int, slice, slice]]:
    """For every tap (u, v): the rows and columns of the padded image that it meets, one for each output."""
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            rows, columns = (
                slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in zip((u, v), dilation, stride, outputs)
            )
            yield u, v, rows, columns


class Window(dict):
    """The checked geometry of one convolution: its keys are the parameters of the convolution kernels.

    `stride` and `dilation` are pairs, `padding` has four sides; `layout` and `groups` as given.
    """

    def __init__(self, x_shape, weight_shape, stride, padding, dilation, groups, layout, where="conv2d"):
        check_images(x_shape, layout, where)
        if len(weight_shape) != 4:
            raise ValueError(f"{where}: weight must have 4 axes (out, in/groups, kernel rows, kernel columns); got shape {tuple(weight_shape)}")
        stride, dilation = pair(stride, where, "stride"), pair(dilation, where, "dilation")
        _, channels, *sizes = nchw(x_shape, layout)
        out, wanted, *kernel = weight_shape
        if not is_int(groups, 1):
            raise ValueError(f"{where}: groups must be an int >= 1; got {groups!r}")
        if min(weight_shape) < 1:
            raise ValueError(f"{where}: no axis of weight may be empty; got shape {tuple(weight_shape)}")
        if channels != wanted * groups:
            raise ValueError(
                f"{where}: weight has {wanted * groups} input channels{f' ({groups} groups of {wanted})' if groups > 1 else ''}, "
                f"x has {channels} (x is {tuple(x_shape)}, {layout}); {_channel_hint(x_shape, layout, wanted * groups)}"
            )
        if out % groups:
            raise ValueError(f"{where}: {out} output channels can't be split into {groups} groups; use a multiple of groups")
        padding = pads(padding, where, tuple(sizes), tuple(kernel), stride, dilation)
        output_sizes(where, tuple(sizes), tuple(kernel), stride, dilation, padding)
        super().__init__(stride=stride, padding=padding, dilation=dilation, groups=int(groups), layout=layout)


def _channel_hint(x_shape, layout: str, wanted: int) -> str:
    other = "NHWC" if layout == "NCHW" else "NCHW"
    if nchw(x_shape, other)[1] == wanted:
        return f'x looks like {other}: pass layout="{other}" or transpose it'
    return "pass x with that many channels, or a weight made for them"


class PoolWindow(dict):
    """The checked geometry of one pooling: its keys are kernel_size, stride, padding, ceil_mode, layout
    and, for max-pooling alone, dilation."""

    def __init__(self, x_shape, kernel_size, stride, padding, ceil_mode, layout, where, dilation=None):
        check_images(x_shape, layout, where)
        kernel = pair(kernel_size, where, "kernel_size")
        stride = kernel if stride is None else pair(stride, where, "stride")
        spread = (1, 1) if dilation is None else pair(dilation, where, "dilation")
        sizes = nchw(x_shape, layout)[2:]
        padding = pads(padding, where, sizes, kernel, stride, spread)
        output_sizes(where, sizes, kernel, stride, spread, padding, ceil_mode)
        super().__init__(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=bool(ceil_mode), layout=layout)
        if dilation is not None:
            self["dilation"] = spread


_checked: dict[str | bytes, dict] = {}


def checked(kind, *arguments) -> dict:
    """kind(*arguments) as a dict of one's own, kind being Window or PoolWindow. What was checked once is remembered: the checks
    take longer than a small kernel. By their text, since 1, True and 1.0 are equal and not the same."""
    try:
        key = marshal.dumps((kind.__name__, arguments), 2)  # takes a third of repr's time; 2: a format without references
    except ValueError:  # numpy's numbers
        key = repr((kind.__name__, arguments))
    found = _checked.get(key)
    if found is None:
        found = kind(*arguments)
        if len(_checked) >= 1024:
            _checked.clear()
        _checked[key] = found
    return dict(found)


def halving(window: PoolWindow, sizes: Pair, outputs: Pair) -> bool:
    """Whether windows of 2 x 2 touch each other, and none reaches over the image's edge."""
    whole = all(2 * o <= s for o, s in zip(outputs, sizes)) and not any(map(any, window["padding"]))
    return whole and window["kernel_size"] == window["stride"] == (2, 2) and window.get("dilation", (1, 1)) == (1, 1)

"""What a compiled network runs as one kernel: calls of a graph become units.

    conv2d  [+ bias_add]  [+ the other branch of a sum]  [+ relu]  [+ max_pool2d of 2 x 2]
    depthwise, im2col  [+ bias_add]  [+ the other branch of a sum]  [+ relu]
    linear  [+ relu]          add  [+ relu]

A convolution is depthwise where each channel has a filter of its own, and im2col where its weights are large and serve few pixels.

The rest are units by themselves. A result that someone else reads too is never fused away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

from tinynet.geometry import PoolWindow, Window, checked, halving, nchw
from tinynet.kernels.cpu.target import TARGET
from tinynet.kernels.cpu.tiles_winograd import best_size
from tinynet.kernels.graph import Call, Graph, Unsupported

HEAVY = 384 << 10  # bytes of weights: more don't stay in the second cache from one image to the next
# Pixels of all images together, for which copies of such weights cost more than they bring: a copy in the order of tiles, and in training
# another for the images' gradient and sums of the weights' own. (Winograd's algorithm saves more than those cost. The first was measured on Zen 4 and Zen 3.)
FEW_PIXELS, FEW_IN_TRAINING = 48 if TARGET.registers >= 32 else 32, 128


@dataclass
class Unit:
    kind: str
    calls: list[Call]
    x: int
    output: int
    weight: int | None = None
    bias: int | None = None
    other: int | None = None  # what is added to the result before ReLU; a loss' target
    relu: bool = False
    pool: bool = False  # 2 x 2 windows that touch each other
    window: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.kind if self.kind != "im2col" else "conv2d", "+ bias" if self.bias is not None else "", "+ add" if self.other is not None and self.weight is not None else ""]
        return " ".join(filter(None, [*words, "+ relu" if self.relu and self.kind != "relu" else "", "+ max_pool2d" if self.pool else ""]))


CONVOLUTIONS = "conv2d", "depthwise", "im2col"  # units of a convolution
FUSED = {
    "conv2d", "bias_add", "max_pool2d", "avg_pool2d", "relu", "add", "reshape", "flatten",
    "linear", "softmax", "log_softmax", "log", "cross_entropy", "nll_loss",
}  # fmt: skip


def winograd_size(weights: tuple[int, ...], window: dict, rows: int, columns: int) -> int:
    """The tiles' size for a convolution of so many outputs, if it is worth Winograd's transforms, else 0. Those of its results cost the
    same however many channels their sums have: three pay for them (fewer were not tried)."""
    k, c, *kernel = weights
    worth = kernel == [3, 3] and (*window["stride"], *window["dilation"], window["groups"]) == (1,) * 5 and k >= 16 and c >= 3
    return best_size(rows, columns) if worth else 0


class Fusing:
    """Units of a graph, in an order in which they can run. Raises Unsupported for the first call that has no kernel: the calls
    before it are a graph that has."""

    def __init__(self, graph: Graph, math: str = "strict"):
        self.graph, self.math = graph, math
        self.uses = Counter(v for call in graph.calls for v in call.inputs if v is not None) + Counter(graph.results)
        self.made: dict[int, Unit] = {}  # value -> the unit whose result it is
        self.layouts: dict[int, str] = {}  # of images
        self.units: list[Unit] = []
        self.weights: set[int] = set()  # that layers so far read
        self.images = next((graph.shapes[v][0] for v in graph.outside if v in graph.batched and graph.shapes[v]), 0)
        for call in reversed(graph.calls):  # what reads images says how their axes lie; ReLU and sums pass it on
            layout = call.parameters.get("layout") or self.layouts.get(call.output, "NCHW")
            for v in call.inputs[: 2 if call.op == "add" else 1]:
                if v is not None and len(graph.shapes[v]) == 4:
                    self.layouts.setdefault(v, layout)
        for call in graph.calls:
            self.check(call)
            getattr(self, call.op)(call)

    def check(self, call: Call) -> None:
        if call.op not in FUSED:
            raise Unsupported(call, "there is no fused kernel for it")
        if (call.inputs[0] not in self.made and call.inputs[0] not in self.graph.batched):
            raise Unsupported(call, "its first input is no batch of images or rows")
        first = self.graph.shapes[call.inputs[0]]
        if not first or first[0] != self.images or prod(first) == 0:
            raise Unsupported(call, f"its input {first} is no batch of {self.images or 'images or rows'}")

    def alone(self, value: int) -> bool:
        """Whether the one call at hand is all that reads the value."""
        return self.uses[value] == 1

    def start(self, kind: str, call: Call, x: int, **options) -> Unit:
        unit = Unit(kind, [call], x, call.output, **options)
        self.units.append(unit)
        self.made[call.output] = unit
        return unit

    def extend(self, unit: Unit, call: Call) -> None:
        """The call is done by the unit too, which runs where the call stood: what it reads is there by then."""
        self.units.remove(unit)
        self.units.append(unit)
        unit.calls.append(call)
        unit.output = call.output
        self.made[call.output] = unit

    def fits(self, call: Call, value: int, layout: str) -> None:
        if self.layouts.setdefault(value, layout) != layout:
            raise Unsupported(call, f"it reads its input as {layout}, others as {self.layouts[value]}")

    def outer(self, call: Call, *values) -> None:
        for v in filter(lambda v: v is not None, values):
            if v not in self.graph.outside or v in self.graph.batched:
                raise Unsupported(call, "its weights are computed by other ops")
            if v in self.graph.gradients and v in self.weights:
                raise Unsupported(call, "its weights are another layer's too, and gradients are not added up between layers")
            self.weights.add(v)

    # --- images ---------------------------------------------------------------------------------------------

    def conv2d(self, call: Call) -> None:
        x, weight, bias = call.inputs
        self.outer(call, weight, bias)
        p, shape = call.parameters, self.graph.shapes[weight]
        window = checked(Window, self.graph.shapes[x], shape, p["stride"], p["padding"], p["dilation"], p["groups"], p["layout"])
        self.fits(call, x, p["layout"])
        self.layouts[call.output] = p["layout"]
        groups = window["groups"]
        channels = nchw(self.graph.shapes[x], p["layout"])[1]
        kind = "depthwise" if groups > 1 and groups == channels == shape[0] else "conv2d"
        if kind == "conv2d" and groups == 1 and self.few_pixels(call, window):
            kind = "im2col"
        if kind == "conv2d" and groups > 1 and min(shape[0] // groups, channels // groups) < 4:
            raise Unsupported(call, "groups of fewer than 4 channels would leave a vector's lanes empty")
        self.start(kind, call, x, weight=weight, bias=bias, window=window)

    def few_pixels(self, call: Call, window: dict) -> bool:
        """Whether a convolution's weights are large and all pixels of all images few: then they are read where they lie, as a dense layer's."""
        weight = call.inputs[1]
        images, _, rows, columns = nchw(self.graph.shapes[call.output], call.parameters["layout"])
        winograd = self.math == "winograd" and winograd_size(self.graph.shapes[weight], window, rows, columns) > 0
        most = FEW_IN_TRAINING if self.graph.gradients and not winograd else FEW_PIXELS
        return self.graph.bytes(weight) > HEAVY and images * rows * columns <= most

    def bias_add(self, call: Call) -> None:
        x, bias = call.inputs
        unit = self.made.get(x)
        if unit is None or unit.kind not in CONVOLUTIONS or unit.bias is not None or len(unit.calls) > 1 or not self.alone(x) or self.layouts[x] != call.parameters["layout"]:
            raise Unsupported(call, "it does not follow a convolution without bias")
        self.outer(call, bias)
        self.layouts[call.output] = self.layouts[x]
        unit.bias = bias
        self.extend(unit, call)

    def max_pool2d(self, call: Call) -> None:
        x, p = call.inputs[0], call.parameters
        window = checked(PoolWindow, self.graph.shapes[x], p["kernel_size"], p["stride"], p["padding"], p["ceil_mode"], p["layout"], "max_pool2d", p["dilation"])
        self.fits(call, x, p["layout"])
        self.layouts[call.output] = p["layout"]
        unit = self.made.get(x)
        sizes, outputs = (nchw(self.graph.shapes[v], p["layout"])[2:] for v in (x, call.output))
        if halving(window, sizes, outputs) and unit is not None and unit.kind == "conv2d" and not unit.pool and unit.other is None and self.alone(x):
            unit.pool = True
            self.extend(unit, call)
        else:
            self.start("max_pool2d", call, x, window=window)

    def avg_pool2d(self, call: Call) -> None:
        x, p = call.inputs[0], call.parameters
        window = checked(PoolWindow, self.graph.shapes[x], p["kernel_size"], p["stride"], p["padding"], p["ceil_mode"], p["layout"], "avg_pool2d")
        self.fits(call, x, p["layout"])
        self.layouts[call.output] = p["layout"]
        self.start("avg_pool2d", call, x, window={**window, "dilation": (1, 1), "count_include_pad": bool(p["count_include_pad"])})

    # --- images or rows ------------------------------------------------------------------------------------------

    def relu(self, call: Call) -> None:
        x = call.inputs[0]
        unit = self.made.get(x)
        if x in self.layouts:
            self.layouts[call.output] = self.layouts[x]
        if unit is not None and unit.kind in (*CONVOLUTIONS, "linear", "add") and not unit.relu and self.alone(x):
            unit.relu = True
            self.extend(unit, call)
        else:
            self.start("relu", call, x, relu=True)

    def add(self, call: Call) -> None:
        x, y = call.inputs
        if x is None or y is None or self.graph.shapes[x] != self.graph.shapes[y]:
            raise Unsupported(call, "its operands have different shapes, or one is a number")
        if any(v not in self.made and v not in self.graph.batched for v in (x, y)):
            raise Unsupported(call, "an operand is no batch of images or rows")
        layouts = {self.layouts[v] for v in (x, y) if v in self.layouts}
        if len(layouts) > 1:
            raise Unsupported(call, "its operands are in different layouts")
        for v in (x, y, call.output):
            if layouts:
                self.layouts[v] = next(iter(layouts))
        for value, other in ((x, y), (y, x)):
            unit = self.made.get(value)
            if unit is not None and unit.kind in CONVOLUTIONS and not (unit.relu or unit.pool) and unit.other is None and self.alone(value) and x != y:
                unit.other = other
                self.extend(unit, call)
                return
        self.start("add", call, x, other=y)

    def reshape(self, call: Call) -> None:
        x = call.inputs[0]
        before, after = self.graph.shapes[x], self.graph.shapes[call.output]
        if len(before) not in (2, 4) or after != (before[0], prod(before[1:])):
            raise Unsupported(call, f"only an image is made a row; this makes {after} of {before}")
        self.start("flatten", call, x)

    flatten = reshape

    # --- rows ----------------------------------------------------------------------------------------------------

    def linear(self, call: Call) -> None:
        x, weight, bias = call.inputs
        self.outer(call, weight, bias)
        if len(self.graph.shapes[x]) != 2:
            raise Unsupported(call, "its input is not (rows, features)")
        if self.graph.shapes[weight][1] < 4:
            raise Unsupported(call, "fewer than 4 features would leave a vector's lanes empty")
        self.start("linear", call, x, weight=weight, bias=bias)

    def rowwise(self, call: Call) -> None:
        x = call.inputs[0]
        if len(self.graph.shapes[x]) != 2 or call.parameters.get("axis", 1) not in (-1, 1):
            raise Unsupported(call, "it is not along the rows of (rows, classes)")
        self.start(call.op, call, x)

    softmax = log_softmax = rowwise

    def log(self, call: Call) -> None:
        self.rowwise(call)

    def loss(self, call: Call) -> None:
        x, target = call.inputs
        if len(self.graph.shapes[x]) != 2 or len(self.graph.shapes[target]) != 1 or target not in self.graph.batched:
            raise Unsupported(call, "its target is not one class for each row")
        if call.parameters["reduction"] not in ("mean", "sum"):
            raise Unsupported(call, "losses that are not reduced to one number are left to single kernels")
        if any(unit.kind in ("cross_entropy", "nll_loss") for unit in self.units):
            raise Unsupported(call, "a program has one loss")
        self.start(call.op, call, x, other=target)

    cross_entropy = nll_loss = loss

"""Runs of ops that one kernel does, in a function that is captured for a GPU (captured.py):

    conv2d  [bias_add]  relu  max_pool2d of 2 x 2        also with pooling before relu: that is the same

Only tinynet's own ops are part of one: an op of somebody else may have the same name and do something else.
Its result has the graph behind it that the ops would have left: max-pooling's node, whose argmax knows what ReLU stopped, and
the convolution's. So backward runs the kernels that it always runs, on a gradient of the convolution's result; that
result itself is never computed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tinynet.deferred import blank
from tinynet.dispatch import kernels
from tinynet.geometry import PoolWindow, Window, halving, nchw
from tinynet.inputs import prepare
from tinynet.kernels.contract import CONTRACTS
from tinynet.mode import is_recording
from tinynet.split import Single
from tinynet.tape import Node
from tinynet.tensor import Tensor


@dataclass
class ConvPool:
    """The calls of such a run, in their order; each is read by the next one alone."""

    calls: list[Single]

    def __call__(self, values: dict) -> None:
        convolution = self.calls[0]
        x, weight, bias = convolution.read(values)
        for call in self.calls[1:]:
            if call.op.name == "bias_add":
                bias = call.read(values)[1]
        op, parameters = convolution.op, convolution.call.parameters
        arrays, tensors, device, needed = prepare(op, (x, weight, bias))
        k = kernels(device)
        window = Window(*(a.shape for a in arrays[:2]), *(parameters[name] for name in ("stride", "padding", "dilation", "groups", "layout")))
        with k.here:
            y, argmax = k.conv2d_relu_max_pool2d(*arrays, **window)
        result = Tensor(y, False, device)
        if needed and is_recording():
            ((shape, dtype),) = CONTRACTS["conv2d"].spec(*arrays, **window).outputs
            z = Tensor(blank(shape, dtype), False, device)
            z.made_by(Node(op, k, tensors, arrays, None, parameters, {"window": window, "x_shape": arrays[0].shape, "weight_shape": arrays[1].shape}))
            pooling = next(call.op for call in self.calls if call.op.name == "max_pool2d")
            result.made_by(Node(pooling, k, [z], [z.data], y, {"layout": parameters["layout"]}, {"argmax": argmax, "x_shape": shape}))
        values[self.calls[-1].call.output] = result


def fused(calls: list[Single], shapes: dict[int, tuple[int, ...]], kept: set[int]) -> list:
    """The calls, runs of them as one. shapes: of the values. kept: those that somebody reads when all calls are done."""
    readers = Counter(v for single in calls for v in single.call.inputs if v is not None)
    next_of = {v: single for single in calls for v in single.call.inputs if v is not None and readers[v] == 1 and v not in kept}
    found, done = {}, set()
    for single in calls:
        if single.op.ours and single.op.name == "conv2d":
            run = _run_from(single, next_of, shapes)
            if run:
                found[id(run[-1])] = ConvPool(run)
                done.update(map(id, run))
    return [found.get(id(single), single) for single in calls if id(single) in found or id(single) not in done]


def _run_from(single: Single, next_of: dict, shapes: dict) -> list[Single]:
    """The run that a convolution begins; nothing if there is none."""
    run, wanted, layout = [single], {"relu", "max_pool2d"}, single.call.parameters["layout"]
    while wanted:
        after = next_of.get(run[-1].call.output)
        name = "" if after is None or not after.op.ours or after.call.inputs[0] != run[-1].call.output else after.op.name
        biased = name == "bias_add" and len(run) == 1 and single.call.inputs[2] is None and after.call.parameters["layout"] == layout
        if name not in wanted and not biased or name == "max_pool2d" and not _halves(after, layout, shapes):
            return []
        run.append(after)
        wanted.discard(name)
    return run


def _halves(pooling: Single, layout: str, shapes: dict) -> bool:
    p, before, after = pooling.call.parameters, shapes[pooling.call.inputs[0]], shapes[pooling.call.output]
    window = PoolWindow(before, p["kernel_size"], p["stride"], p["padding"], p["ceil_mode"], p["layout"], "max_pool2d", p["dilation"])
    return p["layout"] == layout and halving(window, nchw(before, layout)[2:], nchw(after, layout)[2:])

"""Every variant of every CPU kernel on the layers of networks (zoo.py): proved right on that very shape, then timed.

The table that comes out is the kernels' story in numbers: seconds, operations a second, and the share of what the
machine can do at most (roofline.py). programs.py shows the kernels of compiled programs in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tinynet import oracle
from tinynet.bench.roofline import Roofline
from tinynet.bench.timing import in_turns
from tinynet.bench.zoo import NETWORKS, AvgPool, Conv, Dense, MaxPool, ReLU, Step
from tinynet.dispatch import find, variants
from tinynet.geometry import PoolWindow, Window
from tinynet.kernels.contract import CONTRACTS, Implementation


@dataclass(frozen=True)
class Work:
    """One call of a kernel: its name, what it is part of, its arrays and parameters."""

    name: str
    layer: str
    arrays: tuple = field(repr=False)
    parameters: dict = field(repr=False)

    @property
    def spec(self):
        return CONTRACTS[self.name].spec(*self.arrays, **self.parameters)

    @property
    def moved(self) -> int:
        return CONTRACTS[self.name].least_bytes(self.arrays, self.spec)


@dataclass(frozen=True)
class Row:
    """A variant's time on one piece of work. verdict: the oracle's, on this shape; no time without one that is true.
    share: of the roofline; above 1 (and the noise) something was not computed, unless the algorithm multiplies less than the
    definition does (`fewer`: those are judged by norm)."""

    work: Work
    variant: str
    verdict: str
    seconds: float | None
    low: float | None
    high: float | None
    share: float | None
    fewer: bool = False

    @property
    def impossible(self) -> bool:
        return self.share is not None and self.share > 1.1 and not self.fewer

    @property
    def gflops(self) -> float | None:
        return self.work.spec.flops / self.seconds / 1e9 if self.seconds else None


def layers(network: str, images: int, rng) -> Iterator[Work]:
    """Every kernel call of a forward and backward pass, layer by layer, in NCHW."""

    def reals(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    steps = list(NETWORKS[network].steps())
    for place, step in enumerate(steps):
        layer = step.layer
        if isinstance(layer, ReLU):
            x, dy = reals(images, *step.before), reals(images, *step.after)
            yield Work("relu_dx", f"relu {' x '.join(map(str, step.before))}", (dy, x), {})
        elif isinstance(layer, Conv):
            (channels, rows, columns), out = step.before, layer.out_channels
            x, weight, bias = reals(images, *step.before), reals(*step.parameters[f"{step.name}.weight"]), reals(out)
            window = dict(Window(x.shape, weight.shape, layer.stride, layer.padding, 1, layer.groups, "NCHW"))
            forward = Work("conv2d", f"{step.name} {channels} to {out}, {rows}x{columns}", (x, weight, bias), window)
            dy = reals(images, *step.after)
            yield forward
            yield Work("conv2d_dx", forward.layer, (dy, weight), dict(window, x_shape=x.shape))
            yield Work("conv2d_dw", forward.layer, (dy, x), dict(window, weight_shape=weight.shape))
            yield Work("conv2d_db", forward.layer, (dy,), dict(layout="NCHW"))
            if _halved([after.layer for after in steps[place + 1 : place + 3]]):
                yield Work("conv2d_relu_max_pool2d", forward.layer, (x, weight, bias), window)
        elif isinstance(layer, MaxPool):
            x, dy = np.maximum(reals(images, *step.before), 0), reals(images, *step.after)
            window = dict(PoolWindow(x.shape, layer.size, layer.stride, 0, False, "NCHW", "max_pool2d", 1))
            forward = Work("max_pool2d", _pooled(step), (x,), window)
            yield forward
            _, argmax = oracle.reference.max_pool2d(x, **window)
            yield Work("max_pool2d_dx", forward.layer, (dy, argmax.value.astype(np.int32)), dict(x_shape=x.shape, layout="NCHW"))
        elif isinstance(layer, AvgPool):
            x, dy = reals(images, *step.before), reals(images, *step.after)
            window = dict(PoolWindow(x.shape, layer.size, None, 0, False, "NCHW", "avg_pool2d"), count_include_pad=True)
            yield Work("avg_pool2d", _pooled(step), (x,), window)
            yield Work("avg_pool2d_dx", _pooled(step), (dy,), dict(window, x_shape=x.shape))
        elif isinstance(layer, Dense):
            inputs, outputs = step.before[0], layer.out_features
            x, weight, dy = reals(images, inputs), reals(outputs, inputs), reals(images, outputs)
            where = f"{step.name} {inputs} to {outputs}"
            yield Work("matmul", f"{where}, forward", (x, weight.T), {})
            yield Work("matmul", f"{where}, dx", (dy, weight), {})
            yield Work("matmul", f"{where}, dweight", (dy.T, x), {})
    logits = reals(images, *step.after)
    yield Work("softmax_cross_entropy", f"{logits.shape[1]} classes", (logits, rng.integers(0, logits.shape[1], images)), {})
    name, shape = max(NETWORKS[network].parameters().items(), key=lambda parameter: prod(parameter[1]))
    w, g, m, s = reals(*shape), reals(*shape), reals(*shape), reals(*shape) ** 2
    where = f"{name} {' x '.join(map(str, shape))}"
    yield Work("sgd_step", where, (w, g, None), dict(lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0))
    yield Work("adam_step", where, (w, g, m, s), dict(t=3, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False))


def _halved(after: list) -> bool:
    """Whether what follows a convolution is ReLU and max-pooling of 2 x 2, in either order."""
    pools = [layer for layer in after if isinstance(layer, MaxPool) and layer.size == layer.stride == 2]
    return len(pools) == sum(isinstance(layer, ReLU) for layer in after) == 1


def _pooled(step: Step) -> str:
    channels, rows, columns = step.before
    return f"pool {channels}, {rows}x{columns}"


def prove(work: Work, implementation: Implementation):
    """The oracle's verdict on a kernel, on this very shape."""
    want = oracle.reference.find(work.name)(*work.arrays, **work.parameters)
    judged = want if implementation.norm is None else want.with_norm(implementation.norm)
    return oracle.judge(oracle.with_out(implementation, work.name)(*work.arrays, **work.parameters), judged, max_zero_share=1.0)


def call(work: Work, implementation: Implementation) -> Callable[[], object]:
    """The kernel on this work, with outputs that are there: what is timed."""
    outputs = tuple(np.empty(shape, dtype) for shape, dtype in work.spec.outputs)
    out = outputs if len(outputs) > 1 else outputs[0]
    return lambda: implementation.function(*work.arrays, **work.parameters, out=out)


def measure(work: Work, roofline: Roofline, *, rounds: int, block_s: float) -> list[Row]:
    """Every variant of the kernel on this work, in turns."""
    calls, verdicts = {}, {}
    for variant in variants(work.name, "cpu"):
        kernel = find(work.name, f"cpu.{variant}")
        verdicts[variant], calls[variant] = prove(work, kernel), call(work, kernel)
    times = in_turns({variant: call for variant, call in calls.items() if verdicts[variant]}, rounds=rounds, block_s=block_s)
    found = []
    for variant, verdict in verdicts.items():
        taken = times.get(variant)
        low, high = taken.spread if taken else (None, None)
        share = roofline.least(work.spec.flops, work.moved) / taken.median if taken else None
        found.append(Row(work, variant, str(verdict.band), taken.median if taken else None, low, high, share, find(work.name, f"cpu.{variant}").norm is not None))
    return found

"""Every variant of every CPU kernel on the layers of the article's networks: proved right on that very shape, then timed.

The table that comes out is the kernels' story in numbers: seconds, operations a second, and the share of what the
machine can do at most (roofline.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tinynet import oracle
from tinynet.bench.roofline import Roofline
from tinynet.bench.timing import in_turns
from tinynet.compare.networks import IMAGE, NETWORKS, Conv, Dense, MaxPool
from tinynet.dispatch import find, variants
from tinynet.geometry import PoolWindow, Window, nchw
from tinynet.kernels.contract import CONTRACTS


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

    channels, rows, columns = IMAGE
    for layer in NETWORKS[network].layers:
        if isinstance(layer, Conv):
            x, weight, bias = reals(images, channels, rows, columns), reals(layer.out_channels, channels, layer.kernel_size, layer.kernel_size), reals(layer.out_channels)
            window = dict(Window(x.shape, weight.shape, 1, layer.padding, 1, 1, "NCHW"))
            forward = Work("conv2d", f"{layer.name} {channels} to {layer.out_channels}, {rows}x{columns}", (x, weight, bias), window)
            (shape, _), = forward.spec.outputs
            dy = reals(*shape)
            yield forward
            yield Work("conv2d_dx", forward.layer, (dy, weight), dict(window, x_shape=x.shape))
            yield Work("conv2d_dw", forward.layer, (dy, x), dict(window, weight_shape=weight.shape))
            yield Work("conv2d_db", forward.layer, (dy,), dict(layout="NCHW"))
            _, channels, rows, columns = nchw(shape, "NCHW")
        elif isinstance(layer, MaxPool):
            x = np.maximum(reals(images, channels, rows, columns), 0)
            window = dict(PoolWindow(x.shape, layer.size, None, 0, False, "NCHW", "max_pool2d", 1))
            forward = Work("max_pool2d", f"pool {channels}, {rows}x{columns}", (x,), window)
            yield forward
            rows, columns = rows // layer.size, columns // layer.size
            _, argmax = oracle.reference.max_pool2d(x, **window)
            yield Work("max_pool2d_dx", forward.layer, (reals(images, channels, rows, columns), argmax.value.astype(np.int32)), dict(x_shape=x.shape, layout="NCHW"))
        elif isinstance(layer, Dense):
            x, weight, dy = reals(images, layer.in_features), reals(layer.out_features, layer.in_features), reals(images, layer.out_features)
            where = f"{layer.name} {layer.in_features} to {layer.out_features}"
            yield Work("matmul", f"{where}, forward", (x, weight.T), {})
            yield Work("matmul", f"{where}, dx", (dy, weight), {})
            yield Work("matmul", f"{where}, dweight", (dy.T, x), {})


def measure(work: Work, roofline: Roofline, *, rounds: int, block_s: float) -> list[Row]:
    """Every variant of the kernel on this work, in turns."""
    want = oracle.reference.find(work.name)(*work.arrays, **work.parameters)
    calls, verdicts = {}, {}
    for variant in variants(work.name, "cpu"):
        kernel = find(work.name, f"cpu.{variant}")
        judged = want if kernel.norm is None else want.with_norm(kernel.norm)
        verdicts[variant] = oracle.judge(oracle.with_out(kernel, work.name)(*work.arrays, **work.parameters), judged, max_zero_share=1.0)
        outputs = tuple(np.empty(shape, dtype) for shape, dtype in work.spec.outputs)
        out = outputs if len(outputs) > 1 else outputs[0]
        calls[variant] = lambda kernel=kernel, out=out: kernel.function(*work.arrays, **work.parameters, out=out)
    times = in_turns({variant: call for variant, call in calls.items() if verdicts[variant]}, rounds=rounds, block_s=block_s)
    found = []
    for variant, verdict in verdicts.items():
        taken = times.get(variant)
        low, high = taken.spread if taken else (None, None)
        share = roofline.least(work.spec.flops, work.moved) / taken.median if taken else None
        found.append(Row(work, variant, str(verdict.band), taken.median if taken else None, low, high, share, find(work.name, f"cpu.{variant}").norm is not None))
    return found

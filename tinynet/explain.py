"""`tinynet explain`: what a kernel is, and what each of its variants asks of a GPU's memory, counted on the emulator.

The variants run in checked mode on one sample, and what is counted is structure: requests, sectors, passes over the banks
of shared memory. How long a GPU takes for them is another question, which no emulator answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

import numpy as np

from tinynet.dispatch import find, kernels
from tinynet.kernels.contract import CONTRACTS

DEVICE = "cuda-emulator"
# Large enough to fill some blocks, small enough to be watched: every access takes a tenth of a microsecond and more.
_X, _W, _Y = (2, 16, 12, 16), (32, 16, 3, 3), (2, 32, 12, 16)
_WINDOW = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1, layout="NCHW")
_IMAGES, _HALVES = (2, 4, 32, 32), (2, 4, 16, 16)
_MAX = dict(kernel_size=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1), ceil_mode=False, layout="NCHW")
_AVG = dict(kernel_size=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), ceil_mode=False, count_include_pad=True, layout="NCHW")
# An array is a shape, for zero-mean numbers, or what makes it from random ones.
_WEIGHTS = (200, 160)
SAMPLES = {
    "matmul": (((128, 128), (128, 128)), {}),
    "conv2d": ((_X, _W, (32,)), _WINDOW),
    "conv2d_relu_max_pool2d": ((_X, _W, (32,)), _WINDOW),
    "conv2d_dx": ((_Y, _W), {"x_shape": _X, **_WINDOW}),
    "conv2d_dw": ((_Y, _X), {"weight_shape": _W, **_WINDOW}),
    "conv2d_db": ((_Y,), {"layout": "NCHW"}),
    "max_pool2d": ((_IMAGES,), _MAX),
    "max_pool2d_dx": ((_HALVES,), dict(x_shape=_IMAGES, layout="NCHW")),  # and the argmax of max_pool2d's sample
    "avg_pool2d": ((_IMAGES,), _AVG),
    "avg_pool2d_dx": ((_HALVES,), dict(_AVG, x_shape=_IMAGES)),
    "relu_dx": ((_WEIGHTS, _WEIGHTS), {}),
    "softmax_cross_entropy": (((500, 10), lambda rng: rng.integers(0, 10, 500)), {}),
    "sgd_step": ((_WEIGHTS, _WEIGHTS, _WEIGHTS), dict(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)),
    "adam_step": ((_WEIGHTS, _WEIGHTS, _WEIGHTS, lambda rng: rng.random(_WEIGHTS, np.float32)), dict(t=2, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False)),
}


@dataclass(frozen=True)
class Counted:
    """One variant on the sample. Global memory moves in sectors of 32 bytes; shared memory answers a request in passes."""

    variant: str
    kernels: tuple[str, ...]
    blocks: int
    threads: int
    requests: int
    sectors: int
    least_sectors: int  # that could hold what the requests asked for
    bytes_moved: int
    least_bytes: int  # every input once, every output once: the contract's
    shared_requests: int
    passes: int
    least_passes: int
    barriers: int  # of a block
    flops: int

    @property
    def flops_per_byte(self) -> float:
        return self.flops / self.bytes_moved


def sample(name: str) -> tuple[tuple, dict]:
    """The arrays and parameters that a kernel is explained on. Raises ValueError for one that has none."""
    if name not in CONTRACTS:
        raise ValueError(f"there is no kernel {name!r}; the kernels are {', '.join(CONTRACTS)}")
    if name not in SAMPLES:
        raise ValueError(f"{name} has no CUDA kernel yet; those that have are {', '.join(SAMPLES)}")
    arrays, parameters = SAMPLES[name]
    rng = np.random.default_rng(0)
    arrays = tuple(wanted(rng) if callable(wanted) else rng.standard_normal(wanted).astype(np.float32) for wanted in arrays)
    if name == "max_pool2d_dx":
        (x,), window = sample("max_pool2d")
        arrays += kernels("reference").max_pool2d(x, **window)[1:]
    return arrays, parameters


def count(name: str) -> list[Counted]:
    """Every variant of a kernel on its sample, in the order of the story: simplest first.

    Raises ValueError for a kernel without a sample, RuntimeError where there is no g++, KernelFault for a variant with a fault.
    """
    from tinynet.kernels.cuda.both import STORIES

    arrays, parameters = sample(name)
    return [_counted(name, variant, arrays, parameters) for variant in STORIES[name]]


def _counted(name: str, variant: str, arrays, parameters) -> Counted:
    from tinynet.kernels.cuda.emulator.checked import checked

    spec = CONTRACTS[name].spec(*arrays, **parameters)
    outputs = [np.empty(shape, dtype) for shape, dtype in spec.outputs]
    with checked() as found:
        find(name, f"{DEVICE}.{variant}").function(*arrays, **parameters, out=outputs[0] if len(outputs) == 1 else tuple(outputs))
    launches = found.launches
    total = lambda memory, what: sum(launch.total(memory, what) for launch in launches)
    return Counted(
        variant=variant,
        kernels=tuple(launch.kernel for launch in launches),
        blocks=sum(prod(launch.grid) for launch in launches),
        threads=prod(launches[0].block),
        requests=total("global", "requests"),
        sectors=total("global", "transactions"),
        least_sectors=total("global", "least"),
        bytes_moved=sum(launch.bytes_moved for launch in launches),
        least_bytes=CONTRACTS[name].least_bytes(arrays, spec),
        shared_requests=total("shared", "requests"),
        passes=total("shared", "transactions"),
        least_passes=total("shared", "least"),
        barriers=sum(launch.barriers // prod(launch.grid) for launch in launches),
        flops=spec.flops,
    )


def as_json(name: str, found: list[Counted]) -> dict:
    return {"kernel": name, "device": DEVICE, "measures": "structure, not time", "variants": [{**asdict(c), "flops_per_byte": c.flops_per_byte} for c in found]}

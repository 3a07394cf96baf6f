"""The networks of the article, as data: what every peer must run, whatever its own idiom.

Three names, two architectures. `keras` and `pytorch` are one architecture that
ends in different outputs, so from equal weights log(output of `keras`) equals
the output of `pytorch`. All of them read 32 x 32 images of 3 channels in 10 classes.

    tensorflow   conv 3->32 SAME, ReLU, pool 2, conv 32->64 SAME, ReLU, pool 2,
                 dense 4096->1024, ReLU, dense 1024->10                   -> logits
    keras        conv 3->32 VALID, ReLU, pool 2, conv 32->16 VALID, ReLU, pool 2,
                 dense 576->10, softmax                                   -> probabilities
    pytorch      the same, log-softmax                                    -> log-probabilities

Canonical form, into which and out of which every peer converts: images NCHW,
convolution weights (out, in, kh, kw), dense weights (out, in), and the rows that
a dense layer reads after a flatten in (channel, row, column) order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union

import numpy as np

IMAGE = (3, 32, 32)  # channels, rows, columns
CLASSES = 10


@dataclass(frozen=True)
class Conv:
    """Convolution of stride 1 with bias; `padding` is "same" or "valid"."""

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    padding: Literal["same", "valid"]


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class MaxPool:
    """Windows of `size` x `size` that touch each other; none of the networks needs padding here."""

    size: int


@dataclass(frozen=True)
class Flatten:
    """(channels, rows, columns) to one row; the shape that enters, so that peers can permute weights."""

    channels: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Dense:
    name: str
    in_features: int
    out_features: int


Layer = Union[Conv, ReLU, MaxPool, Flatten, Dense]


@dataclass(frozen=True)
class Network:
    name: str
    layers: tuple[Layer, ...]
    output: Literal["logits", "probabilities", "log_probabilities"]

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Canonical shape of every parameter, in the order of the layers: `conv1.weight`, `conv1.bias`, ..."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            if isinstance(layer, Conv):
                shapes[f"{layer.name}.weight"] = (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)
                shapes[f"{layer.name}.bias"] = (layer.out_channels,)
            elif isinstance(layer, Dense):
                shapes[f"{layer.name}.weight"] = (layer.out_features, layer.in_features)
                shapes[f"{layer.name}.bias"] = (layer.out_features,)
        return shapes

    @property
    def flattened(self) -> tuple[str, Flatten]:
        """The dense layer that reads a flattened image, by name, and the shape of that image."""
        for before, layer in zip(self.layers, self.layers[1:]):
            if isinstance(before, Flatten) and isinstance(layer, Dense):
                return layer.name, before
        raise ValueError(f"network {self.name!r} has no dense layer after a flatten")


_SMALL = (
    Conv("conv1", 3, 32, 3, "valid"), ReLU(), MaxPool(2),
    Conv("conv2", 32, 16, 3, "valid"), ReLU(), MaxPool(2),
    Flatten(16, 6, 6), Dense("fc1", 576, CLASSES),
)  # fmt: skip

_LARGE = (
    Conv("conv1", 3, 32, 3, "same"), ReLU(), MaxPool(2),
    Conv("conv2", 32, 64, 3, "same"), ReLU(), MaxPool(2),
    Flatten(64, 8, 8), Dense("fc1", 4096, 1024), ReLU(), Dense("fc2", 1024, CLASSES),
)  # fmt: skip

NETWORKS: dict[str, Network] = {
    "tensorflow": Network("tensorflow", _LARGE, "logits"),
    "keras": Network("keras", _SMALL, "probabilities"),
    "pytorch": Network("pytorch", _SMALL, "log_probabilities"),
}


def get(name: str) -> Network:
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}; choose from {', '.join(NETWORKS)}")
    return NETWORKS[name]


def canonical_state(network: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and biases for `network`, float32, the same for every peer and every run of one seed.

    Each is uniform in +-1/sqrt(fan_in), PyTorch's rule: no two entries are equal, so
    that no transposed axis can pass unseen, and the network trains from them.
    """
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    bound = 0.0
    for name, shape in network.parameters().items():
        if name.endswith(".weight"):
            bound = 1.0 / np.sqrt(np.prod(shape[1:]))  # the bias that follows has its layer's fan-in
        state[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return state

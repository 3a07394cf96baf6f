"""The networks that `tinynet bench networks` runs, as data: the article's two architectures and five ordinary ones.

Every layer says no more than a framework's constructor needs; `Network.steps` adds names and shapes, and every
contestant builds itself from them. All end in logits of 10 classes, trained by cross-entropy.

Canonical form, as in compare/networks.py: images NCHW, convolution weights (out, in / groups, kh, kw), dense weights
(out, in), the rows that a dense layer reads after a flatten in (channel, row, column) order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Union

import numpy as np

from tinynet.compare import networks as article

CLASSES = 10


@dataclass(frozen=True)
class Conv:
    """Convolution with bias. padding: zeros on each side. groups: 1, or the number of channels (depthwise)."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def same(self) -> bool:
        """Whether this is what frameworks call "same". With a stride it isn't: they pad one side more than the other."""
        return self.stride == 1 and 2 * self.padding == self.kernel_size - 1


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class MaxPool:
    """Without padding; windows that would reach over the edge are left out."""

    size: int
    stride: int


@dataclass(frozen=True)
class AvgPool:
    """Windows that touch each other; without padding."""

    size: int


@dataclass(frozen=True)
class Flatten:
    pass


@dataclass(frozen=True)
class Dense:
    out_features: int


Layer = Union[Conv, ReLU, MaxPool, AvgPool, Flatten, Dense]


class Image(NamedTuple):
    channels: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Step:
    """A layer in its place. name: of its parameters, "conv1" or "fc1". before, after: the shape of one image, or (features,). read: how
    many of its rows and columns the layers behind it need: pooling leaves out what no whole window reaches."""

    layer: Layer
    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    read: tuple[int, ...]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        if isinstance(self.layer, Conv):
            weight = (self.layer.out_channels, self.before[0] // self.layer.groups, self.layer.kernel_size, self.layer.kernel_size)
        elif isinstance(self.layer, Dense):
            weight = (self.layer.out_features, self.before[0])
        else:
            return {}
        return {f"{self.name}.weight": weight, f"{self.name}.bias": weight[:1]}

    @property
    def depthwise(self) -> bool:
        return isinstance(self.layer, Conv) and self.layer.groups > 1

    @property
    def operations(self) -> int:
        """Multiplications and additions of a convolution or dense layer for one image, by its definition, of outputs that are read; those with
        padding left out."""
        if isinstance(self.layer, Dense):
            return 2 * prod(self.before) * self.layer.out_features
        if not isinstance(self.layer, Conv):
            return 0
        layer, (rows, columns) = self.layer, zip(self.before[1:], self.read)
        return 2 * layer.out_channels * self.before[0] // layer.groups * _taps(layer, *rows) * _taps(layer, *columns)


def _taps(layer: Conv, before: int, after: int) -> int:
    """Along one axis: pairs of an output and a pixel that it reads."""
    return sum(0 <= i * layer.stride + tap - layer.padding < before for i in range(after) for tap in range(layer.kernel_size))


def _reads(layer: Layer, outputs: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of an image of shape `before` that so many of a layer's outputs read."""
    if isinstance(layer, ReLU):
        return outputs
    if isinstance(layer, Conv):
        return tuple(min((n - 1) * layer.stride + layer.kernel_size - layer.padding, size) for n, size in zip(outputs, before[1:]))
    if isinstance(layer, (MaxPool, AvgPool)):
        return tuple((n - 1) * (layer.stride if isinstance(layer, MaxPool) else layer.size) + layer.size for n in outputs)
    return before[1:]


@dataclass(frozen=True)
class Network:
    """title: what the tables say above it. sizes: the batch sizes it is timed at by default."""

    name: str
    title: str
    image: Image
    layers: tuple[Layer, ...]
    sizes: tuple[int, ...]

    def steps(self) -> Iterator[Step]:
        """The layers in their order with names and shapes. Raises ValueError where one doesn't fit the one before."""
        shapes: list[tuple[int, ...]] = [tuple(self.image)]
        for i, layer in enumerate(self.layers):
            shapes.append(_after(layer, shapes[-1], f"network {self.name!r}, layer {i}, {layer}"))
        read = [shapes[-1][1:]]
        for layer, before in zip(self.layers[:0:-1], shapes[-2::-1]):
            read.append(_reads(layer, read[-1], before))
        for i, (layer, before, after, outputs) in enumerate(zip(self.layers, shapes, shapes[1:], reversed(read))):
            kind = {Conv: "conv", Dense: "fc"}.get(type(layer), "")
            number = sum(isinstance(each, type(layer)) for each in self.layers[: i + 1])
            yield Step(layer, f"{kind}{number}" if kind else "", before, after, outputs)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Canonical shape of every parameter, in the order of the layers: `conv1.weight`, `conv1.bias`, ..."""
        return {name: shape for step in self.steps() for name, shape in step.parameters.items()}

    def operations(self, kind: str) -> int:
        """Of all its products for one image: forward, or a training step, in which each has two gradients, but the first none of its images."""
        each = [step.operations for step in self.steps() if step.operations]
        return sum(each) if kind == "forward" else 3 * sum(each) - each[0]

    @property
    def flattened(self) -> tuple[str, Image]:
        """The dense layer that reads a flattened image, by name, and the shape of that image."""
        steps = list(self.steps())
        return next((dense.name, Image(*flatten.before)) for flatten, dense in zip(steps, steps[1:]) if isinstance(flatten.layer, Flatten))


def _after(layer: Layer, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    if isinstance(layer, ReLU):
        return shape
    if isinstance(layer, Dense):
        if len(shape) != 1:
            raise ValueError(f"{where}: a dense layer reads one row of features, got an image {shape}; put a Flatten before it")
        return (layer.out_features,)
    if len(shape) != 3:
        raise ValueError(f"{where}: expected an image (channels, rows, columns), got {shape}; put it before the Flatten")
    channels, rows, columns = shape
    if isinstance(layer, Flatten):
        return (prod(shape),)
    if isinstance(layer, Conv):
        if layer.groups not in (1, channels):
            raise ValueError(f"{where}: groups must be 1 or the {channels} channels (depthwise); TensorFlow's CPU kernels know no other")
        if layer.groups > 1 and layer.out_channels != channels:
            raise ValueError(f"{where}: a depthwise convolution must return the {channels} channels that it reads, got {layer.out_channels}")
        size, stride, padding, channels = layer.kernel_size, layer.stride, layer.padding, layer.out_channels
    else:
        size, stride, padding = layer.size, layer.stride if isinstance(layer, MaxPool) else layer.size, 0
    if min(rows, columns) + 2 * padding < size:
        raise ValueError(f"{where}: windows of {size}x{size} don't fit an image of {rows}x{columns} with padding {padding}")
    return (channels, (rows + 2 * padding - size) // stride + 1, (columns + 2 * padding - size) // stride + 1)


def _from_article(name: str, title: str) -> Network:
    """One of the article's architectures; whatever it ends in there, here it ends in its logits."""
    layers: list[Layer] = []
    for layer in article.get(name).layers:
        if isinstance(layer, article.Conv):
            layers.append(Conv(layer.out_channels, layer.kernel_size, padding=layer.kernel_size // 2 if layer.padding == "same" else 0))
        elif isinstance(layer, article.MaxPool):
            layers.append(MaxPool(layer.size, layer.size))
        elif isinstance(layer, article.Dense):
            layers.append(Dense(layer.out_features))
        else:
            layers.append(Flatten() if isinstance(layer, article.Flatten) else ReLU())
    return Network(name, title, Image(*article.IMAGE), tuple(layers), (1, 32, 128, 512))


def _ordinary(name: str, title: str, image: Image, *layers: Layer) -> Network:
    return Network(name, title, image, layers, (1, 32, 128))


NETWORKS = {
    network.name: network
    for network in (
        _from_article("keras", "keras and pytorch (A)"),
        _from_article("tensorflow", "tensorflow (B)"),
        _ordinary(
            "lenet5", "lenet5, 5x5", Image(1, 28, 28),
            Conv(6, 5, padding=2), ReLU(), AvgPool(2), Conv(16, 5), ReLU(), AvgPool(2),
            Flatten(), Dense(120), ReLU(), Dense(84), ReLU(), Dense(CLASSES),
        ),
        _ordinary(
            "vgg", "vgg, 3x3", Image(3, 32, 32),
            Conv(64, 3, padding=1), ReLU(), Conv(64, 3, padding=1), ReLU(), MaxPool(2, 2),
            Conv(128, 3, padding=1), ReLU(), Conv(128, 3, padding=1), ReLU(), MaxPool(2, 2),
            Flatten(), Dense(CLASSES),
        ),
        _ordinary(
            "strided", "strided, 7x7 and 3x3", Image(3, 64, 64),
            Conv(32, 7, stride=2, padding=3), ReLU(), MaxPool(3, 2),
            Conv(64, 3, stride=2, padding=1), ReLU(), Conv(128, 3, stride=2, padding=1), ReLU(),
            Flatten(), Dense(CLASSES),
        ),
        _ordinary(
            "bottleneck", "bottleneck, 1x1 and depthwise", Image(3, 32, 32),
            Conv(32, 3, padding=1), ReLU(), Conv(16, 1), ReLU(), Conv(16, 3, padding=1), ReLU(), Conv(64, 1), ReLU(), MaxPool(2, 2),
            Conv(64, 3, padding=1, groups=64), ReLU(), Conv(128, 1), ReLU(), AvgPool(4),
            Flatten(), Dense(CLASSES),
        ),
        _ordinary(  # weights of 15 MB, most of which serve 3 x 3 pixels
            "alexnet", "alexnet, large weights on few pixels", Image(3, 64, 64),
            Conv(64, 11, stride=4, padding=2), ReLU(), MaxPool(3, 2), Conv(192, 5, padding=2), ReLU(), MaxPool(3, 2),
            Conv(384, 3, padding=1), ReLU(), Conv(256, 3, padding=1), ReLU(), Conv(256, 3, padding=1), ReLU(),
            Flatten(), Dense(512), ReLU(), Dense(CLASSES),
        ),
    )
}  # fmt: skip


def initial_state(network: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and biases in float32, the same for every contestant.

    Weights are uniform in +-sqrt(6 / fan_in), which keeps the size of the activations through ReLUs (He et al. 2015):
    in deep networks PyTorch's narrower rule would leave little but biases, and errors would hide behind them.
    """
    rng = np.random.default_rng(seed)
    bounds = {name: 0.1 if name.endswith(".bias") else np.sqrt(6 / prod(shape[1:])) for name, shape in network.parameters().items()}
    return {name: rng.uniform(-bounds[name], bounds[name], shape).astype(np.float32) for name, shape in network.parameters().items()}

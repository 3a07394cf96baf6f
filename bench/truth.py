"""What a contestant of `tinynet bench networks` must return, in float64, and how near it must come.

An error is a norm, |got - want| / |want| over a whole array: Winograd's convolutions err little beside the largest
outputs and not beside each one, so that a norm is what can be promised of them.

An output or a loss may err by 1e-3. Float32 stays a thousand times below that in these networks and Winograd fifty
times; bfloat16, a wrong image or a forgotten bias lie above.

A parameter's change in a step may err by 1e-2. Of the choices that ReLU and pooling make a share p is within rounding
and may fall either way, and the whole gradient there with it: on a sum of many such gradients that is about sqrt(p),
5e-4 for float32 and 3e-3 for Winograd, however large the batch. A gradient that lacks an edge, an image of a hundred
or a term lies far above. What is lost when the changed parameter is rounded to float32, half a unit in its last
place, is allowed on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import tinynet
from tinynet import functional as F
from tinynet import nn
from tinynet.bench.zoo import CLASSES, AvgPool, Conv, Dense, Flatten, MaxPool, Network

TOLERANCE, STEP_TOLERANCE = 1e-3, 1e-2
LEARNING_RATE = 1e-3  # small: a network is trained on one batch for as long as it is timed, and must not run away
CONTRAST = 0.3  # the standard deviation of a pixel, as in photographs between 0 and 1
DISTINCT = 512  # images at most; a larger batch repeats them, so that its truth is theirs
CHUNK = 64  # images at a time: float64 activations stay small

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    """Of a forward pass the output (for the images that don't repeat); of a training step the loss and every parameter's change."""

    output: np.ndarray | None
    loss: float | None
    change: State


def make_model(network: Network, state: State, dtype=np.float32, device: str = "cpu") -> nn.Sequential:
    """The network on tinynet, holding `state`."""
    model = nn.Sequential()
    for step in network.steps():
        layer = step.layer
        if isinstance(layer, Conv):
            module = nn.Conv2d(step.before[0], layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding, groups=layer.groups)
        elif isinstance(layer, Dense):
            module = nn.Linear(step.before[0], layer.out_features)
        elif isinstance(layer, MaxPool):
            module = nn.MaxPool2d(layer.size, stride=layer.stride)
        elif isinstance(layer, AvgPool):
            module = nn.AvgPool2d(layer.size)
        else:
            module = nn.Flatten() if isinstance(layer, Flatten) else nn.ReLU()
        for name in step.parameters:
            setattr(module, name.partition(".")[2], nn.Parameter(state[name].astype(dtype), device=device))
        model.add(module)
    return model


def images(network: Network, state: State, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`size` images of noise (no two pixels are equal, so no window of a pooling is a tie) and their classes.

    The first are those on which ReLU's and pooling's choices are the clearest: one that is within rounding may fall
    either way, and the gradient of a single image may change by more than is allowed.
    """
    count = _distinct(size)
    candidates = (CONTRAST * np.random.default_rng(seed).standard_normal((max(count, CHUNK), *network.image))).astype(np.float32)
    model = make_model(network, state, np.float64, "reference")
    clearest = np.argsort(-np.concatenate([_clearness(network, model, part) for part in _chunks(candidates)]))[:count]
    x = candidates[clearest]
    return np.concatenate([x] * (size // count)), np.arange(size) % count % CLASSES


def _distinct(size: int) -> int:
    return next(n for n in range(min(size, DISTINCT), 0, -1) if size % n == 0)


def _chunks(array: np.ndarray) -> list[np.ndarray]:
    return [array[i : i + CHUNK] for i in range(0, len(array), CHUNK)]


def _clearness(network: Network, model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """For each image how far its closest decision is from falling the other way, beside the layer's root mean square."""
    value, clearness = x.astype(np.float64), np.full(len(x), np.inf)
    with tinynet.no_grad():
        for step, module in zip(network.steps(), (model[i] for i in range(len(model)))):
            if isinstance(step.layer, MaxPool):
                size, stride = step.layer.size, step.layer.stride
                windows = np.lib.stride_tricks.sliding_window_view(value, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
                second, first = np.moveaxis(np.partition(windows.reshape(*windows.shape[:4], -1), -2)[..., -2:], -1, 0)
                margins = np.where(first > 0, first - second, np.inf)  # 0 and 0 came out of a ReLU that lets no gradient through
            elif type(module) is nn.ReLU:
                margins = np.abs(value)
            else:
                margins = np.full(value.shape, np.inf)
            clearness = np.minimum(clearness, margins.reshape(len(x), -1).min(axis=1) / np.sqrt(np.mean(value**2)))
            value = module(tinynet.tensor(value, device="reference")).numpy()
    return clearness


def truth(network: Network, kind: str, state: State, x: np.ndarray, y: np.ndarray) -> Truth:
    """Forward or training step of images x and classes y in float64 on the reference kernels; images that repeat are computed once."""
    count = _distinct(len(x))
    model = make_model(network, state, np.float64, "reference")
    parts = [tinynet.tensor(part.astype(np.float64), device="reference") for part in _chunks(x[:count])]
    if kind == "forward":
        with tinynet.no_grad():
            return Truth(np.concatenate([model(part).numpy() for part in parts]), None, {})
    total = 0.0
    for part, classes in zip(parts, _chunks(y[:count])):
        loss = F.cross_entropy(model(part), classes) * (len(classes) / count)
        loss.backward()  # gradients add up over the parts
        total += loss.item()
    return Truth(None, total, {name: -LEARNING_RATE * p.grad for name, p in zip(state, model.parameters(), strict=True)})


def error(got, want, allowed: float = 0.0) -> float:
    """|got - want| / |want| in the Euclidean norm, after `allowed` is taken off the difference; inf for a wrong shape or what is no number."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return np.inf
    distance, size = np.linalg.norm(got - want), np.linalg.norm(want)
    return float(max(0.0, distance - allowed) / size) if size else (0.0 if distance <= allowed else np.inf)


def errors(want: Truth, state: State, got: dict) -> dict[str, tuple[float, float]]:
    """The error of everything that a contestant returned, and how large it may be: of {"output"} after a forward pass,
    of {"loss", "state"} after a training step from `state`."""
    if want.output is not None:
        count = len(want.output)
        parts = [got["output"][i : i + count] for i in range(0, len(got["output"]), count)]
        return {"output": (max(error(part, want.output) for part in parts), TOLERANCE)}
    found = {"loss": (error(got["loss"], want.loss), TOLERANCE)}
    for name, change in want.change.items():
        before, after = state[name].astype(np.float64), got["state"][name].astype(np.float64)
        lost = np.linalg.norm(before) * 2.0**-24
        found[f"step of {name}"] = (error(after - before, change, allowed=lost) if after.shape == before.shape else np.inf, STEP_TOLERANCE)
    return found

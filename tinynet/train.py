"""The training loop: batches in a seeded order, one optimiser step each, accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tinynet.inputs import tensor
from tinynet.mode import no_grad


@dataclass(frozen=True)
class Epoch:
    """number: from 1. loss: the mean of the epoch's steps. accuracy: on the held-out images, after it."""

    number: int
    loss: float
    accuracy: float


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Indices of the images of each batch; the order depends on the seed and the epoch alone, so a run repeats."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return (order[i : i + size] for i in range(0, count, size))


def accuracy(model, images: np.ndarray, classes: np.ndarray, *, device: str = "cpu", batch_size: int = 120) -> float:
    """The share of images whose class has the model's largest output."""
    right = 0
    with no_grad():
        for i in range(0, len(images), batch_size):
            outputs = model(tensor(images[i : i + batch_size], device=device)).numpy()
            right += int((outputs.argmax(axis=1) == classes[i : i + batch_size]).sum())
    return right / len(images)


def fit(model, loss, optimizer, training, held_out, *, epochs: int, batch_size: int = 32, seed: int = 0, device: str = "cpu", on_step: Callable[[float], None] | None = None) -> Iterator[Epoch]:
    """Trains `model` and yields after each epoch, so that the caller may save, print or stop.

    loss(output, classes) -> scalar Tensor; training and held_out are (images, classes);
    on_step is called with every step's loss. Raises FloatingPointError if a loss is not finite.
    """
    images, classes = training
    for number in range(1, epochs + 1):
        losses = []
        for at in batches(len(images), batch_size, seed, number - 1):
            optimizer.zero_grad()
            value = loss(model(tensor(images[at], device=device)), tensor(classes[at], device=device))
            losses.append(value.item())
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(f"fit: the loss became {losses[-1]} in epoch {number}, step {len(losses)}; a smaller learning rate usually helps")
            value.backward()
            optimizer.step()
            if on_step is not None:
                on_step(losses[-1])
        yield Epoch(number, float(np.mean(losses)), accuracy(model, *held_out, device=device))

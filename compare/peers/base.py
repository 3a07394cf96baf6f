"""What a peer is: one framework that can run the article's networks, behind one small interface.

A peer lives in a process of its own (worker.py), so that its module may import its
framework at the top of a method and set what it likes. Everything that crosses the
interface is a numpy array in canonical form (networks.py): NCHW, (out, in, kh, kw),
(out, in). A peer converts both ways, outside of what is timed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinynet.compare.networks import Network

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SGD:
    """The optimiser that all peers share: v = momentum * v + g; w = w - learning_rate * v; v starts at 0."""

    learning_rate: float = 0.03
    momentum: float = 0.9


@dataclass(frozen=True)
class PeerInfo:
    """What the report says about where a peer's numbers come from."""

    framework: str                                  # "PyTorch"
    version: str                                    # "2.13.0+cpu"
    details: dict[str, str] = field(default_factory=dict)   # threads seen, build flags, backend


class Peer(ABC):
    """One framework in one mode, holding one network at a time.

    `modes` are the ways to run it, the plainest first; `layout` is the one its network
    runs in. `module` is what must be importable and `install` the line that installs it.
    """

    name: str
    module: str
    install: str
    modes: tuple[str, ...]
    layout: str
    environment: Mapping[str, str] = {}             # set before the framework is imported

    @abstractmethod
    def start(self, threads: int) -> PeerInfo:
        """Imports the framework and limits it to `threads` threads."""

    @abstractmethod
    def build(self, network: Network, mode: str) -> None:
        """Makes the network anew, for the mode; its parameters are whatever the framework likes."""

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Canonical parameters in; the optimiser's velocities start again at 0."""

    @abstractmethod
    def get_state(self) -> dict[str, np.ndarray]:
        """Canonical parameters out: bit for bit what set_state was given, if nothing trained."""

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Images (N, 3, 32, 32) to the network's output (N, 10)."""

    @abstractmethod
    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy over images x (N, 3, 32, 32), classes y (N,) int64; the gradient of every
        parameter under its canonical name, and of the images under `input`."""

    def train_step(self, x: np.ndarray, y: np.ndarray, optimizer: SGD) -> float:
        """One step; returns the loss before it."""
        return self.timed_train_step(self.prepare(x, y), optimizer)()

    # What the job times. `prepare` moves a batch into the framework's own tensors and layout, once.
    # The two that follow return a function without arguments that does one whole call on it and
    # returns only when the result is there (a forward: the output as something np.asarray takes;
    # a training step: the loss as a Python float).

    @abstractmethod
    def prepare(self, x: np.ndarray, y: np.ndarray) -> object: ...

    @abstractmethod
    def timed_forward(self, batch: object) -> Callable[[], object]: ...

    @abstractmethod
    def timed_train_step(self, batch: object, optimizer: SGD) -> Callable[[], float]: ...

"""What a contestant is: one framework in one mode that can run any network of zoo.py.

It lives in a process of its own. Everything that crosses the interface is a numpy array in canonical form (zoo.py);
what a contestant converts, it converts before the function that is timed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from tinynet.bench.zoo import Network

State = Mapping[str, np.ndarray]


class Contestant(ABC):
    """environment: set before the framework is imported. install: the line that installs what is missing. device: cpu; or cuda, for
    those that can: what is timed begins with images on the GPU and ends when the result is on the host. Float32 is float32 there."""

    environment: Mapping[str, str] = {}
    install = "pip install 'tinynet-engine[compare]'"

    def __init__(self, mode: str, device: str = "cpu"):
        self.mode, self.device = mode, device

    @abstractmethod
    def start(self, threads: int) -> str:
        """Imports the framework, limits it to `threads` threads, and says its name and version."""

    @abstractmethod
    def build(self, network: Network, state: State) -> None:
        """Makes the network anew, with parameters of these values."""

    @abstractmethod
    def forward(self, x: np.ndarray) -> Callable[[], object]:
        """A function that runs the images through the network and returns once the logits, as something np.asarray takes, are there."""


class Trainer(Contestant):
    """A contestant that can train too."""

    @abstractmethod
    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float) -> Callable[[], float]:
        """A function that does one step of SGD on the mean cross-entropy and returns the loss before it, once all is done."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """The parameters now."""

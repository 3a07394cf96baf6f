"""tinynet as a contestant: op by op, or compiled, with arithmetic that is strict or Winograd's."""

from __future__ import annotations

import numpy as np

import tinynet
from tinynet import functional as F
from tinynet.bench.peers.base import State, Trainer
from tinynet.bench.truth import make_model
from tinynet.bench.zoo import Network
from tinynet.devices import here


class Tinynet(Trainer):
    install = "pip install numba"

    def start(self, threads: int) -> str:
        self.compile = (lambda function: function) if self.mode == "eager" else lambda function: tinynet.compile(function, math=self.mode)
        if self.device != "cpu":
            with here(self.device) as xp:  # an error that says why, where there is no GPU
                return f"tinynet {tinynet.__version__}, {xp.__name__} {xp.__version__}"
        import numba

        numba.set_num_threads(threads)
        return f"tinynet {tinynet.__version__}, numba {numba.__version__}"

    def build(self, network: Network, state: State) -> None:
        self.names = list(network.parameters())
        self.model = make_model(network, state, device=self.device)

    def _moved(self, array: np.ndarray):
        return array if self.device == "cpu" else tinynet.tensor(array, device=self.device)

    def forward(self, x: np.ndarray):
        fast, x = self.compile(self.model), self._moved(x)

        def forward():
            with tinynet.no_grad():
                return fast(x).numpy()

        return forward

    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float):
        model, optimizer = self.model, tinynet.optim.SGD(self.model.parameters(), learning_rate)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        fast, x, y = self.compile(step), self._moved(x), self._moved(y)
        return lambda: fast(x, y).item()

    def state(self) -> dict[str, np.ndarray]:
        return {name: np.array(p.numpy()) for name, p in zip(self.names, self.model.parameters(), strict=True)}

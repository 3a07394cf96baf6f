"""PyTorch as a contestant: eager or torch.compile, either with channels last; on a GPU as CUDA graphs too."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinynet.bench.peers.base import State, Trainer
from tinynet.bench.zoo import AvgPool, Conv, Dense, Flatten, MaxPool, Network
from tinynet.compare.peers.pytorch_peer import PyTorchPeer, limit_threads


def make_model(torch: Any, network: Network) -> Any:
    """The network as nn.Sequential, its parameters whatever PyTorch makes them."""
    nn, model = torch.nn, torch.nn.Sequential()
    for step in network.steps():
        layer = step.layer
        if isinstance(layer, Conv):
            model.append(nn.Conv2d(step.before[0], layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding, groups=layer.groups))
        elif isinstance(layer, Dense):
            model.append(nn.Linear(step.before[0], layer.out_features))
        elif isinstance(layer, MaxPool):
            model.append(nn.MaxPool2d(layer.size, layer.stride))
        elif isinstance(layer, AvgPool):
            model.append(nn.AvgPool2d(layer.size))
        else:
            model.append(nn.Flatten() if isinstance(layer, Flatten) else nn.ReLU())
    return model


class Torch(Trainer):
    environment = PyTorchPeer.environment

    def start(self, threads: int) -> str:
        import torch

        self.torch = torch
        self.memory_format = torch.channels_last if "channels_last" in self.mode else torch.contiguous_format
        limit_threads(torch, threads)
        if self.device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError(f"PyTorch {torch.__version__} sees no GPU; it may be a build for CPUs: pip install torch with CUDA")
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark = True  # the fastest of cuDNN's kernels, tried at the first call
        return f"PyTorch {torch.__version__}"

    def build(self, network: Network, state: State) -> None:
        torch = self.torch
        self.names = list(network.parameters())
        self.model = make_model(torch, network).to(self.device)
        with torch.no_grad():
            for name, parameter in zip(self.names, self.model.parameters(), strict=True):
                parameter.copy_(torch.from_numpy(state[name]))
        self.model.to(memory_format=self.memory_format)
        torch.compiler.reset()  # what was compiled for another network or batch size counts against a limit

    def _compile(self, function):
        # dynamic=False: every batch size gets code of its own, as from all others that compile
        how = {"mode": "reduce-overhead"} if "graphs" in self.mode else {}
        return self.torch.compile(function, fullgraph=True, dynamic=False, **how) if "compile" in self.mode else function

    def _images(self, x: np.ndarray):
        return self.torch.from_numpy(x).to(self.device).contiguous(memory_format=self.memory_format)

    def forward(self, x: np.ndarray):
        torch, call, images = self.torch, self._compile(self.model), self._images(x)

        def forward():
            with torch.inference_mode():
                return call(images).cpu().numpy()

        return forward

    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float):
        torch, model, images, classes = self.torch, self.model, self._images(x), self.torch.from_numpy(y).to(self.device)
        loss_of = self._compile(lambda x, y: torch.nn.functional.cross_entropy(model(x), y))
        sgd = torch.optim.SGD(model.parameters(), learning_rate, fused=True)  # fused: one call for all parameters, the fastest here

        def step() -> float:
            sgd.zero_grad()
            loss = loss_of(images, classes)
            loss.backward()
            sgd.step()
            return loss.item()

        return step

    def state(self) -> dict[str, np.ndarray]:
        return {name: np.array(p.detach().cpu().numpy(), order="C") for name, p in zip(self.names, self.model.parameters(), strict=True)}

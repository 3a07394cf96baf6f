"""PyTorch: the network `pytorch` from its listing, the others as nn.Sequential."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tinynet.compare.networks import Conv, Dense, Flatten, MaxPool, Network
from tinynet.compare.peers import convert
from tinynet.compare.peers.base import SGD, Peer, PeerInfo, State


def limit_threads(torch: Any, threads: int) -> dict[str, str]:
    """Operators and autograd's backward share one pool on a CPU; the inter-op pool is for torch.jit.fork alone."""
    torch.set_num_threads(threads)
    return {
        "threads within an operator": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": "on" if torch.backends.mkldnn.is_available() else "off",
    }


class PyTorchPeer(Peer):
    """Parameters are in canonical form already; `channels_last` is the memory format of images and weights.

    `compile` keeps the contiguous format: Inductor chooses layouts itself, and channels last
    measured the same there.
    """

    name = "pytorch"
    module = "torch"
    install = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
    modes = ("eager", "channels_last", "compile")
    layout = "NCHW"
    environment = {
        "CUDA_VISIBLE_DEVICES": "-1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compiling processes beside what is timed
    }

    network: Network | None = None

    def start(self, threads: int) -> PeerInfo:
        import torch

        self.torch = torch
        return PeerInfo("PyTorch", torch.__version__, limit_threads(torch, threads))

    def build(self, network: Network, mode: str) -> None:
        convert.check_mode(self, mode)
        torch = self.torch
        self.memory_format = torch.channels_last if mode == "channels_last" else torch.contiguous_format
        self.model = self._net(network).to(memory_format=self.memory_format)
        self.call = self.model
        if mode == "compile":
            # Code compiled for an earlier network of the same class counts against the limit of
            # recompilations, beyond which torch.compile would go on uncompiled with no more than a
            # warning; one network takes up to 9 (one image, the first batch size, any other size;
            # each for inference, for training, and with the gradient of the images).
            torch.compiler.reset()
            torch._dynamo.config.recompile_limit = 16
            self.call = torch.compile(self.model, fullgraph=True)
        self.loss = self._loss(network.output)
        self.optimizer: tuple[SGD, Any] | None = None
        self.network = network

    def _net(self, network: Network) -> Any:
        if network.name == "pytorch":
            from tinynet.compare.peers.listings import pytorch_listing

            return pytorch_listing.Net()
        nn = self.torch.nn
        layers = OrderedDict()
        for layer in network.layers:
            if isinstance(layer, Conv):
                layers[layer.name] = nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding
                )
            elif isinstance(layer, Dense):
                layers[layer.name] = nn.Linear(layer.in_features, layer.out_features)
            elif isinstance(layer, MaxPool):
                layers[f"pool{len(layers)}"] = nn.MaxPool2d(layer.size)
            elif isinstance(layer, Flatten):
                layers["flatten"] = nn.Flatten()
            else:
                layers[f"relu{len(layers)}"] = nn.ReLU()
        if network.output == "probabilities":
            layers["softmax"] = nn.Softmax(dim=-1)
        elif network.output == "log_probabilities":
            layers["log_softmax"] = nn.LogSoftmax(dim=-1)
        return nn.Sequential(layers)

    def _loss(self, output: str) -> Callable[[Any, Any], Any]:
        nn = self.torch.nn
        if output == "logits":
            return nn.CrossEntropyLoss()
        if output == "log_probabilities":
            from tinynet.compare.peers.listings import pytorch_listing

            return pytorch_listing.criterion
        # PyTorch has no cross-entropy of probabilities: this is Keras's, with its clipping.
        nll = nn.NLLLoss()
        return lambda p, y: nll(p.clamp(1e-7, 1 - 1e-7).log(), y)

    def set_state(self, state: State) -> None:
        network = convert.check_built(self, self.network)
        convert.check_state(self, network, state)
        self.model.load_state_dict({name: self.torch.tensor(array) for name, array in state.items()})
        self.optimizer = None

    def get_state(self) -> dict[str, np.ndarray]:
        convert.check_built(self, self.network)
        return {name: np.array(p.numpy(), order="C") for name, p in self.model.state_dict().items()}

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.array(self.timed_forward(self._batch(x, None))())

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        images, classes = self.prepare(x, y)
        images.requires_grad_()
        self.model.zero_grad()
        loss = self.loss(self.call(images), classes)
        loss.backward()
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        gradients["input"] = images.grad
        return loss.item(), {name: np.array(g.numpy(), order="C") for name, g in gradients.items()}

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        convert.check_classes(self, x, y)
        return self._batch(x, y)

    def _batch(self, x: np.ndarray, y: np.ndarray | None) -> tuple[Any, Any]:
        convert.check_built(self, self.network)
        convert.check_images(self, x)
        images = self.torch.tensor(x).contiguous(memory_format=self.memory_format)
        return images, None if y is None else self.torch.tensor(y)

    def timed_forward(self, batch: tuple[Any, Any]) -> Callable[[], Any]:
        torch, call, (images, _) = self.torch, self.call, batch

        def forward() -> Any:
            with torch.inference_mode():
                return call(images)

        return forward

    def timed_train_step(self, batch: tuple[Any, Any], optimizer: SGD) -> Callable[[], float]:
        call, loss_of, (images, classes) = self.call, self.loss, batch
        sgd = self._sgd(optimizer)

        def step() -> float:
            sgd.zero_grad()
            loss = loss_of(call(images), classes)
            loss.backward()
            sgd.step()
            return loss.item()

        return step

    def _sgd(self, optimizer: SGD) -> Any:
        """The optimiser of the last step if its settings are the same; a new one starts from velocities 0."""
        if self.optimizer is None or self.optimizer[0] != optimizer:
            sgd = self.torch.optim.SGD(
                self.model.parameters(), optimizer.learning_rate, optimizer.momentum, fused=True
            )  # fused: one call for all parameters, up to a fifth of a step faster here
            self.optimizer = optimizer, sgd
        return self.optimizer[1]

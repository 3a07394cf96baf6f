"""tinynet as a peer: the article's three listings in its three styles, on the CPU."""

from __future__ import annotations

import importlib

import numpy as np

import tinynet
from tinynet import functional as F
from tinynet import nn
from tinynet.compare.networks import Network
from tinynet.compare.peers.base import SGD, Peer, PeerInfo
from tinynet.compare.peers.convert import check_built, check_classes, check_images, check_mode, check_state, images_from_nhwc, images_to_nhwc


class FunctionalNet(nn.Module):
    """The functional listing with its lists of weights, as a module; images are NHWC."""

    def __init__(self, network: Network, conv_net):
        for name, shape in network.parameters().items():
            setattr(self, name.replace(".", "_"), nn.Parameter(np.zeros(shape, np.float32)))
        self.conv_net = conv_net

    def forward(self, x):
        parameters = list(self.parameters())
        return self.conv_net(x, parameters[0::2], parameters[1::2])


def make_model(network: Network) -> nn.Module:
    """The article's network in its own style on tinynet; network `tensorflow` takes NHWC images, the others NCHW."""
    listings = "tinynet.compare.peers.listings"
    if network.name == "tensorflow":
        return FunctionalNet(network, importlib.import_module(f"{listings}.tinynet_functional").conv_net)
    style = "tinynet_sequential" if network.name == "keras" else "tinynet_module"
    # the listing's last line makes the model: run it again for a new one
    return importlib.reload(importlib.import_module(f"{listings}.{style}")).model


def loss_of(network: Network, output, y):
    """The mean cross-entropy, from whatever the network returns."""
    if network.output == "logits":
        return F.cross_entropy(output, y)
    if network.output == "probabilities":
        return F.nll_loss(output.log(), y)
    return F.nll_loss(output, y)


class TinynetPeer(Peer):
    name = "tinynet"
    module = "numba"
    install = "pip install numba"
    modes = ("eager", "compiled")
    layout = "NCHW"  # the functional listing, network `tensorflow`, runs in NHWC

    def __init__(self):
        self.network: Network | None = None

    def start(self, threads: int) -> PeerInfo:
        import numba

        from tinynet.dispatch import variants

        numba.set_num_threads(threads)
        details = {"numba": numba.__version__, "threads": str(numba.get_num_threads()), "kernels": ", ".join(f"{name}: cpu.{variants(name, 'cpu')[0]}" for name in ("conv2d", "max_pool2d", "matmul"))}
        return PeerInfo("tinynet", tinynet.__version__, details)

    def build(self, network: Network, mode: str) -> None:
        check_mode(self, mode)
        self.network = network
        self.channels_last = network.name == "tensorflow"
        self.model = make_model(network)
        self.fast = tinynet.compile(self.model) if mode == "compiled" else self.model
        self.compiled = mode == "compiled"
        self.parameters = list(self.model.parameters())
        self.optimizer = None

    def set_state(self, state) -> None:
        network = check_built(self, self.network)
        check_state(self, network, state)
        for (name, _), parameter in zip(network.parameters().items(), self.parameters, strict=True):
            with tinynet.guard.writable(parameter) as array:
                array[...] = self._reorder(name, state[name], inward=True)
        self.optimizer = None

    def get_state(self) -> dict[str, np.ndarray]:
        return self._canonical([p.data for p in self.parameters])

    def _canonical(self, arrays) -> dict[str, np.ndarray]:
        network = check_built(self, self.network)
        return {name: np.array(self._reorder(name, a, inward=False)) for name, a in zip(network.parameters(), arrays, strict=True)}

    def _reorder(self, name: str, array: np.ndarray, inward: bool) -> np.ndarray:
        """Only a dense layer after an NHWC flatten reads its features in another order than the canonical one."""
        dense, image = self.network.flattened
        if not self.channels_last or name != f"{dense}.weight":
            return array
        c, h, w = image.channels, image.rows, image.columns
        if inward:
            return array.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(array.shape)
        return array.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(array.shape)

    def _images(self, x: np.ndarray):
        check_images(self, x)
        return tinynet.tensor(images_to_nhwc(x) if self.channels_last else x)

    def forward(self, x: np.ndarray) -> np.ndarray:
        check_built(self, self.network)
        images = self._images(x)
        with tinynet.no_grad():
            return self.fast(images).numpy()

    def loss_and_gradients(self, x, y):
        check_built(self, self.network)
        check_classes(self, x, y)
        images = self._images(x)
        images.requires_grad = True
        self._zero_grad()
        loss = loss_of(self.network, self.fast(images), y)
        loss.backward()
        gradients = self._canonical([p.grad for p in self.parameters])
        gradients["input"] = images_from_nhwc(images.grad) if self.channels_last else images.grad
        return loss.item(), gradients

    def _zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def prepare(self, x, y):
        check_built(self, self.network)
        check_classes(self, x, y)
        return self._images(x), tinynet.tensor(y)

    def timed_forward(self, batch):
        images, _ = batch

        def call():
            with tinynet.no_grad():
                return self.fast(images).numpy()

        return call

    def timed_train_step(self, batch, optimizer: SGD):
        images, classes = batch
        if self.optimizer is None or self.settings != optimizer:
            self.settings, self.optimizer = optimizer, tinynet.optim.SGD(self.parameters, optimizer.learning_rate, momentum=optimizer.momentum)
            self.step = tinynet.compile(self._train) if self.compiled else self._train
        return lambda: self.step(images, classes).item()

    def _train(self, images, classes):
        self.optimizer.zero_grad()
        loss = loss_of(self.network, self.model(images), classes)
        loss.backward()
        self.optimizer.step()
        return loss

"""JAX as a contestant: jax.jit of plain jax.numpy and jax.lax, SGD written by hand; images are NHWC, XLA's best on a CPU."""

from __future__ import annotations

import numpy as np

from tinynet.bench.peers.base import State, Trainer
from tinynet.bench.zoo import AvgPool, Conv, Dense, Flatten, MaxPool, Network
from tinynet.compare.peers.convert import images_to_nhwc, state_from_nhwc, state_to_nhwc
from tinynet.compare.peers.keras_peer import KerasJaxPeer, limit_processors


class Jax(Trainer):
    environment = KerasJaxPeer.environment

    def start(self, threads: int) -> str:
        limit_processors(threads)
        import jax

        self.jax = jax
        return f"JAX {jax.__version__}"

    def build(self, network: Network, state: State) -> None:
        self.network = network
        self.parameters = [self.jax.numpy.asarray(a) for a in state_to_nhwc(network, state)]

    def _predict(self, parameters, x):
        lax, jnp, parameters = self.jax.lax, self.jax.numpy, iter(parameters)
        for step in self.network.steps():
            layer = step.layer
            if isinstance(layer, Conv):
                weight, bias = next(parameters), next(parameters)
                strides, padding = (layer.stride, layer.stride), [(layer.padding, layer.padding)] * 2
                x = bias + lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=layer.groups)
            elif isinstance(layer, Dense):
                weight, bias = next(parameters), next(parameters)
                x = x @ weight + bias
            elif isinstance(layer, MaxPool):
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, layer.size, layer.size, 1), (1, layer.stride, layer.stride, 1), "VALID")
            elif isinstance(layer, AvgPool):
                window = (1, layer.size, layer.size, 1)
                x = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / layer.size**2
            else:
                x = x.reshape(len(x), -1) if isinstance(layer, Flatten) else self.jax.nn.relu(x)
        return x

    def forward(self, x: np.ndarray):
        predict, images = self.jax.jit(self._predict), self.jax.numpy.asarray(images_to_nhwc(x))
        return lambda: np.asarray(predict(self.parameters, images))

    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float):
        jax, jnp = self.jax, self.jax.numpy

        def loss_of(parameters, x, y):
            return -jnp.take_along_axis(jax.nn.log_softmax(self._predict(parameters, x)), y[:, None], axis=1).mean()

        def step(parameters, x, y):
            loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
            return loss, [p - learning_rate * g for p, g in zip(parameters, gradients, strict=True)]

        call, images, classes = jax.jit(step, donate_argnums=0), jnp.asarray(images_to_nhwc(x)), jnp.asarray(y)

        def run() -> float:
            loss, self.parameters = call(self.parameters, images, classes)
            jax.block_until_ready(self.parameters)
            return float(loss)

        return run

    def state(self) -> dict[str, np.ndarray]:
        return state_from_nhwc(self.network, [np.asarray(p) for p in self.parameters])

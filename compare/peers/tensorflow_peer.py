"""TensorFlow: the network `tensorflow` from its listing, the others in the same functional style."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinynet.compare.networks import Conv, Dense, Flatten, MaxPool, Network
from tinynet.compare.peers import convert
from tinynet.compare.peers.base import SGD, Peer, PeerInfo, State


def limit_threads(tf: Any, threads: int) -> dict[str, str]:
    """One operator at a time on `threads` threads: these networks are chains, in which no two operators could overlap."""
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:  # it can't be set once TensorFlow has run
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return {
        "threads within an operator": str(tf.config.threading.get_intra_op_parallelism_threads()),
        "operators at a time": str(tf.config.threading.get_inter_op_parallelism_threads()),
    }


class TensorFlowPeer(Peer):
    """Parameters are tf.Variables in TensorFlow's layout, in the order of the layers: weight, bias, weight, ..."""

    name = "tensorflow"
    module = "tensorflow"
    install = "pip install tensorflow-cpu"
    modes = ("eager", "graph", "xla")
    layout = "NHWC"
    environment = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

    network: Network | None = None

    def start(self, threads: int) -> PeerInfo:
        import tensorflow as tf

        self.tf = tf
        return PeerInfo("TensorFlow", tf.__version__, limit_threads(tf, threads))

    def build(self, network: Network, mode: str) -> None:
        convert.check_mode(self, mode)
        from tinynet.compare.peers.listings import tensorflow_listing

        tf = self.tf
        self.listing = tensorflow_listing
        zeros = {name: np.zeros(shape, np.float32) for name, shape in network.parameters().items()}
        self.variables = [tf.Variable(array) for array in convert.state_to_nhwc(network, zeros)]
        self.velocities = [tf.Variable(tf.zeros_like(variable)) for variable in self.variables]
        self.optimizer: SGD | None = None
        # Each batch size is traced (and for XLA compiled) for itself, at its first call.
        wrap = {"eager": lambda f: f, "graph": tf.function, "xla": partial(tf.function, jit_compile=True)}[mode]
        self.predict, self.gradients, self.step = map(wrap, (self._predict, self._gradients, self._step))
        self.network = network

    def _predict(self, x: Any) -> Any:
        weights, biases = self.variables[0::2], self.variables[1::2]
        if self.network.name == "tensorflow":
            return self.listing.conv_net(x, weights, biases)
        tf = self.tf
        parameters = iter(zip(weights, biases, strict=True))
        for layer in self.network.layers:
            if isinstance(layer, Conv):
                weight, bias = next(parameters)
                x = tf.nn.bias_add(tf.nn.conv2d(x, weight, strides=1, padding=layer.padding.upper()), bias)
            elif isinstance(layer, Dense):
                weight, bias = next(parameters)
                x = tf.add(tf.matmul(x, weight), bias)
            elif isinstance(layer, MaxPool):
                x = tf.nn.max_pool(x, ksize=layer.size, strides=layer.size, padding="VALID")
            elif isinstance(layer, Flatten):
                x = tf.reshape(x, [-1, layer.channels * layer.rows * layer.columns])
            else:
                x = tf.nn.relu(x)
        last = {"logits": tf.identity, "probabilities": tf.nn.softmax, "log_probabilities": tf.nn.log_softmax}
        return last[self.network.output](x)

    def _loss(self, output: Any, y: Any) -> Any:
        tf = self.tf
        if self.network.output == "logits":
            return self.listing.cost(output, y)
        if self.network.output == "probabilities":
            # TensorFlow has no cross-entropy of probabilities: this is Keras's, with its clipping.
            output = tf.math.log(tf.clip_by_value(output, 1e-7, 1 - 1e-7))
        return -tf.reduce_mean(tf.reduce_sum(y * output, axis=1))

    def _gradients(self, x: Any, y: Any) -> tuple[Any, list[Any], Any]:
        with self.tf.GradientTape() as tape:
            tape.watch(x)
            loss = self._loss(self._predict(x), y)
        *parameters, images = tape.gradient(loss, [*self.variables, x])
        return loss, parameters, images

    def _step(self, x: Any, y: Any, learning_rate: float, momentum: float) -> Any:
        with self.tf.GradientTape() as tape:
            loss = self._loss(self._predict(x), y)
        gradients = tape.gradient(loss, self.variables)
        for variable, velocity, gradient in zip(self.variables, self.velocities, gradients, strict=True):
            # The kernel behind tf.compat.v1.train.MomentumOptimizer: one pass over the memory, not four.
            self.tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle, accum=velocity.handle, lr=learning_rate, grad=gradient, momentum=momentum
            )
        return loss

    def set_state(self, state: State) -> None:
        network = convert.check_built(self, self.network)
        convert.check_state(self, network, state)
        for variable, array in zip(self.variables, convert.state_to_nhwc(network, state), strict=True):
            variable.assign(array)
        self._reset_velocities()

    def _reset_velocities(self) -> None:
        for velocity in self.velocities:
            velocity.assign(self.tf.zeros_like(velocity))

    def get_state(self) -> dict[str, np.ndarray]:
        network = convert.check_built(self, self.network)
        return convert.state_from_nhwc(network, [variable.numpy() for variable in self.variables])

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.timed_forward((self._images(x), None))()

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        loss, parameters, images = self.gradients(*self.prepare(x, y))
        gradients = convert.state_from_nhwc(self.network, [gradient.numpy() for gradient in parameters])
        gradients["input"] = convert.images_from_nhwc(images.numpy())
        return float(loss), gradients

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        images = self._images(x)
        convert.check_classes(self, x, y)
        return images, self.tf.constant(convert.one_hot(y))

    def _images(self, x: np.ndarray) -> Any:
        convert.check_built(self, self.network)
        convert.check_images(self, x)
        return self.tf.constant(convert.images_to_nhwc(x))

    def timed_forward(self, batch: tuple[Any, Any]) -> Callable[[], np.ndarray]:
        predict, (images, _) = self.predict, batch
        return lambda: predict(images).numpy()

    def timed_train_step(self, batch: tuple[Any, Any], optimizer: SGD) -> Callable[[], float]:
        if optimizer != self.optimizer:  # as a new optimiser would: from velocities 0
            self._reset_velocities()
            self.optimizer = optimizer
        step, (images, classes) = self.step, batch
        learning_rate, momentum = optimizer.learning_rate, optimizer.momentum
        return lambda: float(step(images, classes, learning_rate, momentum))

"""Keras as a contestant, on each of its backends: one compiled call of the model, and model.train_on_batch.

What a Keras user's compiled call is differs between the backends (model.predict goes through an input pipeline for
each call: a measure of that, not of the network). Starting and thread limits are compare's.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from tinynet.bench.peers.base import State, Trainer
from tinynet.bench.zoo import AvgPool, Conv, Dense, Flatten, MaxPool, Network, ReLU
from tinynet.compare.peers.convert import images_to_nhwc, state_from_nhwc, state_to_nhwc
from tinynet.compare.peers.keras_peer import KerasJaxPeer, KerasPeer, KerasTensorFlowPeer, KerasTorchPeer


class Keras(Trainer):
    """What is the same on every backend; a subclass names its peer in compare/ and makes one compiled call."""

    peer: type[KerasPeer]

    def start(self, threads: int) -> str:
        backend = self.peer()
        info = backend.start(threads)
        self.keras, self.tensor = backend.keras, backend.tensor
        return f"{info.framework} {info.version} on {backend.backend}"

    @abstractmethod
    def _compiled_call(self):
        """images -> logits."""

    def build(self, network: Network, state: State) -> None:
        self.network = network
        layers, model = self.keras.layers, self.keras.Sequential()
        channels, rows, columns = network.image
        model.add(self.keras.Input((rows, columns, channels)))
        steps = list(network.steps())
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            layer = step.layer
            activation = "relu" if following and isinstance(following.layer, ReLU) else None
            if isinstance(layer, Conv):
                if layer.padding and not layer.same:
                    model.add(layers.ZeroPadding2D(layer.padding))
                options = dict(strides=layer.stride, padding="same" if layer.same else "valid", activation=activation)
                model.add(layers.DepthwiseConv2D(layer.kernel_size, **options) if step.depthwise else layers.Conv2D(layer.out_channels, layer.kernel_size, **options))
            elif isinstance(layer, Dense):
                model.add(layers.Dense(layer.out_features, activation=activation))
            elif isinstance(layer, MaxPool):
                model.add(layers.MaxPool2D(layer.size, layer.stride))
            elif isinstance(layer, AvgPool):
                model.add(layers.AveragePooling2D(layer.size))
            elif isinstance(layer, Flatten):
                model.add(layers.Flatten())
        shapes = [w.shape for w in model.get_weights()]  # of a depthwise convolution (kh, kw, channels, 1)
        model.set_weights([a.reshape(shape) for a, shape in zip(state_to_nhwc(network, state), shapes, strict=True)])
        self.model = model

    def forward(self, x: np.ndarray):
        call, to_numpy, images = self._compiled_call(), self.keras.ops.convert_to_numpy, self.tensor(images_to_nhwc(x))
        return lambda: to_numpy(call(images))

    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float):
        self.model.compile(
            optimizer=self.keras.optimizers.SGD(learning_rate),
            loss=self.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=self.mode in ("xla", "jit"),
        )
        model, images, classes = self.model, self.tensor(images_to_nhwc(x)), self.tensor(y)

        def step() -> float:
            model.reset_metrics()  # or the loss that comes back is the mean of all steps so far
            return float(model.train_on_batch(images, classes))

        return step

    def state(self) -> dict[str, np.ndarray]:
        shapes = [a.shape for a in state_to_nhwc(self.network, {name: np.empty(shape) for name, shape in self.network.parameters().items()})]
        return state_from_nhwc(self.network, [w.reshape(shape) for w, shape in zip(self.model.get_weights(), shapes, strict=True)])


class KerasTensorFlow(Keras):
    peer, environment = KerasTensorFlowPeer, KerasTensorFlowPeer.environment

    def _compiled_call(self):
        import tensorflow as tf

        model = self.model
        return tf.function(lambda x: model(x, training=False), jit_compile=self.mode == "xla")


class KerasJax(Keras):
    peer, environment = KerasJaxPeer, KerasJaxPeer.environment

    def _compiled_call(self):
        import jax

        model = self.model
        predict = jax.jit(lambda parameters, x: model.stateless_call(parameters, [], x, training=False)[0])
        return lambda x: predict([v.value for v in model.trainable_variables], x)


class KerasTorch(Keras):
    peer, environment = KerasTorchPeer, KerasTorchPeer.environment

    def _compiled_call(self):
        import torch

        model = self.model

        def predict(x):
            with torch.no_grad():
                return model(x, training=False)

        return predict

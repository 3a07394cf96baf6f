"""Keras on each of its backends: the network `keras` from its listing, the others as Sequential.

The backend of a process is fixed when Keras is imported, so each one is a peer of its own. What
differs between them is how a Keras user reaches one compiled call of the model, and its gradient;
the training step is model.train_on_batch everywhere. (model.predict goes through an input
pipeline for each call: a measure of that, not of the network.) Keras keeps the velocity as
-learning_rate * v: the same steps, as long as the learning rate is constant.
"""

from __future__ import annotations

import importlib
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from tinynet.compare.networks import IMAGE, Conv, Dense, Flatten, MaxPool, Network, ReLU
from tinynet.compare.peers import convert
from tinynet.compare.peers.base import SGD, Peer, PeerInfo, State
from tinynet.compare.peers.tensorflow_peer import limit_threads

_HIDDEN_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def limit_processors(threads: int) -> int | None:
    """XLA's CPU client takes its thread count from the machine, or from the processors it may run on; returns their number."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    return len(os.sched_getaffinity(0))


class KerasPeer(Peer):
    """All that is the same on every backend; a subclass says how tensors, one call and its gradient are made."""

    module = "keras"
    layout = "NHWC"
    backend: str  # as in KERAS_BACKEND
    network: Network | None = None

    @abstractmethod
    def _start_backend(self, threads: int) -> dict[str, str]:
        """Imports the backend and limits its threads; returns what is seen of it."""

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Any:
        """The backend's own."""

    @abstractmethod
    def _build_calls(self) -> None:
        """Sets self.predict (images -> output) and self.gradients (images, classes -> loss, gradients of the
        parameters in order and of the images), compiled as the mode says."""

    def start(self, threads: int) -> PeerInfo:
        details = self._start_backend(threads)
        import keras

        if keras.backend.backend() != self.backend:
            raise RuntimeError(
                f"{self.name}: Keras runs on {keras.backend.backend()}, expected {self.backend}; "
                f"set {self.name}'s `environment` before anything imports Keras"
            )
        # Over what the user's ~/.keras/keras.json says.
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        self.keras = keras
        return PeerInfo("Keras", keras.__version__, {"backend": self.backend, **details})

    def build(self, network: Network, mode: str) -> None:
        convert.check_mode(self, mode)
        self.mode = mode
        if network.name == "keras":
            # the listing makes its model when it is imported: run it again for a new one
            self.model = importlib.reload(importlib.import_module("tinynet.compare.peers.listings.keras_listing")).model
        else:
            self.model = self._sequential(network)
        self.network = network
        self.loss = self._make_loss(network)
        self.optimizer: SGD | None = None
        self._build_calls()

    def _make_loss(self, network: Network) -> Callable:
        losses, ops = self.keras.losses, self.keras.ops
        return {
            "logits": losses.CategoricalCrossentropy(from_logits=True),
            "probabilities": losses.CategoricalCrossentropy(),
            "log_probabilities": lambda y, output: -ops.mean(ops.sum(y * output, axis=-1)),
        }[network.output]

    def _sequential(self, network: Network) -> Any:
        layers = self.keras.layers
        model = self.keras.Sequential()
        model.add(self.keras.Input((IMAGE[1], IMAGE[2], IMAGE[0])))
        ends = {"logits": None, "probabilities": "softmax", "log_probabilities": "log_softmax"}
        for layer, following in zip(network.layers, (*network.layers[1:], None), strict=True):
            activation = "relu" if isinstance(following, ReLU) else None if following else ends[network.output]
            if isinstance(layer, Conv):
                model.add(
                    layers.Conv2D(layer.out_channels, layer.kernel_size, padding=layer.padding, activation=activation)
                )
            elif isinstance(layer, Dense):
                model.add(layers.Dense(layer.out_features, activation=activation))
            elif isinstance(layer, MaxPool):
                model.add(layers.MaxPool2D(layer.size))
            elif isinstance(layer, Flatten):
                model.add(layers.Flatten())
        return model

    def set_state(self, state: State) -> None:
        network = convert.check_built(self, self.network)
        convert.check_state(self, network, state)
        self.model.set_weights(convert.state_to_nhwc(network, state))
        if self.optimizer is not None:
            for variable in self.model.optimizer.variables[2:]:  # after its iterations and learning rate: the velocities
                variable.assign(np.zeros(variable.shape, np.float32))

    def get_state(self) -> dict[str, np.ndarray]:
        network = convert.check_built(self, self.network)
        return convert.state_from_nhwc(network, self.model.get_weights())

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.timed_forward((self._images(x), None))()

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        loss, parameters, images = self.gradients(*self.prepare(x, y))
        to_numpy = self.keras.ops.convert_to_numpy
        gradients = convert.state_from_nhwc(self.network, [to_numpy(g) for g in parameters])
        gradients["input"] = convert.images_from_nhwc(to_numpy(images))
        return float(loss), gradients

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        images = self._images(x)
        convert.check_classes(self, x, y)
        return images, self.tensor(convert.one_hot(y))

    def _images(self, x: np.ndarray) -> Any:
        convert.check_built(self, self.network)
        convert.check_images(self, x)
        return self.tensor(convert.images_to_nhwc(x))

    def timed_forward(self, batch: tuple[Any, Any]) -> Callable[[], np.ndarray]:
        predict, to_numpy, (images, _) = self.predict, self.keras.ops.convert_to_numpy, batch
        return lambda: to_numpy(predict(images))

    def timed_train_step(self, batch: tuple[Any, Any], optimizer: SGD) -> Callable[[], float]:
        if optimizer != self.optimizer:  # compiling makes a new optimiser: velocities 0
            self.model.compile(
                optimizer=self.keras.optimizers.SGD(optimizer.learning_rate, momentum=optimizer.momentum),
                loss=self.loss,
                jit_compile=self.mode in ("xla", "jit"),
            )
            self.optimizer = optimizer
        model, (images, classes) = self.model, batch

        def step() -> float:
            model.reset_metrics()  # or the loss that comes back is the mean of all steps so far
            return float(model.train_on_batch(images, classes))

        return step


class KerasTensorFlowPeer(KerasPeer):
    name = "keras"
    install = "pip install keras tensorflow-cpu"
    modes = ("graph", "xla")
    backend = "tensorflow"
    environment = {**_HIDDEN_GPU, "KERAS_BACKEND": "tensorflow"}

    def _start_backend(self, threads):
        import tensorflow as tf

        self.tf = tf
        return {"TensorFlow": tf.__version__, **limit_threads(tf, threads)}

    def tensor(self, array):
        return self.tf.constant(array)

    def _build_calls(self):
        tf, model = self.tf, self.model

        def gradients(x, y):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = self.loss(y, model(x, training=True))
            *parameters, images = tape.gradient(loss, [*[v.value for v in model.trainable_variables], x])
            return loss, parameters, images

        xla = self.mode == "xla"
        self.predict = tf.function(lambda x: model(x, training=False), jit_compile=xla)
        self.gradients = tf.function(gradients, jit_compile=xla)


class KerasJaxPeer(KerasPeer):
    name = "keras-jax"
    install = "pip install keras jax"
    modes = ("jit",)
    backend = "jax"
    environment = {**_HIDDEN_GPU, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}

    def _start_backend(self, threads):
        import jax

        self.jax = jax
        return {"JAX": jax.__version__, "processors": str(limit_processors(threads))}

    def tensor(self, array):
        return self.jax.numpy.asarray(array)

    def _build_calls(self):
        jax, model = self.jax, self.model

        def call(parameters, x, training):
            return model.stateless_call(parameters, [], x, training=training)[0]

        def loss(parameters, x, y):
            return self.loss(y, call(parameters, x, True))

        predict = jax.jit(lambda parameters, x: call(parameters, x, False))
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

        def current():
            return [v.value for v in model.trainable_variables]

        def gradients(x, y):
            value, (parameters, images) = both(current(), x, y)
            return value, parameters, images

        self.predict = lambda x: predict(current(), x)
        self.gradients = gradients


class KerasTorchPeer(KerasPeer):
    name = "keras-torch"
    install = "pip install keras torch"
    modes = ("eager",)
    backend = "torch"
    environment = {**_HIDDEN_GPU, "KERAS_BACKEND": "torch"}

    def _start_backend(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        return {"PyTorch": torch.__version__, "threads": str(torch.get_num_threads())}

    def tensor(self, array):
        return self.torch.from_numpy(array)

    def _build_calls(self):
        torch, model = self.torch, self.model

        def predict(x):
            with torch.no_grad():
                return model(x, training=False)

        def gradients(x, y):
            images = x.detach().requires_grad_(True)
            loss = self.loss(y, model(images, training=True))
            *parameters, images = torch.autograd.grad(loss, [*[v.value for v in model.trainable_variables], images])
            return loss.item(), parameters, images

        self.predict, self.gradients = predict, gradients

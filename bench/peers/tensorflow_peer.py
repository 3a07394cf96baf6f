"""TensorFlow as a contestant: tf.function, as a graph or through XLA; images are NHWC, as its CPU kernels want them."""

from __future__ import annotations

import numpy as np

from tinynet.bench.peers.base import State, Trainer
from tinynet.bench.zoo import AvgPool, Conv, Dense, Flatten, MaxPool, Network
from tinynet.compare.peers.convert import images_to_nhwc, state_from_nhwc, state_to_nhwc
from tinynet.compare.peers.tensorflow_peer import TensorFlowPeer, limit_threads


class TensorFlow(Trainer):
    environment = TensorFlowPeer.environment

    def start(self, threads: int) -> str:
        import tensorflow as tf

        self.tf = tf
        limit_threads(tf, threads)
        if self.device == "cuda":
            if not tf.config.list_physical_devices("GPU"):
                raise RuntimeError(f"TensorFlow {tf.__version__} sees no GPU; it may be a build for CPUs: pip install 'tensorflow[and-cuda]'")
            tf.config.experimental.enable_tensor_float_32_execution(False)
        return f"TensorFlow {tf.__version__}"

    def build(self, network: Network, state: State) -> None:
        self.network = network
        depthwise = [step.depthwise for step in network.steps() for _ in step.parameters]
        arrays = state_to_nhwc(network, state)
        # TensorFlow has a kernel of its own for depthwise convolution, whose weights are (kh, kw, channels, 1)
        self.variables = [self.tf.Variable(a.swapaxes(2, 3) if is_depthwise and a.ndim == 4 else a) for a, is_depthwise in zip(arrays, depthwise, strict=True)]

    def _predict(self, x):
        tf, parameters = self.tf, iter(self.variables)
        for step in self.network.steps():
            layer = step.layer
            if isinstance(layer, Conv):
                weight, bias = next(parameters), next(parameters)
                sides = [layer.padding, layer.padding]
                padding = "SAME" if layer.same else [[0, 0], sides, sides, [0, 0]]  # a depthwise kernel with numbers ends the process (2.21)
                if step.depthwise:
                    x = tf.nn.depthwise_conv2d(x, weight, strides=[1, layer.stride, layer.stride, 1], padding=padding)
                else:
                    x = tf.nn.conv2d(x, weight, strides=layer.stride, padding=padding)
                x = tf.nn.bias_add(x, bias)
            elif isinstance(layer, Dense):
                weight, bias = next(parameters), next(parameters)
                x = tf.nn.bias_add(tf.matmul(x, weight), bias)
            elif isinstance(layer, MaxPool):
                x = tf.nn.max_pool2d(x, layer.size, layer.stride, "VALID")
            elif isinstance(layer, AvgPool):
                x = tf.nn.avg_pool2d(x, layer.size, layer.size, "VALID")
            else:
                x = tf.reshape(x, [-1, step.after[0]]) if isinstance(layer, Flatten) else tf.nn.relu(x)
        return x

    def _compile(self, function):
        return self.tf.function(function, jit_compile=self.mode == "xla")

    def forward(self, x: np.ndarray):
        predict, images = self._compile(self._predict), self.tf.constant(images_to_nhwc(x))
        return lambda: predict(images).numpy()

    def training(self, x: np.ndarray, y: np.ndarray, learning_rate: float):
        tf = self.tf

        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, self._predict(x)))
            for variable, gradient in zip(self.variables, tape.gradient(loss, self.variables), strict=True):
                tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=learning_rate, delta=gradient)  # one pass over the memory
            return loss

        call, images, classes = self._compile(step), tf.constant(images_to_nhwc(x)), tf.constant(y)
        return lambda: float(call(images, classes))

    def state(self) -> dict[str, np.ndarray]:
        shapes = [a.shape for a in state_to_nhwc(self.network, {name: np.empty(shape) for name, shape in self.network.parameters().items()})]
        return state_from_nhwc(self.network, [v.numpy().reshape(shape) for v, shape in zip(self.variables, shapes, strict=True)])

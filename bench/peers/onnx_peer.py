"""ONNX Runtime as a contestant, forward alone: the graph is written node by node, its optimisations are all on."""

from __future__ import annotations

import numpy as np

from tinynet.bench.peers.base import Contestant, State
from tinynet.bench.zoo import AvgPool, Conv, Dense, Flatten, MaxPool, Network


class OnnxRuntime(Contestant):
    install = "pip install 'tinynet-engine[bench]'"

    def start(self, threads: int) -> str:
        import onnx
        import onnxruntime

        self.onnx, self.runtime, self.threads = onnx, onnxruntime, threads
        return f"ONNX Runtime {onnxruntime.__version__}"

    def build(self, network: Network, state: State) -> None:
        self.network, self.values = network, dict(state)

    def _graph(self, images: int) -> bytes:
        """The network for batches of `images`: a shape that is known lets more be settled beforehand."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        nodes, value = [], "images"
        for i, step in enumerate(self.network.steps()):
            layer, attributes = step.layer, {}
            if isinstance(layer, Conv):
                operator, attributes = "Conv", dict(kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2, pads=[layer.padding] * 4, group=layer.groups)
            elif isinstance(layer, Dense):
                operator, attributes = "Gemm", dict(transB=1)
            elif isinstance(layer, MaxPool):
                operator, attributes = "MaxPool", dict(kernel_shape=[layer.size] * 2, strides=[layer.stride] * 2)
            elif isinstance(layer, AvgPool):
                operator, attributes = "AveragePool", dict(kernel_shape=[layer.size] * 2, strides=[layer.size] * 2)
            else:
                operator = "Flatten" if isinstance(layer, Flatten) else "Relu"
            nodes.append(helper.make_node(operator, [value, *step.parameters], [f"value{i}"], **attributes))
            value, features = f"value{i}", step.after
        graph = helper.make_graph(
            nodes,
            self.network.name,
            [helper.make_tensor_value_info("images", kind, [images, *self.network.image])],
            [helper.make_tensor_value_info(value, kind, [images, *features])],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.values.items()],
        )
        # versions that every ONNX Runtime since 1.14 (2023) reads
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    def forward(self, x: np.ndarray):
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = self.runtime.InferenceSession(self._graph(len(x)), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": x})[0]

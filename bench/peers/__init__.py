"""The contestants of `tinynet bench networks`, and of `tinynet bench gpu`, by name. Nothing of a framework is imported until a contestant's `start`."""

from __future__ import annotations

from importlib import import_module

from tinynet.bench.peers.base import Contestant

# name -> module in this folder, class in it, mode
CONTESTANTS = {
    "tinynet-eager": ("tinynet_peer", "Tinynet", "eager"),
    "tinynet-compiled": ("tinynet_peer", "Tinynet", "strict"),
    "tinynet-winograd": ("tinynet_peer", "Tinynet", "winograd"),
    "torch-eager": ("pytorch_peer", "Torch", "eager"),
    "torch-channels_last": ("pytorch_peer", "Torch", "channels_last"),
    "torch-compile": ("pytorch_peer", "Torch", "compile"),
    "torch-compile-channels_last": ("pytorch_peer", "Torch", "compile channels_last"),
    "tensorflow-graph": ("tensorflow_peer", "TensorFlow", "graph"),
    "tensorflow-xla": ("tensorflow_peer", "TensorFlow", "xla"),
    "keras-tensorflow": ("keras_peer", "KerasTensorFlow", "graph"),
    "keras-tensorflow-xla": ("keras_peer", "KerasTensorFlow", "xla"),
    "keras-jax": ("keras_peer", "KerasJax", "jit"),
    "keras-torch": ("keras_peer", "KerasTorch", "eager"),
    "jax": ("jax_peer", "Jax", "jit"),
    "onnxruntime": ("onnx_peer", "OnnxRuntime", "all optimisations"),
}

ON_GPU = {
    "tinynet-cuda-eager": ("tinynet_peer", "Tinynet", "eager"),
    "tinynet-cuda-compiled": ("tinynet_peer", "Tinynet", "strict"),
    "torch-cuda-eager": ("pytorch_peer", "Torch", "eager"),
    "torch-cuda-channels_last": ("pytorch_peer", "Torch", "channels_last"),
    "torch-cuda-compile": ("pytorch_peer", "Torch", "compile"),
    "torch-cuda-graphs": ("pytorch_peer", "Torch", "compile graphs"),
    "tensorflow-cuda-graph": ("tensorflow_peer", "TensorFlow", "graph"),
    "tensorflow-cuda-xla": ("tensorflow_peer", "TensorFlow", "xla"),
}


def make(name: str) -> Contestant:
    found = ON_GPU.get(name) or CONTESTANTS.get(name)
    if found is None:
        raise ValueError(f"there is no contestant {name!r}; choose from {', '.join((*CONTESTANTS, *ON_GPU))}")
    module, cls, mode = found
    return getattr(import_module(f"tinynet.bench.peers.{module}"), cls)(mode, "cuda" if name in ON_GPU else "cpu")


__all__ = ["CONTESTANTS", "ON_GPU", "Contestant", "make"]

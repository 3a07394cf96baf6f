"""The contestants of `tinynet bench networks` by name. Nothing of a framework is imported until a contestant's `start`."""

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


def make(name: str) -> Contestant:
    if name not in CONTESTANTS:
        raise ValueError(f"there is no contestant {name!r}; choose from {', '.join(CONTESTANTS)}")
    module, cls, mode = CONTESTANTS[name]
    return getattr(import_module(f"tinynet.bench.peers.{module}"), cls)(mode)


__all__ = ["CONTESTANTS", "Contestant", "make"]

"""The peers by name. Nothing of a framework is imported until a peer's `start`."""

from __future__ import annotations

from importlib import import_module

from tinynet.compare.peers.base import SGD, Peer, PeerInfo

# name -> module in this folder, class in it
PEERS = {
    "tinynet": ("tinynet_peer", "TinynetPeer"),
    "tensorflow": ("tensorflow_peer", "TensorFlowPeer"),
    "keras": ("keras_peer", "KerasTensorFlowPeer"),
    "keras-jax": ("keras_peer", "KerasJaxPeer"),
    "keras-torch": ("keras_peer", "KerasTorchPeer"),
    "pytorch": ("pytorch_peer", "PyTorchPeer"),
}


def make(name: str) -> Peer:
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r}; choose from {', '.join(PEERS)}")
    module, cls = PEERS[name]
    return getattr(import_module(f"tinynet.compare.peers.{module}"), cls)()


__all__ = ["PEERS", "SGD", "Peer", "PeerInfo", "make"]

"""What the adapters share, in numpy alone: the layouts, and the checks that give clear errors.

TensorFlow and Keras hold images as NHWC, convolution weights as (kh, kw, in, out) and dense
weights as (in, out). Their flatten reads an image row by row with the channels innermost, so
the rows of the dense layer that follows are permuted too. All of it only moves numbers: the
round trip is exact.
"""

from __future__ import annotations

import numpy as np

from tinynet.compare.networks import CLASSES, IMAGE, Network
from tinynet.compare.peers.base import Peer, State


def images_to_nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def images_from_nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def state_to_nhwc(network: Network, state: State) -> list[np.ndarray]:
    """Canonical parameters, in the order of the layers, as an NHWC framework holds them."""
    flattened, image = network.flattened
    arrays = []
    for name in network.parameters():
        array = state[name]
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif name == f"{flattened}.weight":
            array = array.reshape(-1, image.channels, image.rows, image.columns)
            array = array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        elif array.ndim == 2:
            array = array.T
        arrays.append(np.ascontiguousarray(array))
    return arrays


def state_from_nhwc(network: Network, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of state_to_nhwc, for parameters and for their gradients; always copies."""
    flattened, image = network.flattened
    state = {}
    for (name, shape), array in zip(network.parameters().items(), arrays, strict=True):
        if len(shape) == 4:
            array = array.transpose(3, 2, 0, 1)
        elif name == f"{flattened}.weight":
            array = array.reshape(image.rows, image.columns, image.channels, -1).transpose(3, 2, 0, 1).reshape(shape)
        elif len(shape) == 2:
            array = array.T
        state[name] = np.array(array, order="C")
    return state


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[y]


def check_mode(peer: Peer, mode: str) -> None:
    if mode not in peer.modes:
        raise ValueError(f"{peer.name}: there is no mode {mode!r}; choose from {', '.join(peer.modes)}")


def check_built(peer: Peer, network: Network | None) -> Network:
    if network is None:
        raise RuntimeError(f"{peer.name}: no network yet; call start(threads), then build(network, mode)")
    return network


def check_state(peer: Peer, network: Network, state: State) -> None:
    expected = network.parameters()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{peer.name}: state of network {network.name!r}: missing {missing or 'nothing'}, unknown {extra or 'nothing'}; "
            f"give exactly {', '.join(expected)}"
        )
    for name, shape in expected.items():
        _check_array(f"{peer.name}: {name} of network {network.name!r}", state[name], np.float32, shape)


def check_images(peer: Peer, x: np.ndarray) -> None:
    _check_array(f"{peer.name}: images x", x, np.float32, (len(x) if np.ndim(x) else "N", *IMAGE))
    if len(x) == 0:
        raise ValueError(f"{peer.name}: images x: expected at least one image, got none")


def check_classes(peer: Peer, x: np.ndarray, y: np.ndarray) -> None:
    _check_array(f"{peer.name}: classes y", y, np.int64, (len(x),))
    if y.min() < 0 or y.max() >= CLASSES:
        raise ValueError(f"{peer.name}: classes y: expected 0 to {CLASSES - 1}, got {y.min()} to {y.max()}")


def _check_array(what: str, array: object, dtype: type, shape: tuple[object, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what}: expected a numpy array, got {type(array).__name__}; convert it with np.asarray")
    if array.dtype != dtype:
        raise TypeError(f"{what}: expected {np.dtype(dtype)}, got {array.dtype}; convert it with .astype")
    if array.shape != shape:
        raise ValueError(f"{what}: expected shape ({', '.join(map(str, shape))}), got {array.shape}")

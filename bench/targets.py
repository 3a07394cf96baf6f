"""How many times as fast as the best of the others tinynet is to be: what prototypes reached, by network, kind and batch size.

An article's architecture is held against TensorFlow, Keras and PyTorch in all their modes and, forward, ONNX Runtime;
the ordinary networks against TensorFlow's graph and torch. Below its target a ratio must reach the floor: three
quarters of it and, for ordinary networks, what any network at all must reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinynet.bench.peers import CONTESTANTS

MATHS = {"tinynet-compiled": "strict", "tinynet-winograd": "winograd"}
ARTICLE = tuple(name for name in CONTESTANTS if name.partition("-")[0] in ("tensorflow", "keras", "torch", "onnxruntime"))
ORDINARY = ("tensorflow-graph", "torch-eager", "torch-channels_last")
ANY = {"forward": {1: 2.0, 32: 1.0, 128: 1.0}, "training": {1: 2.0, 32: 1.0, 128: 1.0}}


@dataclass(frozen=True)
class Target:
    """against: the contestants whose best is divided by tinynet's time."""

    ratio: float
    floor: float
    against: tuple[str, ...]


def _by_size(one: float, more: float) -> dict[int, float]:
    return {1: one, 32: more, 128: more}


# (network, kind, math) -> batch size -> ratio
_ARTICLE = {
    ("keras", "forward", "strict"): {1: 2.0, 32: 1.7, 128: 1.9, 512: 2.0},
    ("keras", "forward", "winograd"): {1: 3.0, 32: 3.0, 128: 4.0, 512: 4.0},
    ("tensorflow", "forward", "winograd"): {1: 1.4, 32: 1.7, 128: 1.75, 512: 1.8},
    ("keras", "training", "winograd"): {1: 11.0, 32: 7.0, 128: 6.0, 512: 6.0},
    ("tensorflow", "training", "winograd"): {1: 5.0, 32: 3.2, 128: 2.5, 512: 2.3},
}
_DENSE = {
    ("forward", "strict"): _by_size(2.5, 1.25),
    ("training", "strict"): _by_size(3.0, 1.5),
    ("forward", "winograd"): _by_size(3.0, 1.7),
    ("training", "winograd"): _by_size(3.5, 1.9),
}
_SMALL = {("forward", "strict"): _by_size(6.0, 2.1), ("training", "strict"): _by_size(7.0, 2.4)}
_DEPTHWISE = {("forward", "strict"): _by_size(6.0, 1.9), ("training", "strict"): _by_size(7.0, 3.0)}
_OTHER = {(kind, "strict"): sizes for kind, sizes in ANY.items()}  # nobody made a prototype of it
_ORDINARY = {"vgg": _DENSE, "strided": _DENSE, "lenet5": _SMALL, "bottleneck": _DEPTHWISE, "alexnet": _OTHER}


def target(network: str, kind: str, contestant: str, size: int) -> Target | None:
    """The target of one of tinynet's compiled contestants, None where there is none."""
    math = MATHS.get(contestant)
    ratio = _ARTICLE.get((network, kind, math), {}).get(size)
    if ratio is not None:
        return Target(ratio, 0.75 * ratio, ARTICLE)
    ratio = _ORDINARY.get(network, {}).get((kind, math), {}).get(size)
    return None if ratio is None else Target(ratio, max(0.75 * ratio, ANY[kind][size]), ORDINARY)

"""The steps of optimisers on a GPU: who launches what of optimizers.cu, which tells the story of its variants.

An input that is not contiguous is copied first: a gradient may be such a one. Weights and state of an optimiser are contiguous,
and are its outputs too. `vectors` is for arrays that all start at multiples of 16 bytes; others go one number at a time.
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path

from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, address, contiguous, empty, kernel, real

FILE = Path(__file__).with_suffix(".cu")
THREADS = 256  # of a block, as in optimizers.cu
MOST_BLOCKS = 1024  # about as many as a large GPU holds at once: what is left is done by those that are there
NAMES = [f"{step}_{variant}" for step in ("sgd_step", "adam_step") for variant in ("simple", "vectors")]
MOST_NUMBERS = 9  # of an optimiser: Adam's


def units():
    """All that can be compiled of optimizers.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {**{name: THREADS for name in NAMES}, "write_numbers": 1}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    shown = [(name, "float") for name in NAMES] + [(name, "double") for name in NAMES if name.endswith("vectors")]
    return [(f"{name.replace('_step_', '_step ')}, {number}", name, {"REAL": number}, THREADS) for name, number in shown]


class Live:
    """An optimiser's numbers in the memory of a GPU. Steps that are launched `with live:` read them there whenever they run, as they
    do again and again in a CUDA graph, and not from their arguments. `like`: an array of the parameters' type, on their GPU.
    """

    _now: ContextVar = ContextVar("tinynet_live_numbers", default=None)

    def __init__(self, like):
        self.numbers = empty(like, MOST_NUMBERS)

    def write(self, numbers) -> None:
        """What launches from now on find, in the order of the step's arguments, which is that of Optimizer.numbers()."""
        padded = [*numbers, *[0.0] * (MOST_NUMBERS - len(numbers))]
        run = kernel(self.numbers, FILE, "write_numbers", REAL=REALS[self.numbers.dtype])
        run((1,), (1,), (self.numbers, len(numbers), *map(self.numbers.dtype.type, padded)))

    def __enter__(self):
        self._outer = self._now.set(self.numbers)
        return self

    def __exit__(self, *_):
        self._now.reset(self._outer)


def _launch(step: str, variant: str, inputs, outputs, *numbers) -> None:
    """numbers: the optimiser's, in double precision, which are rounded once."""
    after = outputs[0]
    word = real(step, after.dtype)
    if not after.size:
        return
    arrays = [*map(contiguous, inputs), *outputs]
    wide = variant == "vectors" and all(a is None or address(a) % 16 == 0 for a in arrays)
    blocks = -(-after.size // (THREADS * (16 // after.itemsize if wide else 1)))
    run = kernel(after, FILE, f"{step}_{'vectors' if wide else 'simple'}", REAL=word)
    run((min(blocks, MOST_BLOCKS),), (THREADS,), (*arrays, after.size, Live._now.get(), *map(after.dtype.type, numbers)))


def _sgd(variant: str, w, g, v, lr, momentum, nesterov, weight_decay, out) -> None:
    v, outputs = (v, out) if momentum else (None, (out, None))
    _launch("sgd_step", variant, (w, g, v), outputs, lr, weight_decay, momentum, nesterov)


def _adam(variant: str, w, g, m, s, t, lr, betas, eps, weight_decay, decoupled, out) -> None:
    b1, b2 = betas
    decay, keeps = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    _launch("adam_step", variant, (w, g, m, s), out, lr / (1 - b1**t), 1 - b2**t, b1, b2, eps, decay, keeps, 1 - b1, 1 - b2)


@implements_on_both("sgd_step", variant="simple")
def sgd_step_simple(w, g, v, *, lr, momentum, nesterov, weight_decay, out):
    _sgd("simple", w, g, v, lr, momentum, nesterov, weight_decay, out)


@implements_on_both("sgd_step", variant="vectors", default=True)
def sgd_step_vectors(w, g, v, *, lr, momentum, nesterov, weight_decay, out):
    _sgd("vectors", w, g, v, lr, momentum, nesterov, weight_decay, out)


@implements_on_both("adam_step", variant="simple")
def adam_step_simple(w, g, m, s, *, t, lr, betas, eps, weight_decay, decoupled, out):
    _adam("simple", w, g, m, s, t, lr, betas, eps, weight_decay, decoupled, out)


@implements_on_both("adam_step", variant="vectors", default=True)
def adam_step_vectors(w, g, m, s, *, t, lr, betas, eps, weight_decay, decoupled, out):
    _adam("vectors", w, g, m, s, t, lr, betas, eps, weight_decay, decoupled, out)

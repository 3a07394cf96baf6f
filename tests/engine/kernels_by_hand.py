"""Kernels called as the contract says: outputs of our own, poisoned first, inputs read-only."""

from __future__ import annotations

import numpy as np

from tinynet import oracle
from tinynet.dispatch import find
from tinynet.kernels.contract import CONTRACTS
from tinynet.oracle.calls import completed

POISON = {"f": np.nan, "i": np.iinfo(np.int32).min}


def run(name: str, path: str, *arrays, **parameters):
    """The outputs of one implementation ("cpu", "reference", "cpu.loops").

    Every output is poisoned with NaN beforehand and must be written all over; the inputs are
    read-only and must be as they were.
    """
    arrays, parameters = completed(name, arrays, parameters)
    arrays = [a if a is None else np.array(a) for a in arrays]
    before = [a if a is None else a.copy() for a in arrays]
    for a in arrays:
        if a is not None:
            a.flags.writeable = False
    spec = CONTRACTS[name].spec(*arrays, **parameters)
    outputs = tuple(np.full(shape, POISON[dtype.kind], dtype) for shape, dtype in spec.outputs)
    find(name, path).function(*arrays, **parameters, out=outputs if len(outputs) > 1 else outputs[0])
    for a, b in zip(arrays, before):
        np.testing.assert_array_equal(a, b, err_msg=f"{path} wrote an input of {name}")
    for output in outputs:
        if output.dtype.kind == "i":
            assert (output != POISON["i"]).all(), f"{path}: {name} left poison in an output"
        elif all(a is None or not np.isnan(a).any() for a in arrays):
            assert not np.isnan(output).any(), f"{path}: {name} left poison in an output"
    return outputs if len(outputs) > 1 else outputs[0]


def assert_honest(name: str, path: str, *arrays, **parameters) -> None:
    """One call of one implementation, judged by the oracle: by norm if it declares that."""
    want, norm = truth(name, *arrays, **parameters), find(name, path).norm
    oracle.assert_matches(run(name, path, *arrays, **parameters), want if norm is None else want.with_norm(norm), name=f"{path}: {name}", max_zero_share=1.0)


def truth(name: str, *arrays, **parameters):
    return oracle.reference.find(name)(*arrays, **parameters)


def assert_same(got, want, what: str = "") -> None:
    """Bit for bit, NaN equal to NaN."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    np.testing.assert_array_equal(got, want, err_msg=what)


def whole_numbers(rng: np.random.Generator, shape, dtype, most: int = 3) -> np.ndarray:
    """Small integers: sums of their products are exact in any order, so that results must be equal bit for bit."""
    return rng.integers(-most, most + 1, shape).astype(dtype)


def reals(rng: np.random.Generator, shape, dtype) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)

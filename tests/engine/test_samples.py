"""Every op, on every device that is ready: its samples against the definition, its gradients against differences."""

import numpy as np
import pytest

import tinynet
from tinynet.op import OPS

DEVICES = [name for name, reason in tinynet.devices().items() if reason is None]
SAMPLED = {name: op for name, op in OPS.items() if op.make_samples is not None}


def filled(samples, dtype):
    """The samples with their shapes filled by zero-mean numbers, floats in the dtype."""
    rng = np.random.default_rng(7)
    for *inputs, parameters in samples(rng):
        arrays = [rng.standard_normal(i) if isinstance(i, tuple) else i for i in inputs]
        yield [a.astype(dtype) if a is not None and a.dtype.kind == "f" else a for a in arrays], parameters


def tensors(arrays, device, dtype=None):
    def one(a):
        if a is None:
            return None
        floating = a.dtype.kind == "f"
        return tinynet.tensor(a.astype(dtype) if floating and dtype else a, requires_grad=floating, device=device)

    return [one(a) for a in arrays]


def test_every_op_has_samples():
    assert {name for name, op in OPS.items() if op.make_samples is None} <= {"move"}


def test_the_cpu_device_is_ready():
    assert "cpu" in DEVICES and "reference" in DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SAMPLED)
def test_float32_is_near_the_float64_definition(name, device):
    # Sums of at most 100 terms of magnitude about 1 here: 100 roundings of 2^-24 on at most 100.
    op = SAMPLED[name]
    for arrays, parameters in filled(op.make_samples, np.float32):
        got = op(*tensors(arrays, device), **parameters).numpy()
        want = op(*tensors(arrays, "reference", np.float64), **parameters).numpy()
        assert got.shape == want.shape
        assert np.abs(got - want).max(initial=0) <= 100 * 100 * 2.0**-24


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SAMPLED)
def test_gradients_match_differences_along_a_random_direction(name, device):
    op = SAMPLED[name]
    rng = np.random.default_rng(3)
    for arrays, parameters in filled(op.make_samples, np.float64):
        if parameters.get("dtype"):
            continue  # a cast to the same dtype is tested with the engine
        inputs = tensors(arrays, device)
        out = op(*inputs, **parameters)
        dy = rng.standard_normal(out.shape)
        out.backward(dy)
        for i, tensor in enumerate(inputs):
            if tensor is None or not tensor.requires_grad:
                continue
            if name == "relu" and not tensor.data.all():
                continue  # no derivative at 0
            direction, h = rng.standard_normal(tensor.shape), 1e-6

            def along(t):
                moved = list(inputs)
                moved[i] = tinynet.tensor(tensor.data + t * direction, device=device)
                return (op(*moved, **parameters).numpy() * dy).sum()

            difference = (along(h) - along(-h)) / (2 * h)
            analytic = (tensor.grad * direction).sum()
            # truncation is O(h^2), rounding u * |f| / h: both far below 1e-6 of the terms summed
            scale = np.abs(tensor.grad * direction).sum() + 1
            assert abs(difference - analytic) <= 1e-6 * scale

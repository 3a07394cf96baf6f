"""Every op's samples, on every device that is ready: forward, and every gradient under a random cotangent.

(Never a cotangent of ones: under it softmax's gradient is 0 whatever the code does, and a flipped
kernel goes unseen.) The truth and its bound are the oracle's, and torch in float64 is held against them too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import TORCH, Case, all_cases
from kernels_by_hand import assert_same

from tinynet import Tensor, functional, oracle
from tinynet.devices import devices
from tinynet.op import OPS

CASES = all_cases()
READY = [device for device, reason in devices().items() if reason is None and not device.startswith("cuda")]  # CUDA: tests/cuda
DTYPES = (np.float32, np.float64)
WITHOUT_TRUTH = {"getitem", "astype"}


def converted(array, dtype):
    return array.astype(dtype) if array is not None and array.dtype.kind == "f" else array


def cotangent_for(case: Case) -> np.ndarray:
    y = OPS[case.op](*case.inputs, **case.parameters)
    return np.random.default_rng(case.number + 1).standard_normal(y.shape).astype(np.float32)


def run(case: Case, device: str, dtype, inputs=None):
    """The op on one device: (result, gradients of the float inputs)."""
    inputs = [converted(a, dtype) for a in case.inputs] if inputs is None else inputs
    leaves = [None if a is None else Tensor(a, a.dtype.kind == "f", device) for a in inputs]
    y = OPS[case.op](*leaves, **case.parameters)
    y.backward(cotangent_for(case).astype(y.dtype))
    return y.numpy(), [leaves[i].grad for i in case.floats]


def truth(case: Case, dtype):
    """What the oracle says of the result and of each gradient; None for what has no truth of its own."""
    if case.op not in oracle.reference.NAMES:
        return None
    inputs, parameters = [converted(a, dtype) for a in case.inputs], case.parameters
    y = oracle.reference.find(case.op)(*inputs, **parameters)
    dx = oracle.reference.find(f"{case.op}_grad")(cotangent_for(case).astype(dtype), *inputs, **parameters)
    return [y[0] if isinstance(y, tuple) else y, *(dx if isinstance(dx, tuple) else (dx,))]  # max_pool2d: y, argmax


def check(case: Case, got, want) -> None:
    names = ["the result"] + [f"the gradient of {OPS[case.op].inputs[i]}" for i in case.floats]
    assert len(got) == len(want) == len(names)
    for name, g, w in zip(names, got, want):
        oracle.assert_matches(g, w, name=name, max_zero_share=1.0)


def test_every_op_has_samples_and_a_torch_twin():
    assert {name for name, op in OPS.items() if op.make_samples is None} == {"move"}  # move's sample is another device
    assert {case.op for case in CASES} == set(TORCH)
    assert len(CASES) >= 60


def test_every_float_input_has_a_gradient():
    for name, op in OPS.items():
        without = set(op.inputs) - set(op.gradients)
        assert without <= set(op.integer_inputs), f"{name}: {without}"


def test_samples_can_show_a_transposed_axis():
    """Images of different sides, a kernel that is not square, as many channels in as out in no case."""
    for case in CASES:
        if case.op == "conv2d":
            x, weight = case.inputs[:2]
            rows, columns = x.shape[1:3] if case.parameters.get("layout") == "NHWC" else x.shape[2:]
            assert rows != columns
    kernels = [case.inputs[1].shape for case in CASES if case.op == "conv2d"]
    assert any(k[2] != k[3] for k in kernels)
    assert any(k[0] != k[1] for k in kernels)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("case", [c for c in CASES if c.op in oracle.reference.NAMES], ids=str)
def test_the_oracle_accepts_every_op_and_every_gradient(case, device, dtype):
    y, gradients = run(case, device, dtype)
    check(case, [y, *gradients], truth(case, dtype))
    assert y.dtype == dtype and all(g.dtype == dtype for g in gradients)


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("case", [c for c in CASES if c.op in WITHOUT_TRUTH], ids=str)
def test_copies_of_part_or_in_another_dtype_are_exact(case, device):
    """The ops that the oracle has no truth for only move numbers: numpy and torch say which."""
    y, gradients = run(case, device, np.float32)
    (x,) = case.inputs
    assert_same(y, x.astype(case.parameters["dtype"]) if case.op == "astype" else x[case.parameters["index"]])
    want = torch.zeros(x.shape, dtype=torch.float64, requires_grad=True)
    TORCH[case.op](want, **case.parameters).backward(torch.tensor(cotangent_for(case).astype(np.float64)))
    assert_same(gradients[0], want.grad.numpy().astype(np.float32))


def test_only_copies_have_no_truth():
    assert {case.op for case in CASES} - set(oracle.reference.NAMES) == WITHOUT_TRUTH


@pytest.mark.parametrize("case", [c for c in CASES if c.op in oracle.reference.NAMES], ids=str)
def test_torch_in_float64_is_accepted_by_the_same_truths(case):
    """So the oracle's truths are not only our own view of each op."""
    inputs = [converted(a, np.float64) for a in case.inputs]
    leaves = [None if a is None else torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in inputs]
    theirs = TORCH[case.op](*leaves, **case.parameters)
    theirs.backward(torch.tensor(cotangent_for(case).astype(np.float64)))
    check(case, [theirs.detach().numpy(), *(leaves[i].grad.numpy() for i in case.floats)], truth(case, np.float64))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_gradient_is_the_same_when_it_is_the_only_one(case):
    """A gradient function may lean on nothing that only another one asked for."""
    _, together = run(case, "cpu", np.float64)
    for place, want in zip(case.floats, together):
        leaves = [None if a is None else Tensor(converted(a, np.float64), i == place) for i, a in enumerate(case.inputs)]
        y = OPS[case.op](*leaves, **case.parameters)
        y.backward(cotangent_for(case).astype(y.dtype))
        assert_same(leaves[place].grad, want)
        assert all(leaf is None or leaf.grad is None for i, leaf in enumerate(leaves) if i != place)


@pytest.mark.parametrize("case", [c for c in CASES if c.op in oracle.reference.NAMES and c.op not in ("reshape", "permute")], ids=str)
def test_inputs_in_any_memory_layout_and_read_only(case):
    """Strided and read-only arrays give what contiguous ones give, up to the order of summation."""

    def spaced(a):
        if a is None or a.ndim == 0:
            return a
        wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = a
        wide.flags.writeable = False
        return wide[..., ::2]

    y, gradients = run(case, "cpu", np.float32, [spaced(a) for a in case.inputs])
    check(case, [y, *gradients], truth(case, np.float32))


def test_a_gradient_that_is_off_by_a_thousandth_is_refused():
    """The tester is tested: a planted fault in each op's gradient."""
    caught = 0
    for case in CASES:
        if case.op not in oracle.reference.NAMES:
            continue
        y, gradients = run(case, "cpu", np.float32)
        want = truth(case, np.float32)
        for i, gradient in enumerate(gradients):
            if not gradient.any():
                continue  # a power of 0
            faulty = [g * np.float32(1.001) if j == i else g for j, g in enumerate(gradients)]
            with pytest.raises(AssertionError, match="the gradient of"):
                check(case, [y, *faulty], want)
            caught += 1
    assert caught > 60


def test_ops_stand_in_functional_and_on_tensors():
    for name in functional.__all__:
        assert getattr(functional, name) is OPS[name]
        assert getattr(functional, name).__doc__
    for name in "sum mean max exp log sqrt relu softmax log_softmax flatten".split():
        assert getattr(Tensor, name) is OPS[name]


def test_arrays_are_taken_like_tensors(rng):
    """`F.relu(array)`: no wrapping is asked of the user, and the array is not touched."""
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    before = x.copy()
    assert_same(functional.flatten(x).numpy(), x.reshape(2, 12))
    assert_same(functional.relu(x).numpy(), np.maximum(x, 0))
    assert_same(functional.softmax(x, 1).numpy(), functional.softmax(Tensor(x), axis=1).numpy())
    assert_same(x, before)


# --- semantics that the design fixes -----------------------------------------------------------------------


def test_relu_has_gradient_0_at_0_and_passes_nan_on():
    x = Tensor(np.array([-1.0, 0.0, -0.0, 2.0, np.nan]), True)
    y = functional.relu(x)
    assert_same(y.numpy(), np.array([0.0, 0.0, 0.0, 2.0, np.nan]))
    y.backward(np.array([np.inf, 5.0, 5.0, 5.0, 5.0]))
    assert_same(x.grad, np.array([0.0, 0.0, 0.0, 5.0, 0.0]))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_max_gives_the_gradient_to_the_first_of_equals(axis):
    x = Tensor(np.array([[1.0, 3.0, 3.0], [3.0, 3.0, 0.0]]), True)
    x.max(axis).sum().backward()
    first = {None: [[0, 1, 0], [0, 0, 0]], 0: [[0, 1, 1], [1, 0, 0]], 1: [[0, 1, 0], [1, 0, 0]], -1: [[0, 1, 0], [1, 0, 0]]}[axis]
    assert_same(x.grad, np.array(first, float))


def test_softmax_and_its_logarithm_neither_overflow_nor_underflow():
    x = np.array([[1000.0, 0.0, -1000.0], [-1e4, -1e4, -1e4]], np.float32)
    assert_same(functional.softmax(x).numpy()[0], np.array([1, 0, 0], np.float32))
    assert_same(functional.log_softmax(x).numpy()[0], np.array([0, -1000, -2000], np.float32))
    assert np.isfinite(functional.cross_entropy(x, np.array([2, 1])).item())


def test_the_mean_of_nothing_is_nan_without_a_warning(recwarn):
    empty = Tensor(np.zeros((0, 3), np.float32), True)
    for y in (empty.mean(), functional.cross_entropy(empty, np.zeros(0, int)), functional.nll_loss(empty, np.zeros(0, int))):
        assert np.isnan(y.item())
        y.backward()
    assert empty.mean(axis=0).shape == (3,)
    assert functional.cross_entropy(empty, np.zeros(0, int), reduction="sum").item() == 0
    assert empty.grad.shape == (0, 3)
    assert not recwarn.list


def test_sums_of_integers_keep_their_dtype():
    for dtype in (np.int8, np.int32, np.uint8, np.int64):
        assert Tensor(np.ones((2, 3), dtype)).sum(axis=0).dtype == dtype


def test_cross_entropy_is_nll_of_log_softmax(rng):
    logits, target = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    for reduction in ("mean", "sum", "none"):
        two = functional.nll_loss(functional.log_softmax(logits), target, reduction=reduction)
        assert_same(functional.cross_entropy(logits, target, reduction=reduction).numpy(), two.numpy())
    one_hot = np.eye(5)[target]
    oracle.assert_matches(functional.cross_entropy(logits, one_hot).numpy(), oracle.reference.cross_entropy(logits, target))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_classes_may_be_of_any_integer_dtype(dtype, rng):
    logits, target = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    assert_same(functional.cross_entropy(logits, target.astype(dtype)).numpy(), functional.cross_entropy(logits, target).numpy())

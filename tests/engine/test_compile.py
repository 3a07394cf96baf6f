"""tinynet.compile gives what the engine gives: bit for bit on whole numbers, within derived bounds on real ones. test_compile_calls.py has what
happens between calls."""

from __future__ import annotations

import numpy as np
import pytest
from trainings import all_of, batch, classifier, whole_numbers
from whole_networks import Residual

import tinynet
from tinynet import functional as F
from tinynet import nn
from tinynet.nn import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential

# --- networks: every kind of unit, at sizes that no tile divides --------------------------------------------


class Twice(Module):
    """One value that three others read."""

    def __init__(self):
        self.stem, self.left, self.right = Conv2d(3, 8, 3), Conv2d(8, 8, 3, padding=1), Conv2d(8, 8, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return F.relu(self.left(x)) + self.right(x) + x


class Functional(Module):
    """Bias as an op of its own, NHWC, SAME padding: the article's style."""

    def __init__(self):
        self.weight, self.bias = nn.Parameter(np.zeros((9, 3, 3, 3), np.float32)), nn.Parameter(np.zeros(9, np.float32))

    def forward(self, x):
        x = F.relu(F.bias_add(F.conv2d(x, self.weight, padding="same", layout="NHWC"), self.bias, layout="NHWC"))
        return F.flatten(F.max_pool2d(x, 2, padding="same", layout="NHWC"))


NETWORKS = {
    "conv": (lambda: Conv2d(3, 5, 3), (3, 7, 6)),
    "one channel": (lambda: Conv2d(1, 1, 3, padding=1), (1, 5, 5)),
    "pooled": (lambda: Sequential(Conv2d(3, 17, 3), ReLU(), MaxPool2d(2)), (3, 11, 9)),
    "pooled without relu": (lambda: Sequential(Conv2d(2, 4, 3, bias=False), MaxPool2d(2)), (2, 8, 8)),
    "pooled, then relu": (lambda: Sequential(Conv2d(3, 8, 3, padding=1), MaxPool2d(2), ReLU()), (3, 8, 8)),
    "two layers": (lambda: Sequential(Conv2d(3, 8, 3), ReLU(), MaxPool2d(2), Conv2d(8, 12, 3, padding=1), ReLU(), MaxPool2d(2)), (3, 14, 15)),
    "strides": (lambda: Sequential(Conv2d(3, 10, (5, 3), stride=(2, 3), padding=(2, 1)), ReLU(), Conv2d(10, 6, 3, stride=2, padding=1)), (3, 13, 14)),
    "dilation": (lambda: Sequential(Conv2d(4, 6, 3, dilation=2), ReLU(), Conv2d(6, 5, (2, 3), dilation=(3, 1), padding=2)), (4, 11, 12)),
    "one-sided padding": (lambda: Sequential(Conv2d(3, 9, 3, padding=((0, 2), (1, 0))), ReLU(), Conv2d(9, 4, 2, padding=((1, 0), (0, 1)))), (3, 7, 8)),
    "groups": (lambda: Sequential(Conv2d(8, 12, 3, padding=1, groups=2), ReLU(), Conv2d(12, 10, 3, groups=2)), (8, 7, 6)),
    "depthwise": (lambda: Sequential(Conv2d(3, 20, 1), ReLU(), Conv2d(20, 20, 3, padding=1, groups=20), ReLU(), Conv2d(20, 5, 1)), (3, 7, 9)),
    "depthwise, stride 2": (lambda: Sequential(Conv2d(6, 6, 3, stride=2, padding=1, groups=6), ReLU(), Conv2d(6, 6, (3, 5), groups=6, padding=2)), (6, 9, 8)),
    "max-pooling by itself": (lambda: Sequential(MaxPool2d(3, stride=2, padding=1), Conv2d(3, 8, 3, padding=1), ReLU(), MaxPool2d((3, 2), stride=(1, 2))), (3, 12, 11)),
    "ceil_mode": (lambda: Sequential(Conv2d(3, 5, 2), ReLU(), MaxPool2d(2, ceil_mode=True), AvgPool2d(2, ceil_mode=True)), (3, 8, 10)),
    "averages": (lambda: Sequential(Conv2d(3, 6, 3), AvgPool2d(2), ReLU(), AvgPool2d(2, stride=1, padding=1, count_include_pad=False)), (3, 10, 10)),
    "averages with their padding": (lambda: Sequential(Conv2d(3, 6, 3), ReLU(), AvgPool2d(4, stride=2, padding=1)), (3, 10, 10)),
    "residual": (lambda: Sequential(Conv2d(3, 8, 3, padding=1), ReLU(), Residual(8), Residual(8)), (3, 6, 7)),
    "branches": (Twice, (3, 9, 8)),
    "flatten and dense": (lambda: Sequential(Conv2d(3, 6, 3, stride=2), ReLU(), Flatten(), Linear(54, 13), ReLU(), Linear(13, 5)), (3, 8, 8)),
    "dense alone": (lambda: Sequential(Linear(20, 33), ReLU(), Linear(33, 17), ReLU(), Linear(17, 3)), (20,)),
    "dense, larger than the cache": (lambda: Sequential(Linear(300, 260), ReLU(), Linear(260, 4)), (300,)),
    "relu first": (lambda: Sequential(ReLU(), Conv2d(3, 8, 3), Flatten(), ReLU(), Linear(32, 4)), (3, 4, 4)),
    "NHWC": (lambda: Sequential(Conv2d(3, 8, 3, padding=1, layout="NHWC"), ReLU(), MaxPool2d(2, layout="NHWC"), Residual(8, "NHWC"), Flatten()), (8, 6, 3)),
    "functional": (Functional, (8, 10, 3)),
    "many channels": (lambda: Sequential(Conv2d(24, 40, 3, padding=1), ReLU(), Conv2d(40, 128, 1), ReLU(), Conv2d(128, 3, 1)), (24, 5, 5)),
}  # fmt: skip


def made(name: str, rng, whole: bool, dtype=np.float32) -> Module:
    model = NETWORKS[name][0]()
    for p in model.parameters():
        fan_in = max(1, int(np.prod(p.shape[1:])))
        values = rng.integers(-2, 3, p.shape) if whole else rng.standard_normal(p.shape) / np.sqrt(fan_in)
        p.data = values.astype(dtype)
    return model


def images(name: str, count: int, rng, whole: bool, dtype=np.float32) -> np.ndarray:
    shape = (count, *NETWORKS[name][1])
    return (rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_numbers_come_out_bit_for_bit(name, count):
    """Sums of small whole numbers are exact in any order, so a difference is a fault of structure."""
    rng = np.random.default_rng(len(name))
    model, x = made(name, rng, whole=True), images(name, count, rng, whole=True)
    fast = tinynet.compile(model)
    want = all_of(model, model, x, whole_numbers)
    all_of(model, fast, x, whole_numbers)
    got = all_of(model, fast, x, whole_numbers)
    assert "op by op" not in fast.explain(), fast.explain()
    exact = all(np.abs(a).max(initial=0) < 2**24 for a in want.values())
    for key in want:
        if exact:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)
        else:
            np.testing.assert_allclose(got[key], want[key], rtol=1e-6, err_msg=key)


def test_whole_numbers_are_small_enough_to_be_exact():
    """The test above says nothing where numbers leave the range in which float32 counts one by one."""
    for name in NETWORKS:
        rng = np.random.default_rng(len(name))
        model, x = made(name, rng, whole=True), images(name, 5, rng, whole=True)
        found = all_of(model, model, x, whole_numbers)
        assert all(np.abs(a).max() < 2**24 for a in found.values()), name


# --- real numbers: bounds, and float64 as the judge ------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_real_numbers_are_as_near_to_the_truth_as_the_engine_s(name):
    """Both are float32; the truth is the same network in float64. An error that rounding in another order explains is of the
    engine's own size: at most four times as large, or a rounding of the largest result."""
    rng = np.random.default_rng(len(name))
    model, x = made(name, rng, whole=False), images(name, 3, rng, whole=False)

    def dy_of(dtype):
        return lambda shape: np.random.default_rng(3).standard_normal(shape).astype(dtype)

    fast = tinynet.compile(model)
    eager = all_of(model, model, x, dy_of(np.float32))
    all_of(model, fast, x, dy_of(np.float32))
    got = all_of(model, fast, x, dy_of(np.float32))
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    truth = all_of(model, model, x.astype(np.float64), dy_of(np.float64))
    for key, want in truth.items():
        scale = np.abs(want).max()
        allowed = 4 * np.abs(eager[key] - want).max() + 8 * 2.0**-24 * scale
        assert np.abs(got[key] - want).max() <= allowed, key


def test_float64_is_compiled_too():
    rng = np.random.default_rng(0)
    model, x = made("two layers", rng, False, np.float64), images("two layers", 3, rng, False, np.float64)
    fast = tinynet.compile(model)
    want = all_of(model, model, x, lambda shape: np.ones(shape))
    all_of(model, fast, x, lambda shape: np.ones(shape))
    got = all_of(model, fast, x, lambda shape: np.ones(shape))
    for key in want:
        assert got[key].dtype == np.float64
        np.testing.assert_allclose(got[key], want[key], rtol=1e-12, atol=1e-12)


# --- what is no program -----------------------------------------------------------------------------------------------


def reason(function, *arguments) -> str:
    """Why it runs op by op; and it must give what the function gives."""
    fast = tinynet.compile(function)
    for _ in range(2):
        np.testing.assert_allclose(np.asarray(fast(*arguments)), np.asarray(function(*arguments)), rtol=1e-6)
    text = fast.explain()
    assert "op by op" in text
    return text


def test_an_argument_may_be_reshaped_before_the_first_op(rng):
    model, x = Sequential(Linear(12, 8), ReLU(), Linear(8, 4)), rng.standard_normal((3, 2, 2, 3), dtype=np.float32)
    for rows in (lambda x: x.reshape(len(x), -1), lambda x: tinynet.Tensor(x.reshape(len(x), -1)), F.flatten):
        fast = tinynet.compile(lambda x: model(rows(x)))
        with tinynet.no_grad():
            for batch in (x, x[::-1].copy()):
                assert np.allclose(fast(batch).numpy(), model(batch.reshape(3, 12)).numpy(), 1e-5, 1e-6)
        assert "linear + bias + relu" in fast.explain() and "flatten" not in fast.explain(), "its rows are read where they lie"
    other = x.reshape(3, 12)
    assert "past its graph" in reason(lambda x: model(other), x), "the memory of an argument, but not made of it by the function"
    assert "makes for itself" in reason(lambda x: model(x.reshape(3, 12) * np.float32(2)), x)


def test_what_can_not_be_replayed_runs_as_always_and_says_why():
    x = np.ones((2, 3, 5, 5), np.float32)
    weight, narrow = np.ones((4, 3, 3, 3), np.float32), np.ones((6, 1, 3, 3), np.float32)
    assert "sqrt" in reason(lambda x: tinynet.Tensor(x).sqrt(), x)
    assert "groups of fewer than 4" in reason(lambda x: F.conv2d(x, narrow, groups=3), x)
    assert "reads the values" in reason(lambda x: F.relu(x) if F.relu(x).numpy().max() > 0 else x, x)
    assert "makes for itself" in reason(lambda x: F.conv2d(x, np.ones((4, 3, 3, 3), np.float32)), x)
    assert "number for an input" in reason(lambda x: tinynet.Tensor(x) * 2.0, x)
    assert "array for a parameter" in reason(lambda x: F.relu(F.conv2d(x, weight))[[0, 0, 1]], x)
    shared = Conv2d(3, 3, 3, padding=1)

    def half_recorded(x):
        with tinynet.no_grad():
            x = shared(x)
        return F.relu(x)

    assert "no_grad" in reason(half_recorded, x)
    with tinynet.use(conv2d="reference"):
        assert "chosen by hand" in reason(lambda x: F.conv2d(x, weight), x)

    def by_hand_within(x):
        with tinynet.use(conv2d="reference"):
            return F.conv2d(x, weight)

    assert "chosen by hand" in reason(by_hand_within, x)
    kept = []

    def past_the_graph(x):
        h = F.relu(F.conv2d(x, weight))
        kept[:] = [h.detach()]  # somebody holds it, so that it seems to come from outside
        return h + kept[0]

    assert "past its graph" in reason(past_the_graph, x)

    def drawn(x):
        kept[:] = [np.float32(np.random.random()) * np.ones((4, 3, 3, 3), np.float32)]
        np.random.seed(0)
        return F.conv2d(x, kept[0] * 0 + 1)

    assert "random numbers" in reason(drawn, x)


def test_wrong_arguments_are_refused_in_plain_words():
    with pytest.raises(ValueError, match="math must be one of 'strict', 'winograd'; got 'fast'"):
        tinynet.compile(lambda x: x, math="fast")
    with pytest.raises(TypeError, match="expected a Module or a function; got int"):
        tinynet.compile(3)
    with pytest.raises(TypeError, match="an argument is a set"):
        tinynet.compile(lambda x: x)({1})
    fast = tinynet.compile(Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="conv2d"):
        fast(np.ones((2, 5, 8, 8), np.float32))


def test_explain_names_what_runs_as_one_kernel():
    fast = tinynet.compile(classifier())
    assert fast.explain() == "nothing is captured yet: call it once"
    with tinynet.no_grad():
        fast(batch()[0])
    assert "conv2d + bias + relu + max_pool2d" in fast.explain() and "linear + bias + relu" in fast.explain()

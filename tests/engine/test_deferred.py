"""A captured function computes nothing while it runs: its results wait for the program, or for whoever looks at them."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc

import numpy as np
import pytest

import tinynet
from tests.engine.cases import all_cases
from tinynet import functional as F
from tinynet import nn, optim
from tinynet.deferred import Waiting, blank, deferred
from tinynet.mode import traced_by
from tinynet.op import OPS
from tinynet.tensor import FLOATS, Tensor
from tinynet.trace import Trace

X, Y = np.random.default_rng(0).standard_normal((6, 3, 10, 9)).astype(np.float32), np.arange(6) % 4


def model():
    tinynet.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(60, 4))


def make_step(inside=lambda net, optimizer, logits, loss: None):
    """A training step that calls `inside` between its loss and backward; its network; how often it has run."""
    net, ran = model(), []
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(x, y):
        ran.append(1)
        optimizer.zero_grad()
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        inside(net, optimizer, logits, loss)
        loss.backward()
        optimizer.step()
        return loss

    return step, net, ran


def after(step, net) -> list[np.ndarray]:
    """The loss and the weights after one call."""
    loss = step(X, Y)
    return [loss.numpy(), *(p.numpy() for p in net.parameters())]


def engine() -> list[np.ndarray]:
    step, net, _ = make_step()
    return after(step, net)


def assert_close(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def kernels_that_ran(monkeypatch):
    """The names of the kernels that ops have launched."""
    ran, found = [], tinynet.dispatch.implementation
    monkeypatch.setattr(tinynet.dispatch, "implementation", lambda name, device: ran.append(name) or found(name, device))
    return ran


# --- shapes without values ------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_an_op_on_blanks_knows_the_shape_and_dtype_of_its_result(case):
    inputs = tuple(None if a is None else Tensor(a, a.dtype in FLOATS) for a in case.inputs)
    want = OPS[case.op](*inputs, **case.parameters)
    got = deferred(OPS[case.op], inputs, case.parameters, True, None)
    assert (got.shape, got.dtype, got.requires_grad, got.ndim, got.size) == (want.shape, want.dtype, want.requires_grad, want.ndim, want.size)


def test_blanks_take_no_memory_and_stay_blank_through_numpy():
    huge = blank((1 << 20, 1 << 20), np.float32)  # four terabytes
    for made in (huge + 1, -huge, np.exp(huge).sum(axis=0, keepdims=True) * huge, huge.reshape(1 << 30, -1).T, huge.astype(np.float64)):
        assert type(made) is type(huge) and made.size == huge.size and not any(made.strides)
    assert (huge + 1).dtype == np.float32 and (huge.astype(np.float64) * huge).dtype == np.float64
    assert huge.max(axis=(0, 1)).shape == () and huge.sum(axis=1).shape == (1 << 20,) and huge.mean().shape == ()


def test_nobody_gets_numbers_out_of_a_blank():
    with pytest.raises(TypeError):
        np.add(blank((3,), np.float32), 1, out=np.zeros(3, np.float32))
    with pytest.raises(TypeError):
        np.concatenate([blank((3,), np.float32), np.zeros(3)])


# --- a capture --------------------------------------------------------------------------------------------------


def test_a_captured_step_launches_no_kernel_of_its_own(kernels_that_ran):
    step, net, ran = make_step()
    assert_close(after(tinynet.compile(step), net), engine_without(kernels_that_ran))
    assert ran == [1]


def engine_without(kernels_that_ran) -> list[np.ndarray]:
    assert not kernels_that_ran
    want = engine()
    assert {"conv2d", "conv2d_dw", "matmul"} <= {*kernels_that_ran}
    return want


def test_the_first_call_never_holds_a_layer_of_the_whole_batch():
    """Eager, the layers' results of a large batch are many times what a program holds of them."""
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 15 * 15, 4))
    x, y = np.zeros((256, 3, 32, 32), np.float32), np.zeros(256, np.int64)
    optimizer = optim.SGD(net.parameters(), lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def peak(function) -> int:
        tracemalloc.start()
        function(x, y)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    tinynet.compile(step)(x, y)  # whatever is compiled and kept, is
    eager, captured = peak(step), peak(tinynet.compile(step))
    activations = 256 * 32 * 30 * 30 * 4
    assert eager > 2 * activations > 4 * captured, (eager, captured)


def test_a_capture_leaves_nothing_for_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        tinynet.compile(make_step()[0])(X, Y)
        assert not [found for found in gc.get_objects() if type(found) is Trace]
    finally:
        gc.enable()


def test_what_is_returned_is_a_tensor_like_any_other():
    net = model()
    fast = tinynet.compile(lambda x: {"logits": (h := net(x)), "again": [h], "shape": h.shape})
    for _ in range(2):
        got = fast(X)
        assert type(got["logits"]) is Tensor and got["again"][0] is got["logits"] and got["shape"] == (6, 4)
    got["logits"].sum().backward()
    want = net(X)
    want.sum().backward()
    np.testing.assert_allclose(got["logits"].numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


def test_the_first_loss_is_as_those_after_it():
    fast = tinynet.compile(make_step()[0])
    first, second = fast(X, Y), fast(X, Y)
    assert (first.requires_grad, first.node) == (second.requires_grad, second.node)


def test_gradients_go_on_from_the_first_result():
    net, twin = model(), model()
    fast = tinynet.compile(net)
    (fast(X) * 2).sum().backward()
    (twin(X) * 2).sum().backward()
    assert_close([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])


def test_gradients_that_are_there_are_added_to_by_the_first_call():
    net, twin = model(), model()
    fast = tinynet.compile(lambda x, y: _backward(F.cross_entropy(net(x), y)))
    for p in (*net.parameters(), *twin.parameters()):
        p.grad = np.ones_like(p.data)
    fast(X, Y)
    _backward(F.cross_entropy(twin(X), Y))
    assert_close([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])


def test_a_step_that_adds_to_gradients_does_so_at_its_first_call():
    def adding(net):
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        for p in net.parameters():
            p.grad = np.ones_like(p.data)
        return lambda x, y: (_backward(F.cross_entropy(net(x), y)), optimizer.step())[0]

    net, twin = model(), model()
    assert_close(after(tinynet.compile(adding(net)), net), after(adding(twin), twin))


def _backward(loss):
    loss.backward()
    return loss


# --- who looks earlier ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [lambda t: t.numpy(), lambda t: t.data, lambda t: np.asarray(t), lambda t: t.detach().numpy(), lambda t: copy.deepcopy(t.detach()).numpy(), lambda t: np.from_dlpack(t)],
    ids=["numpy", "data", "asarray", "detach", "deepcopy", "dlpack"],
)
def test_a_value_that_is_looked_at_is_computed_at_once(look):
    seen = []
    step, net, ran = make_step(lambda net, optimizer, logits, loss: seen.append(np.array(look(logits))))
    want = model()(X).numpy()
    assert_close(after(tinynet.compile(step), net), engine())
    np.testing.assert_array_equal(seen[0], want)
    assert ran == [1]  # what else the function does is done once


def test_printing_a_loss_prints_what_it_is():
    text = []
    step, net, _ = make_step(lambda net, optimizer, logits, loss: text.append((f"{loss:.5f}", repr(loss))))
    fast = tinynet.compile(step)
    assert_close(after(fast, net), engine())
    assert text[0][0] == f"{engine()[0]:.5f}" and "made by cross_entropy" in text[0][1]
    assert "reads the values of a tensor" in fast.explain()


def test_a_tensor_that_waits_is_pickled_as_what_it_will_be():
    found = []
    with tinynet.no_grad():
        tinynet.compile(lambda x: found.append(pickle.dumps(F.relu(x))))(X)
    np.testing.assert_array_equal(pickle.loads(found[0]).numpy(), np.maximum(X, 0))


def test_a_result_that_the_function_keeps_is_computed():
    kept = []
    step, net, _ = make_step(lambda net, optimizer, logits, loss: kept.append(logits))
    assert_close(after(tinynet.compile(step), net), engine())
    assert type(kept[0]) is Tensor
    np.testing.assert_array_equal(kept[0].numpy(), model()(X).numpy())


def test_weights_loaded_inside_come_after_what_was_computed_before():
    net, other = model(), {name: np.zeros_like(p) for name, p in model().state_dict().items()}

    def function(x):
        before = net(x)
        net.load_state_dict(other)
        return before, net(x)

    want = model()(X).numpy()
    fast = tinynet.compile(function)
    before, then = fast(X)
    np.testing.assert_array_equal(before.numpy(), want)
    assert not then.numpy().any() and "loads weights" in fast.explain()


def test_an_array_that_the_function_fills_anew_is_read_when_its_op_is_called():
    mask = np.ones_like(X)

    def function(x):
        first = F.relu(x) * mask
        mask.fill(0)
        return first, first * mask

    first, second = tinynet.compile(function)(tinynet.tensor(X))
    np.testing.assert_array_equal(first.numpy(), np.maximum(X, 0))
    assert not second.numpy().any()


def test_a_gradient_read_inside_is_that_of_backward():
    net, found = model(), []

    def function(x, y):
        for p in net.parameters():
            p.grad = None
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        found.extend(p.grad for p in net.parameters())
        return loss

    tinynet.compile(function)(X, Y)
    twin = model()
    F.cross_entropy(twin(X), Y).backward()
    assert_close(found, [p.grad for p in twin.parameters()])


def test_two_steps_in_one_function_are_two_steps():
    steps, net, _ = make_step()
    twin_step, twin, _ = make_step()
    tinynet.compile(lambda x, y: (steps(x, y), steps(x, y))[1])(X, Y)
    twin_step(X, Y), twin_step(X, Y)
    assert_close([p.numpy() for p in net.parameters()], [p.numpy() for p in twin.parameters()])


def test_what_runs_op_by_op_is_right_at_its_first_call():
    got = tinynet.compile(lambda x: (x * x + 1).sqrt())(tinynet.tensor(X))
    np.testing.assert_array_equal(got.numpy(), np.sqrt(X * X + 1))


def test_what_is_moved_to_another_device_is_there_at_the_first_call():
    @tinynet.compile
    def moved(x):
        return F.relu(x).to("reference")

    for _ in range(2):
        assert moved(tinynet.tensor([[1.0, -1.0]])).device == "reference"
    assert "tensors are on cpu, reference; programs run on cpu" in moved.explain()


def test_an_op_of_your_own_runs_at_once_and_once():
    ran = []

    @tinynet.op.op
    def my_square(k, x):
        ran.append(type(x))
        return x * x

    try:
        fast = tinynet.compile(lambda x: my_square(F.relu(x)))
        np.testing.assert_array_equal(fast(tinynet.tensor(X)).numpy(), np.maximum(X, 0) ** 2)
        assert ran == [np.ndarray]
    finally:
        OPS.pop("my_square")


# --- errors -------------------------------------------------------------------------------------------------------


def message(function, *args) -> str:
    with pytest.raises(Exception) as caught:
        function(*args)
    return f"{type(caught.value).__name__}: {caught.value} {getattr(caught.value, '__notes__', '')}"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: F.conv2d(x, np.zeros((2, 4, 3, 3), np.float32)),
        lambda x: F.cross_entropy(F.flatten(x), np.full(6, 1_000)),
        lambda x: F.relu(x) + np.zeros((7, 7), np.float32),
        lambda x: F.relu(x) + np.zeros(9, np.float64),
        lambda x: F.reshape(x, shape=(11, -1)),
        lambda x: F.relu(x).backward(),
    ],
    ids=["channels", "classes", "broadcasting", "dtypes", "reshape", "backward"],
)
def test_errors_are_those_of_the_engine(wrong):
    assert message(tinynet.compile(wrong), X) == message(wrong, X)


def test_a_step_that_fails_before_its_optimiser_leaves_the_weights():
    def fails(*_):
        raise RuntimeError("no more data")

    step, net, _ = make_step(fails)
    before = [p.numpy().copy() for p in net.parameters()]
    assert "no more data" in message(tinynet.compile(step), X, Y)
    for p, old in zip(net.parameters(), before):
        np.testing.assert_array_equal(p.numpy(), old)


def test_a_waiting_tensor_outlives_a_function_that_failed():
    kept = []

    def function(x):
        kept.append(F.relu(x))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        tinynet.compile(function)(X)
    assert isinstance(kept[0], Waiting) and kept[0].shape == X.shape
    np.testing.assert_array_equal(kept[0].numpy(), np.maximum(X, 0))
    assert type(kept[0]) is Tensor


def test_recording_is_what_it_was_when_the_ops_were_written_down():
    net = model()
    with traced_by(Trace([X])):
        y = net(X)
        with tinynet.no_grad():
            y.numpy()
    assert y.node is not None and y.requires_grad

    with tinynet.no_grad(), traced_by(Trace([X])):
        y = net(X)
        assert not y.requires_grad
    y.numpy()
    assert y.node is None and not y.requires_grad

"""Calls of what tinynet.compile returns, one after the other and at once: what changes between them is seen, and no call disturbs another."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from trainings import OPTIMIZERS, batch, classifier, ten_steps, training

import tinynet
from tinynet import functional as F
from tinynet import nn, optim
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential

# --- what changes between calls ------------------------------------------------------------------------------------


def test_parameters_that_others_change_are_seen():
    model, (x, _) = classifier(), batch()
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(x)
        model.load_state_dict({n: 2 * a for n, a in model.state_dict().items()})
        np.testing.assert_allclose(fast(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
        for p in model.parameters():
            p.data[...] *= 0.5  # in place, behind everybody's back
        np.testing.assert_allclose(fast(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
        for p in model.parameters():
            p.data = -p.data  # other memory
        np.testing.assert_allclose(fast(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("math", ["strict", "winograd"])
@pytest.mark.parametrize("count", [1, 5])
def test_one_weight_that_changes_is_seen_in_inference(count, math):
    """Weights are packed again only where they changed: the first and last of each layer, the sign of a zero, a NaN."""
    rng = np.random.default_rng(1)
    model = Sequential(Conv2d(3, 16, 3, padding=1), ReLU(), Conv2d(16, 24, 1), ReLU(), Conv2d(24, 24, 3, groups=24), Conv2d(24, 18, 3, padding=1), Conv2d(18, 6, (1, 2), groups=3))
    x = rng.standard_normal((count, 3, 9, 11)).astype(np.float32)
    fast = tinynet.compile(model, math=math)

    def assert_seen(what) -> None:
        with tinynet.no_grad():
            got = fast(x).numpy()
            np.testing.assert_array_equal(got.view(np.int32), tinynet.compile(model, math=math)(x).numpy().view(np.int32), err_msg=what)
            want = model(x).numpy()
            if math == "winograd" and np.isnan(want).any():  # in a transform a NaN meets pixels that its own tap finds in the padding
                want = np.where(np.isnan(got), np.nan, want)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=what)

    assert_seen("as they were made")
    for name, p in model.named_parameters():
        for place in (0, p.data.size // 2, -1):
            for value in (p.data.flat[place] + 1, 0.0, -0.0, np.nan, 0.25):
                p.data.flat[place] = value
                assert_seen(f"{name}[{place}] = {value}")
    for p in model.parameters():
        p.data = np.zeros_like(p.data)
    assert_seen("zeros")


@pytest.mark.parametrize("outputs", [56, 104])
def test_every_channel_that_changes_is_seen_where_panels_of_weights_overlap(outputs):
    """No tile's lanes divide so many on 3 x 3 pixels, whatever the vectors: the last panel holds some of the one before again."""
    tinynet.manual_seed(0)
    model = Sequential(Conv2d(5, outputs, 3, padding=1), ReLU(), Conv2d(outputs, outputs, 1))
    x = np.random.default_rng(0).standard_normal((1, 5, 3, 3)).astype(np.float32)
    fast = tinynet.compile(model)
    for name, p in model.named_parameters():
        for channel in range(outputs):
            p.data[channel] += 1
            with tinynet.no_grad():
                got = fast(x).numpy()
                np.testing.assert_array_equal(got, tinynet.compile(model)(x).numpy(), err_msg=f"{name}[{channel}]")
    with tinynet.no_grad():
        np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4)


def test_new_shapes_dtypes_and_modes_are_captured_anew_in_a_bounded_cache():
    model = Sequential(Conv2d(3, 4, 3), ReLU())
    fast = tinynet.compile(model, most=3)
    with tinynet.no_grad():
        for size in (5, 6, 7, 8, 9):
            for _ in range(2):
                x = np.random.default_rng(size).standard_normal((2, 3, size, size)).astype(np.float32)
                np.testing.assert_allclose(fast(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
    assert len(fast.plans) == 3


def test_the_training_mode_chooses_the_plan():
    class Moody(Module):
        def __init__(self):
            self.conv = Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return F.relu(x) if self.training else x

    model, x = Moody(), batch()[0]
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        for mode in (True, False, True, False):
            model.train(mode)
            np.testing.assert_allclose(fast(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_a_call_that_only_looks_like_the_last_one_gets_its_own_plan():
    x, runs = batch()[0], []

    @tinynet.compile
    def fast(x):
        runs.append(1)
        return F.max_pool2d(F.relu(x), 2)

    def in_mode(x, mode):
        with mode:
            return fast(x)

    @contextmanager
    def by_hand():
        with tinynet.use(conv2d="cpu.loops"), tinynet.no_grad():
            yield

    arguments = dict(array=x, fewer=x[1:], double=x.astype(np.float64), tensor=tinynet.tensor(x), leaf=tinynet.tensor(x, requires_grad=True))
    calls = {name: partial(in_mode, argument, tinynet.no_grad()) for name, argument in arguments.items()}
    calls |= dict(recording=partial(fast, arguments["leaf"]), by_hand=by_hand()(calls["array"]))
    for call in calls.values():
        call()
    assert len(fast.plans) == len(runs) == len(calls)
    for before in calls.values():
        for name, call in calls.items():
            before(), before()
            runs.clear()
            result = call()
            assert len(runs) == (name == "by_hand"), f"{name}: other kernels run op by op, and only they"
            assert (result.requires_grad, len(result), result.dtype) == (name == "recording", len(x) - (name == "fewer"), np.float64 if name == "double" else np.float32), name
    assert len(fast.plans) == len(calls)


def test_a_mode_that_is_set_between_calls_is_seen():
    class Doubled(Module):
        def forward(self, x):
            x = F.relu(x)
            return x + x if self.training else x

    model, x = Sequential(Doubled()), np.ones((1, 2), np.float32)
    fast, inner = tinynet.compile(model), next(m for _, m in model.children())
    for _ in range(2):
        for training in (True, True, False, False):
            inner.training = training
            assert fast(x).numpy().sum() == (4 if training else 2)


def test_parameters_of_another_shape_are_captured_once():
    weight, x, runs = nn.Parameter(np.ones((8, 8), np.float32)), np.ones((4, 8), np.float32), []

    @tinynet.compile
    def fast(x):
        runs.append(1)
        return F.relu(F.linear(x, weight))

    for outputs in (8, 16):
        weight.data = np.ones((outputs, 8), np.float32)
        for _ in range(4):
            assert fast(x).shape == (4, outputs)
    assert len(runs) == 2, fast.explain()


# --- no call disturbs another ------------------------------------------------------------------------------------------


def test_results_belong_to_the_caller():
    model, (x, _) = classifier(), batch()
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(x)
        first = fast(x)
        kept = first.numpy().copy()
        fast(2 * x)
    np.testing.assert_array_equal(first.numpy(), kept)


def test_two_graphs_of_one_compiled_model_do_not_disturb_each_other():
    model = Sequential(Conv2d(3, 4, 3), ReLU(), Conv2d(4, 2, 3))
    fast = tinynet.compile(model)
    a, b = (np.random.default_rng(i).standard_normal((2, 3, 7, 7)).astype(np.float32) for i in (0, 1))
    fast(a)
    first, second = fast(a), fast(b)
    (second.sum() * 0).backward()
    first.sum().backward()
    got = [p.grad.copy() for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    model(a).sum().backward()
    for p, g in zip(model.parameters(), got):
        np.testing.assert_allclose(g, p.grad, rtol=1e-5, atol=1e-5)


def test_two_threads_may_call_at_once():
    model = classifier()
    fast = tinynet.compile(model)
    inputs = [np.random.default_rng(i).standard_normal((4, 3, 14, 14)).astype(np.float32) for i in range(4)]
    with tinynet.no_grad():
        fast(inputs[0])
        want = [fast(x).numpy() for x in inputs]
    wrong = []

    def work(i):
        with tinynet.no_grad():
            wrong.extend(i for _ in range(200) if not (fast(inputs[i]).numpy() == want[i]).all())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_works():
    model = classifier()
    step = tinynet.compile(training(model, optim.SGD(model.parameters(), lr=0.1)))
    step(*batch()), step(*batch())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, np.float64(step(*batch()).item()).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert np.frombuffer(os.read(reading, 8))[0] == step(*batch()).item()


def test_the_number_of_threads_changes_no_bit():
    import numba

    found = []
    before = numba.get_num_threads()
    try:
        for count in sorted({1, before}):
            numba.set_num_threads(count)
            found.append(ten_steps(OPTIMIZERS["Adam"], True, count=7)[1])
    finally:
        numba.set_num_threads(before)
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[-1][name])


@pytest.mark.parametrize("math", ["strict", "winograd"])
@pytest.mark.parametrize("count", [1, 3, 5, 9, 14])
def test_no_bit_depends_on_how_few_images_are_cut_up(count, math, monkeypatch):
    """Dense layers, small and large, over all images or one by one; with more threads than there are processors, too."""
    from tinynet.kernels.cpu import threads

    def weights(slots: int) -> dict:
        monkeypatch.setattr(threads, "count", lambda: slots)
        tinynet.manual_seed(4)
        model = Sequential(Conv2d(3, 16, 3), ReLU(), Conv2d(16, 16, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(400, 512), ReLU(), Linear(512, 48), ReLU(), Linear(48, 5))
        step = tinynet.compile(training(model, optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)), math=math)
        losses = [step(*batch(count)).item() for _ in range(4)]
        assert all(np.isfinite(losses)) and losses[-1] < losses[0]
        return {**model.state_dict(), **{f"gradient of {name}": np.array(p.grad) for name, p in model.named_parameters()}}

    wanted = weights(1)
    for slots in (2, 4):
        got = weights(slots)
        for name, want in wanted.items():
            np.testing.assert_array_equal(got[name], want, err_msg=f"{name}, {slots} threads")

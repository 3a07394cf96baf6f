"""What no program takes runs as a single op between programs; the function as a whole gives what the engine gives."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from trainings import OPTIMIZERS, all_of, batch, classifier, whole_numbers

import tinynet
from tinynet import functional as F
from tinynet import optim
from tinynet.nn import Conv2d, Linear, Module, ReLU, Sequential
from tinynet.op import OPS, op
from tinynet.split import Single


@op
def tripled(k, x):
    return 3 * x


@tripled.gradient("x")
def _(k, dy):
    return 3 * dy


del OPS["tripled"]  # the tests of every op are not meant for it


@op
def relu(k, x):
    """Not tinynet's, in spite of its name."""
    return 2 * k.xp.maximum(x, 0)


@relu.gradient("x")
def _(k, dy, *, out):
    return 2 * dy * (out > 0)


OPS["relu"], another_relu = F.relu, relu


class Net(Module):
    """Layers, and a function of them and an image."""

    def __init__(self, run, **layers):
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(inputs=8, outputs=8, **options) -> Conv2d:
    return Conv2d(inputs, outputs, 3, padding=1, **options)


def stem(m, x):
    return F.relu(m.a(x))


def residual(m, x):
    h = stem(m, x)
    return F.relu(m.b(h * 2.0) + h)


def branches(m, x):
    h = stem(m, x)
    return m.b(h).permute(0, 1, 3, 2) + m.c(h)


def halves(m, x):
    h = stem(m, x)
    return F.relu(m.b(h[:, :4]) + m.c(h[:, 4:]))


def attention(m, x):
    rows = F.flatten(F.relu(m.a(x))).reshape(-1, 8, 36)
    return m.b(F.flatten(F.matmul(rows, rows.permute(0, 2, 1))))


def twice(m, x):
    return m.c(F.relu(m.b(F.relu(m.a(x)) * 2.0)).permute(0, 1, 3, 2)).flatten()


# name -> (network, shape of an image, what plays: programs, and the ops between them)
NETWORKS = {
    "at the start": (lambda: Net(lambda m, x: F.max_pool2d(F.relu(m.a(x * 2.0)), 2), a=conv(3)), (3, 6, 6), "multiply program"),
    "in the middle": (lambda: Net(lambda m, x: F.flatten(F.relu(m.b(tripled(stem(m, x))))), a=conv(3), b=conv()), (3, 6, 7), "program tripled program"),
    "at the end": (lambda: Net(lambda m, x: m.b(F.flatten(stem(m, x))).sum(axis=1), a=conv(3), b=Linear(288, 8)), (3, 6, 6), "program sum"),
    "twice": (lambda: Net(twice, a=conv(3), b=conv(), c=conv()), (3, 5, 5), "program multiply program permute program"),
    "a residual around it": (lambda: Net(residual, a=conv(3), b=conv()), (3, 6, 6), "program multiply program"),
    "branches": (lambda: Net(branches, a=conv(3), b=conv(), c=conv()), (3, 6, 6), "program program permute program"),
    "halves": (lambda: Net(halves, a=conv(3), b=conv(4), c=conv(4)), (3, 6, 6), "program getitem program getitem program"),
    "products of tensors": (lambda: Net(attention, a=conv(3), b=Linear(64, 5)), (3, 6, 6), "program reshape permute matmul flatten program"),
    "one weight for two layers": (lambda: Net(lambda m, x: m.a(F.relu(m.a(x))), a=conv(3, 3)), (3, 6, 6), "program program"),
    "weights that are computed": (lambda: Net(lambda m, x: m.b(F.relu(F.conv2d(x, m.a.weight * 2.0))), a=conv(3, bias=False), b=conv()), (3, 6, 6), "multiply conv2d program"),
    "an op of the same name": (lambda: Net(lambda m, x: m.b(another_relu(m.a(x))), a=conv(3), b=conv()), (3, 6, 6), "program relu program"),
    "float64 between": (lambda: Net(lambda m, x: m.b(stem(m, x).astype(np.float64).astype(np.float32)), a=conv(3), b=conv()), (3, 6, 6), "program astype astype program"),
    "NHWC": (lambda: Net(lambda m, x: m.b(stem(m, x).permute(0, 3, 1, 2)), a=conv(3, layout="NHWC"), b=conv()), (6, 6, 3), "program permute program"),
}  # fmt: skip


def made(name: str, whole: bool, count: int, dtype=np.float32):
    rng = np.random.default_rng(len(name))
    make, shape, _ = NETWORKS[name]
    model = make()
    for p in model.parameters():
        values = rng.integers(-1, 2, p.shape) if whole else rng.standard_normal(p.shape) / np.sqrt(np.prod(p.shape[1:]))
        p.data = values.astype(dtype)
    x = rng.integers(-2, 3, (count, *shape)) if whole else rng.standard_normal((count, *shape))
    return model, x.astype(dtype)


def parts(fast) -> str:
    """What the last capture plays."""
    *_, plan = fast.plans.values()
    assert not isinstance(plan, str), plan
    return " ".join(part.call.op if isinstance(part, Single) else "program" for part in plan.parts)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_numbers_come_out_bit_for_bit(name, count):
    model, x = made(name, True, count)
    fast = tinynet.compile(model)
    want = all_of(model, model, x, whole_numbers)
    all_of(model, fast, x, whole_numbers)
    got = all_of(model, fast, x, whole_numbers)
    assert parts(fast) == NETWORKS[name][2]
    assert all(np.abs(a).max() < 2**24 for a in want.values())  # where float32 counts one by one
    for key in want:
        np.testing.assert_array_equal(got[key], want[key], err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_gradients_too(name):
    model, x = made(name, True, 5)
    fast, x = tinynet.compile(model), tinynet.Tensor(x)
    with tinynet.no_grad():
        for _ in range(3):
            np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())
        assert "program" in parts(fast) and not fast(x).requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_real_numbers_are_as_near_to_the_truth_as_the_engine_s(name):
    """As in test_compile.py: an error that rounding in another order explains is of the engine's own size."""
    model, x = made(name, False, 3)

    def dy_of(dtype):
        return lambda shape: np.random.default_rng(3).standard_normal(shape).astype(dtype)

    fast = tinynet.compile(model)
    eager = all_of(model, model, x, dy_of(np.float32))
    all_of(model, fast, x, dy_of(np.float32))
    got = all_of(model, fast, x, dy_of(np.float32))
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    if name == "float64 between":
        model.run = lambda m, x: m.b(stem(m, x))
    truth = all_of(model, model, x.astype(np.float64), dy_of(np.float64))
    for key, want in truth.items():
        allowed = 4 * np.abs(eager[key] - want).max() + 8 * 2.0**-24 * np.abs(want).max()
        assert np.abs(got[key] - want).max() <= allowed, key


def test_several_results_come_from_as_many_programs():
    model = Net(lambda m, x: {"features": (h := stem(m, x)), "classes": [m.b(F.flatten(h))]}, a=conv(3), b=Linear(288, 5))
    fast, x = tinynet.compile(model), np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
    found = []
    for call in (model, fast, fast):
        y = call(x)
        (y["features"].sum() + y["classes"][0].sum()).backward()
        found.append([y["features"].numpy(), y["classes"][0].numpy(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    assert parts(fast) == "program program"
    for got, want in zip(found[2], found[0]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_integers_are_left_to_their_ops():
    model = classifier()
    fast = tinynet.compile(lambda x, y: (F.flatten(y), model(x), F.flatten(y)))
    x, y = batch()
    y = np.stack([y, y + 1], axis=1)
    with tinynet.no_grad():
        for _ in range(2):
            for classes in fast(x, y)[::2]:
                np.testing.assert_array_equal(classes.numpy(), y)
    assert parts(fast) == "flatten program flatten"


# --- training steps -------------------------------------------------------------------------------------------


class Gated(Module):
    """classifier(), with ops between its layers that no program takes."""

    def __init__(self, dtype):
        self.layers = classifier(dtype)

    def forward(self, x):
        h = self.layers[:3](x)
        h = h * (h * -1.0).exp()
        return self.layers[3:](h)


def penalised(model, output, y):
    return F.cross_entropy(output, y) * 2.0 + 1e-3 * sum((p * p).sum() for p in model.parameters())


MODELS = {"middle": Gated, "loss": classifier, "both": Gated}
LOSSES = {"middle": lambda model, output, y: F.cross_entropy(output, y), "loss": penalised, "both": penalised}


def ten_steps(where: str, make_optimizer, compiled: bool, dtype=np.float32, count=6):
    model = MODELS[where](dtype)
    optimizer = make_optimizer(list(model.parameters()))

    def step(x, y):
        optimizer.zero_grad()
        loss = LOSSES[where](model, model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step = tinynet.compile(step) if compiled else step
    losses = [step(*batch(count, dtype)).item() for _ in range(10)]
    if compiled:
        assert parts(step).count("program") == (1 if where == "loss" else 2)
    return losses, model.state_dict()


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Adam", "AdamW"])
@pytest.mark.parametrize("where", MODELS)
def test_ten_steps_lead_to_the_same_weights(where, optimizer, count):
    make = OPTIMIZERS[optimizer]
    _, truth = ten_steps(where, make, False, np.float64, count)
    (eager_losses, eager), (losses, got) = ten_steps(where, make, False, count=count), ten_steps(where, make, True, count=count)
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-4, atol=1e-5)
    for name in truth:
        error, own = np.abs(got[name] - truth[name]).max(), np.abs(eager[name] - truth[name]).max()
        assert error <= 4 * own + 1e-5 * np.abs(truth[name]).max(), name


def test_a_step_whose_argument_needs_a_gradient():
    model, (x, y) = classifier(), batch()
    found = []
    for compiled in (False, True):
        images = tinynet.Tensor(x.copy(), requires_grad=True)

        def step(images, y):
            images.grad = None
            loss = F.cross_entropy(model(images), y)
            loss.backward()
            return loss

        step = tinynet.compile(step) if compiled else step
        step(images, y)
        other = tinynet.Tensor(2 * x, requires_grad=True)
        other.grad = np.ones_like(x)  # which the step sets to None first
        step(other, y)
        found.append(other.grad)
    assert parts(step) == "program"
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_step_that_returns_another_loss_too():
    weights = []
    for compiled in (False, True):
        model = classifier()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            output = model(x)
            seen, loss = F.cross_entropy(output, y, reduction="sum"), F.cross_entropy(output, y)
            loss.backward()
            optimizer.step()
            return seen, loss

        step = tinynet.compile(step) if compiled else step
        for _ in range(3):
            seen, loss = step(*batch())
            assert seen.item() == pytest.approx(6 * loss.item(), rel=1e-5)
        weights.append(model.state_dict())
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-5)


def test_a_step_that_returns_what_it_computed_after_the_loss():
    found = []
    for compiled in (False, True):
        model = classifier()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            output = model(x)
            loss, probabilities = F.cross_entropy(output, y), F.softmax(output)
            loss.backward()
            optimizer.step()
            return probabilities

        step = tinynet.compile(step) if compiled else step
        found.append([step(*batch()).numpy() for _ in range(4)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_a_step_whose_loss_is_no_loss_of_tinynet_s():
    weights = []
    for compiled in (False, True):
        model = Sequential(Linear(9, 8), ReLU(), Linear(8, 4))
        for p in model.parameters():
            p.data[...] = 0.125
        optimizer = optim.SGD(model.parameters(), lr=0.5)

        def step(x):
            optimizer.zero_grad()
            F.linear(model(x), last).backward()
            optimizer.step()

        last = np.ones((1, 4), np.float32)
        step = tinynet.compile(step) if compiled else step
        for _ in range(3):
            step(np.ones((1, 9), np.float32))
        weights.append(model.state_dict())
    for name in weights[0]:
        np.testing.assert_array_equal(weights[1][name], weights[0][name])


def test_an_optimiser_of_one_s_own_steps_between_programs():
    class Halved(optim.Optimizer):
        def update(self, k, t, w, g):
            w -= 0.5 * g

    weights = []
    for compiled in (False, True):
        model = classifier()
        optimizer = Halved(model.parameters())

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = tinynet.compile(step) if compiled else step
        for _ in range(4):
            step(*batch())
        weights.append(model.state_dict())
    assert parts(step) == "program"
    assert "the optimiser steps by itself, since cross_entropy ((6, 5), (6,)) is in no program: Halved is no SGD, Adam or AdamW" in step.explain()
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-5)


def test_a_wrong_class_is_an_error_and_changes_no_weight():
    model = Gated(np.float32)
    optimizer = optim.Adam(model.parameters())

    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = batch()
    step(x, y), step(x, y)
    before = model.state_dict()
    with pytest.raises(ValueError, match="cross_entropy: classes run from 0 to 4; target holds 0 to 5"):
        step(x, np.array([0, 5, 1, 1, 1, 1]))
    assert all((model.state_dict()[n] == before[n]).all() for n in before)
    step(x, y)


# --- what changes between calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_that_others_change_are_seen(name):
    model, x = made(name, True, 3)
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(x)
        model.load_state_dict({n: 2 * a for n, a in model.state_dict().items()})
        np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())
        for p in model.parameters():
            p.data[...] *= -1  # in place, behind everybody's back
        np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())
        for p in model.parameters():
            p.data = p.data + 1  # other memory
        np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())
        assert len(fast.plans) == 1
        for p in model.parameters():
            p.data = np.asfortranarray(p.data)  # in another order, which no program reads
        fast(x)
        np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())


def test_a_weight_that_was_edited_before_backward_is_noticed():
    model = Net(lambda m, x: m.b(stem(m, x) * 2.0), a=conv(3), b=conv())
    fast, x = tinynet.compile(model), np.ones((2, 3, 5, 5), np.float32)
    fast(x)
    y = fast(x).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_copied_argument_stays_the_caller_s():
    """What is returned may be a view of the copy that the function makes, but never of the argument."""
    model = Sequential(conv(3), ReLU())
    fast = tinynet.compile(lambda x: ((t := tinynet.tensor(x)).permute(0, 2, 3, 1), model(t)))
    x = np.ones((2, 3, 4, 4), np.float32)
    with tinynet.no_grad():
        fast(x)
        view, _ = fast(x)
        x[...] = 7
    assert parts(fast) == "permute program" and (view.numpy() == 1).all()


def test_a_copy_of_an_argument_that_needs_a_gradient_is_a_leaf_of_its_own():
    model, leaves = conv(3), []

    def function(x):
        leaves[:] = [tinynet.tensor(x, requires_grad=True)]
        return model(leaves[0]) * 2.0

    fast = tinynet.compile(function)
    for n in (1, 2, 3):
        x = np.full((2, 3, 5, 5), n, np.float32)
        np.testing.assert_array_equal(fast(x).numpy(), function(x).numpy())
        fast(x).sum().backward()
        assert leaves[0].grad is not None
    gone = tinynet.compile(lambda x: model(tinynet.tensor(x, requires_grad=True)) * 2.0)
    gone(x), np.testing.assert_array_equal(gone(2 * x).numpy(), function(2 * x).numpy())
    assert "makes for itself" in gone.explain()


def test_an_argument_that_was_detached_gets_no_gradient():
    model = conv(3)
    fast = tinynet.compile(lambda x: model(x.detach()) * 2.0)
    x = tinynet.Tensor(np.ones((2, 3, 5, 5), np.float32), requires_grad=True)
    for _ in range(2):
        fast(x).sum().backward()
        assert x.grad is None


def test_a_compiled_model_within_a_compiled_function():
    model = classifier()
    inner = tinynet.compile(model)
    outer = tinynet.compile(lambda x: inner(x) * 2.0)
    x = batch()[0]
    inner(x), inner(x), outer(x)
    np.testing.assert_allclose(outer(2 * x).numpy(), 2 * model(2 * x).numpy(), rtol=1e-5)
    assert parts(outer) == "program multiply"


def test_the_cache_is_bounded_and_memory_between_parts_is_let_go():
    model = Net(lambda m, x: F.relu(m.b(stem(m, x) * 2.0)), a=conv(3), b=conv())
    fast = tinynet.compile(model, most=2)
    with tinynet.no_grad():
        for size in (4, 5, 6, 7):
            x = np.ones((2, 3, size, size), np.float32)
            np.testing.assert_array_equal(fast(x).numpy().shape, fast(x).shape)
    assert len(fast.plans) == 2
    *_, plan = fast.plans.values()
    values = {0: x}
    plan._play(values)
    assert list(values) == plan.results


def test_two_threads_may_call_at_once():
    model = Gated(np.float32)
    fast = tinynet.compile(model)
    inputs = [np.random.default_rng(i).standard_normal((4, 3, 14, 14)).astype(np.float32) for i in range(4)]
    with tinynet.no_grad():
        fast(inputs[0])
        want = [fast(x).numpy() for x in inputs]
    wrong = []

    def work(i):
        with tinynet.no_grad():
            wrong.extend(i for _ in range(100) if not (fast(inputs[i]).numpy() == want[i]).all())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_works():
    model, (x, y) = Gated(np.float32), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = penalised(model, model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step(x, y), step(x, y)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, np.float64(step(x, y).item()).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert np.frombuffer(os.read(reading, 8))[0] == step(x, y).item()


# --- what it says -------------------------------------------------------------------------------------------------------


def test_explain_names_every_program_and_why_an_op_is_in_none():
    model = Net(lambda m, x: F.relu(m.c(F.relu(tripled(m.b(stem(m, x) * 2.0))).sqrt())), a=conv(3), b=conv(), c=conv())
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(np.ones((2, 3, 6, 6), np.float32))
    text = fast.explain()
    assert parts(fast) == "program multiply program tripled relu sqrt program"
    assert "3 programs, 4 ops by themselves" in text
    wanted = [
        "program 0: 2 images",
        "conv2d + bias + relu",
        "multiply ((2, 8, 6, 6)) is in no program: it has a number for an input",
        "program 1: 2 images",
        "tripled ((2, 8, 6, 6)) is in no program: it is an op of your own",
        "relu ((2, 8, 6, 6)) is in no program: there is no layer beside it",
        "sqrt ((2, 8, 6, 6)) is in no program: there is no fused kernel for it",
        "program 2: 2 images",
    ]
    places = [text.index(words) for words in wanted]
    assert places == sorted(places) and "op by op" not in text


def test_explain_says_why_a_step_is_no_single_program():
    model = classifier()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = penalised(model, model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step(*batch())
    text = step.explain()
    assert "backward goes from part to part, and the optimiser steps by itself, since multiply (()) is in no program: it has a number" in text
    assert "add ((), ()) is in no program: its input () is no batch of images or rows (x 8)" in text

"""A compiled training step leads where the engine's leads: weights, gradients, the optimiser's numbers, and what is an error."""

from __future__ import annotations

import numpy as np
import pytest
from trainings import LOSSES, OPTIMIZERS, batch, classifier, ten_steps, training

import tinynet
from tinynet import functional as F
from tinynet import optim
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_steps_lead_to_the_same_weights(optimizer, count):
    make = OPTIMIZERS[optimizer]
    (_, truth), (eager_losses, eager), (losses, got) = ten_steps(make, False, np.float64, count=count), ten_steps(make, False, count=count), ten_steps(make, True, count=count)
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-4, atol=1e-5)
    for name in truth:
        error, own = np.abs(got[name] - truth[name]).max(), np.abs(eager[name] - truth[name]).max()
        assert error <= 4 * own + 1e-5 * np.abs(truth[name]).max(), name


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_leads_to_the_same_weights(loss):
    make = OPTIMIZERS["SGD"]
    (a, eager), (b, got) = ten_steps(make, False, loss_of=LOSSES[loss]), ten_steps(make, True, loss_of=LOSSES[loss])
    np.testing.assert_allclose(b, a, rtol=1e-4)
    for name in eager:
        np.testing.assert_allclose(got[name], eager[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_compiled_loss_is_a_part_of_a_larger_graph(loss):
    model, (x, y) = classifier(), batch()
    fast = tinynet.compile(lambda x, y: LOSSES[loss](model(x), y))
    fast(x, y)
    (fast(x, y) * 3.0).backward()
    assert "op by op" not in fast.explain(), fast.explain()
    got = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    (LOSSES[loss](model(x), y) * 3.0).backward()
    for p, g in zip(model.parameters(), got):
        np.testing.assert_allclose(g, p.grad, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fast(x, y).numpy(), LOSSES[loss](model(x), y).numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="classes run from 0 to 4"):
        fast(x, y + 5)


def test_a_method_may_be_compiled():
    class Trainer:
        def __init__(self):
            self.model = classifier()
            self.optimizer = optim.SGD(self.model.parameters(), lr=0.1)

        @tinynet.compile
        def step(self, x, y):
            return training(self.model, self.optimizer)(x, y)

    trainer = Trainer()
    first = trainer.step(*batch()).item()
    assert trainer.step(*batch()).item() < first
    fast = tinynet.compile(trainer.model)
    assert list(fast.parameters()) == list(trainer.model.parameters())


def test_gradients_of_a_step_are_there_when_asked_for():
    one, two = classifier(), classifier()
    steps = [training(m, optim.SGD(m.parameters(), lr=0.0)) for m in (one, two)]
    steps[1] = tinynet.compile(steps[1])
    for _ in range(2):
        for step in steps:
            step(*batch())
    for p, q in zip(one.parameters(), two.parameters()):
        np.testing.assert_allclose(q.grad, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count, features, hidden", [(5, 32, 64), (600, 32, 64), (32, 4096, 64), (7, 45, 29)], ids=["one block", "blocks of terms", "blocks of columns", "tiles moved back"])
def test_gradients_of_a_step_that_was_taken_at_once_are_computed_when_asked_for(count, features, hidden):
    """A dense layer's gradient is as large as the layer: SGD uses it tile by tile, and keeps none."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((count, features)).astype(np.float32), rng.integers(0, 8, count)
    models = [Sequential(Linear(features, hidden), ReLU(), Linear(hidden, 8)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    steps = [training(m, optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1)) for m in models]
    steps[1] = tinynet.compile(steps[1])
    for _ in range(3):
        for step in steps:
            step(x, y)
    assert "step of SGD" in steps[1].explain()
    for p, q in zip(*(m.parameters() for m in models)):
        np.testing.assert_allclose(q.grad, p.grad, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(q.data, p.data, rtol=1e-5, atol=1e-6)


def test_gradients_add_up_without_zero_grad():
    model = classifier()

    @tinynet.compile
    def gradients(x, y):
        F.cross_entropy(model(x), y).backward()

    gradients(*batch())
    once = [p.grad.copy() for p in model.parameters()]
    gradients(*batch())
    for p, g in zip(model.parameters(), once):
        np.testing.assert_allclose(p.grad, 2 * g, rtol=1e-5, atol=1e-7)
        p.grad = None
    gradients(*batch())
    for p, g in zip(model.parameters(), once):
        np.testing.assert_allclose(p.grad, g, rtol=1e-5, atol=1e-7)


def test_an_optimiser_that_finds_older_gradients_adds_to_them():
    weights = []
    for compiled in (False, True):
        model = classifier()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = tinynet.compile(step) if compiled else step
        for _ in range(3):
            step(*batch())
        weights.append(model.state_dict())
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], rtol=1e-5, atol=1e-6)


def test_the_learning_rate_is_the_optimiser_s_of_the_moment():
    model = classifier()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = tinynet.compile(training(model, optimizer))
    step(*batch()), step(*batch())
    optimizer.lr = 0.0
    before = model.state_dict()
    step(*batch())
    assert all((model.state_dict()[n] == before[n]).all() for n in before)


def test_momentum_that_is_turned_off_is_seen():
    weights = []
    for compiled in (False, True):
        model = classifier()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = training(model, optimizer)
        step = tinynet.compile(step) if compiled else step
        step(*batch()), step(*batch())
        optimizer.momentum = 0.0
        step(*batch()), step(*batch())
        weights.append(model.state_dict())
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)


def test_momentum_that_is_turned_on_is_seen():
    model = Sequential(Conv2d(3, 8, 3), Flatten(), Linear(8 * 144, 5))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = tinynet.compile(training(model, optimizer))
    step(*batch()), step(*batch())
    optimizer.momentum = 0.9
    optimizer.state = [{} for _ in optimizer.parameters]
    step(*batch()), step(*batch())
    assert all("v" in state for state in optimizer.state)


def test_sums_of_every_chunk_have_memory_of_their_own():
    """A pooled convolution without bias: the sums that nobody reads may not run into what lies behind them."""
    model = Sequential(Conv2d(3, 8, 3, bias=False), ReLU(), MaxPool2d(2))
    fast = tinynet.compile(model)
    for _ in range(2):
        fast(np.ones((20, 3, 8, 8), np.float32))
    (plan,) = fast.plans.values()
    network = plan.parts[0].network
    assert network.chunks > 1 and all(m.copies == network.chunks for m in network.memories if m.what.startswith("sums"))


def test_a_wrong_class_is_an_error_and_changes_no_weight():
    model = classifier()
    step = tinynet.compile(training(model, optim.Adam(model.parameters())))
    x, y = batch()
    step(x, y), step(x, y)
    before = model.state_dict()
    with pytest.raises(ValueError, match="cross_entropy: classes run from 0 to 4; target holds 0 to 5"):
        step(x, np.array([0, 5, 1, 1, 1, 1]))
    assert all((model.state_dict()[n] == before[n]).all() for n in before)
    step(x, y)  # and the next step is none the worse

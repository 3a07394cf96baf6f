"""Profiles of compiled programs: the steps are the program's, nothing of the caller's changes, what is counted is what it says. (No times are tested.)"""

from __future__ import annotations

import numpy as np
import pytest

import tinynet
from tinynet import functional as F
from tinynet.kernels.cpu import profile
from tinynet.kernels.cpu.costs import parts
from tinynet.kernels.cpu.profile import Stamped
from tinynet.kernels.cpu.program import play
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

RNG = np.random.default_rng(0)


def classifier(features: int = 4 * 4 * 4) -> Sequential:
    return Sequential(Conv2d(3, 8, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(8, 4, 3, padding=1), ReLU(), Flatten(), Linear(features, 10))


def batch(images: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((images, 3, 8, 8)).astype(np.float32), np.arange(images) % 10


def training(model, optimizer):
    @tinynet.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


OPTIMIZERS = {
    "sgd": lambda p: tinynet.optim.SGD(p, 0.1, weight_decay=0.01),
    "momentum": lambda p: tinynet.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: tinynet.optim.AdamW(p, 0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_profile_changes_nothing_and_has_every_step(kind):
    model, (x, y) = classifier(), batch(9)
    optimizer = OPTIMIZERS[kind](model.parameters())
    step = training(model, optimizer)
    step(x, y)
    step(x, y)
    before = [p.numpy().copy() for p in model.parameters()]
    gradients = [p.grad.copy() for p in model.parameters()]
    states = [{name: np.array(value) for name, value in state.items()} for state in optimizer.state]
    profile = step.profile(x, y, rounds=1)
    assert all(np.array_equal(a, p.numpy()) for a, p in zip(before, model.parameters()))
    assert all(np.array_equal(a, p.grad) for a, p in zip(gradients, model.parameters()))
    assert all(np.array_equal(old[name], state[name]) for old, state in zip(states, optimizer.state) for name in old)
    plan = next(iter(step.plans.values()))
    planned = [s.what for program in plan.whole.network.phases for steps, *_ in program for s in steps]
    assert [s.name for s in profile.steps] == planned
    assert all(s.seconds > 0 and s.low <= s.seconds <= s.high and s.in_place > 0 and s.moved > 0 and s.touched > 0 for s in profile.steps)
    assert [p.phase for p in profile.phases] == list(range(len(plan.whole.network.phases[0]))) and all(p.seconds > p.waited for p in profile.phases)
    assert profile.stamped == pytest.approx(profile.waited + sum(s.in_place for s in profile.steps))
    assert profile.seconds > 0 and profile.sum == pytest.approx(sum(s.seconds for s in profile.steps))
    assert any(s.kernel == f"{kind}(float32)" for s in profile.steps)
    text = str(profile)
    assert "9 images" in text and text.count("\n") == len(planned) + 1 and "conv2d + bias + relu + max_pool2d, 3x8x8 and 8x4x4, conv_pool(" in text


def test_the_steps_one_after_the_other_are_the_program():
    """Of one image, so that nothing that a later step reads is overwritten, and on one thread: each has scratch memory of its own."""
    model, (x, y) = classifier(), batch(1)
    step = training(model, tinynet.optim.SGD(model.parameters(), 0.0))
    step(x, y)
    want = step(x, y).item()
    whole = next(iter(step.plans.values())).whole
    network, arena = whole.network, whole.network.arena()
    whole._bind(arena, {0: x, 1: y})
    whole._hyper(arena)
    (loss,) = whole._bind_results(arena).values()
    for part in parts(network):
        play(arena.add(part.alone(1)), 1)
    assert loss.item() == want
    for v, p in whole.trained:
        np.testing.assert_array_equal(network.gradient(arena, v), p.grad)


def stamped(images: int):
    """A training step's programs with stamps, its part, an arena in which all is bound; where the loss will be, and what it will be."""
    model, (x, y) = classifier(), batch(images)
    step = training(model, tinynet.optim.SGD(model.parameters(), 0.0))
    step(x, y)
    loss = step(x, y).item()
    whole = next(iter(step.plans.values())).whole
    arena = whole.network.arena()
    whole._bind(arena, {0: x, 1: y})
    whole._hyper(arena)
    (found,) = whole._bind_results(arena).values()
    return Stamped(whole.network, arena), whole, arena, found, loss


@pytest.mark.parametrize("images", [1, 2, 9, 40])
def test_stamps_change_nothing_and_every_step_has_one(images):
    programs, whole, arena, found, loss = stamped(images)
    ticks, steps, phases = programs.play()
    assert found.item() == loss
    for v, p in whole.trained:
        np.testing.assert_array_equal(whole.network.gradient(arena, v), p.grad)
    assert len(steps) == len(list(parts(whole.network))) and all(step > 0 for step in steps)
    assert len(phases) == len(whole.network.phases[0]) and all(phase > waited for phase, waited in phases)
    assert ticks == pytest.approx(sum(phase for phase, _ in phases)) == pytest.approx(sum(steps) + sum(waited for _, waited in phases))


def test_a_step_in_its_place_is_the_time_of_its_threads_divided_by_their_number(monkeypatch):
    programs, whole, *_ = stamped(9)
    phases = whole.network.phases[0]
    threads = [min(whole.network.slots, chunks * shares) for _, _, chunks, shares in phases]

    def by_hand(address, slots):
        """Of thread t each step takes 10 (t + 1) ticks, and each phase ends 100 later than the steps of its last thread."""
        stamps, end = programs.stamps, 1000
        if address == programs.start:
            stamps[0, 0, 0] = end
            return
        for phase, ((steps, *_), count) in enumerate(zip(phases, threads), 1):
            for thread in range(count):
                stamps[phase, thread, 1 : 1 + len(steps)] = 10 * (thread + 1)
                stamps[phase, thread, 0] = end + 100 + 10 * (thread + 1) * len(steps)
            end += 100 + 10 * count * len(steps)

    monkeypatch.setattr(profile, "play", by_hand)
    ticks, in_place, in_phases = programs.play()
    means = [10 * (1 + count) / 2 for count in threads]
    assert in_place == [mean for mean, (steps, *_) in zip(means, phases) for _ in steps]
    wholes = [100 + 10 * count * len(steps) for count, (steps, *_) in zip(threads, phases)]
    assert ticks == sum(wholes) and in_phases == [(whole, whole - mean * len(steps)) for whole, mean, (steps, *_) in zip(wholes, means, phases)]


def test_what_takes_a_hundred_times_as_long_does_so_in_its_place():
    model = Sequential(Conv2d(3, 8, 1), ReLU(), Conv2d(8, 64, 3, padding=1), ReLU(), Conv2d(64, 64, 3, padding=1))
    x = RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(x)
        steps = [s for s in fast.profile(x, rounds=1).steps if s.name.startswith("conv2d")]
    assert steps[2].operations > 100 * steps[0].operations and steps[2].in_place > 5 * steps[0].in_place


def test_operations_and_bytes_are_those_of_the_definition():
    images, model = 9, classifier()
    x, y = batch(images)
    step = training(model, tinynet.optim.Adam(model.parameters()))
    step(x, y)
    steps = {}
    for s in step.profile(x, y, rounds=1).steps:
        steps.setdefault(s.kernel.partition("(")[0], []).append(s)
    pooled, *_ = steps["conv_pool"]
    assert pooled.operations == images * 2 * 8 * 3 * (8 * 3 - 2) ** 2  # two of a row's 8 * 3 places lie in the padding, and are not computed
    # the images, weights and biases once an image, the outputs, and which of each window's places won
    assert pooled.moved == 4 * images * (3 * 64 + 27 * 8 + 8 + 2 * 8 * 16)
    assert pooled.on == "3x8x8 and 8x4x4" and not pooled.fewer
    adam = max(steps["adam"], key=lambda s: s.moved)
    assert (adam.operations, adam.moved, adam.on) == (14 * 640, 4 * 640 * 7, "640")  # g is read; w, m and s are read and written
    (loss,) = steps["cross_entropy"]
    assert loss.operations == 6 * 10 * images and loss.moved == images * (4 * 10 * 2 + 8 + 4) and loss.name == "cross_entropy"
    assert all(s.operations is None and s.gflops is None for s in steps["pack"] + steps["bring"])
    summed = [s for s in steps["row_sums"] if s.name == "gradient of the bias"]
    assert [s.operations for s in summed] == [10 * (images - 1)]


def test_a_function_whose_graph_goes_on_has_a_forward_and_a_backward():
    model, (x, _) = classifier(), batch(5)
    fast = tinynet.compile(model)
    fast(x)
    profile = fast.profile(x, rounds=1)
    assert {s.program for s in profile.steps} == {"forward", "backward"}
    result = fast(x)
    result.sum().backward()
    gradients = [p.grad.copy() for p in model.parameters()]
    fast.profile(x, rounds=1)
    assert all(np.array_equal(a, p.grad) for a, p in zip(gradients, model.parameters()))


def test_programs_with_an_op_between_them_are_profiled_one_after_the_other():
    before, after, (x, y) = Sequential(Conv2d(3, 8, 3), ReLU()), Sequential(Conv2d(8, 4, 3), Flatten(), Linear(4 * 4 * 4, 10)), batch(5)
    optimizer = tinynet.optim.SGD([*before.parameters(), *after.parameters()], 0.1)
    step = training(lambda x: after(before(x).exp()), optimizer)
    step(x, y)
    weights = [p.numpy().copy() for p in optimizer.parameters]
    profile = step.profile(x, y, rounds=1)
    assert [s.program for s in profile.steps if s.name.startswith("conv2d")] == ["program 0, forward", "program 1, forward"]
    assert {s.program for s in profile.steps if s.name.startswith("gradient")} == {"program 0, backward", "program 1, backward"}
    assert all(np.array_equal(a, p.numpy()) for a, p in zip(weights, optimizer.parameters))
    assert "program 1, forward: " in str(profile)


def test_what_is_fewer_is_said():
    model = Sequential(Conv2d(16, 16, 3, padding=1), ReLU())
    x = RNG.standard_normal((3, 16, 12, 12)).astype(np.float32)
    fast = tinynet.compile(model, math="winograd")
    with tinynet.no_grad():
        fast(x)
        (found,) = [s for s in fast.profile(x, rounds=1).steps if "Winograd" in s.name]
    assert found.fewer and found.operations == 3 * 2 * 16 * 16 * (12 * 3 - 2) ** 2


def test_what_can_not_be_profiled_says_why():
    model, (x, _) = classifier(), batch(3)
    fast = tinynet.compile(model)
    with pytest.raises(ValueError, match="not captured yet: call it once"):
        fast.profile(x)
    fast(x)
    with pytest.raises(ValueError, match="not captured yet"):
        fast.profile(x[:2])
    with pytest.raises(ValueError, match="rounds must be an int of at least 1; got 0"):
        fast.profile(x, rounds=0)
    slow = tinynet.compile(lambda x: tinynet.Tensor(x).sqrt())
    slow(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="op by op, since .*sqrt"):
        slow.profile(np.ones((2, 3), np.float32))

"""Programs for a few images are tried on one thread and on all: the faster is kept for a while, and no bit depends on it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from trainings import batch, classifier, training

import tinynet
from tinynet import optim
from tinynet.kernels.cpu import threads, trial
from tinynet.kernels.cpu.trial import Trial


class Pretended:
    """A network whose programs take some milliseconds."""

    def __init__(self, slots: int, milliseconds: float, programs: int = 1, few: bool = True):
        self.slots, self.milliseconds, self.programs, self.few, self.played = slots, milliseconds, [None] * programs, few, 0

    def arena(self):
        class Memory:
            network, seconds = self, 0.0

        return Memory()

    def play(self, arena, program):
        self.played += 1
        time.sleep(self.milliseconds / 1000)

    def explain(self) -> str:
        return "phases"


def call(tried: Trial, programs: int = 1) -> int:
    """One call; the threads of the network that played it."""
    arena = tried.take()
    for program in range(programs):
        tried.play(arena, program)
    tried.give(arena)
    return arena.network.slots


TRIAL = 2 * trial.RUNS * trial.RUN  # calls


@pytest.mark.parametrize("alone, together, best", [(1, 15, 1), (15, 1, 4)])
def test_the_faster_of_two_is_kept_until_the_next_trial(alone, together, best, monkeypatch):
    monkeypatch.setattr(trial, "KEPT", 6)
    all_threads, one = Pretended(4, together), Pretended(1, alone)
    tried = Trial(all_threads, lambda: one)
    assert [call(tried) for _ in range(trial.FIRST)] == [4] * trial.FIRST
    assert [call(tried) for _ in range(TRIAL)] == trial.RUNS * ([4] * trial.RUN + [1] * trial.RUN), "a few in a row"
    assert [call(tried) for _ in range(6)] == [best] * 6
    assert tried.explain() == f"phases\ntried on 4 and on 1 threads: {best} {'was' if best == 1 else 'were'} faster"
    all_threads.milliseconds, one.milliseconds = one.milliseconds, all_threads.milliseconds
    for _ in range(TRIAL):
        call(tried)
    assert [call(tried) for _ in range(24)] == [5 - best] * 24 and tried.left == 0, "the machine had changed; and now four times as long"


def test_both_layouts_are_there_to_be_timed_before_a_trial_and_after_and_only_one_of_many_images():
    all_threads, one = Pretended(4, 1), Pretended(1, 1)
    tried = Trial(all_threads, lambda: one)
    assert tried.layouts() == [all_threads, one]
    for _ in range(trial.FIRST + TRIAL):
        call(tried)
    assert tried.layouts() == [all_threads, one]
    assert Trial(many := Pretended(4, 1, few=False), lambda: one).layouts() == [many]


def test_a_profile_of_few_images_is_of_the_faster_layout(monkeypatch):
    from tinynet.kernels.cpu import profile

    monkeypatch.setattr(threads, "count", lambda: 2)
    model, (x, _) = classifier(), batch(1)
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        fast(x)
        took = {2: 2.0, 1: 1.0}
        monkeypatch.setattr(profile, "profile", lambda network, *rest: profile.Profile(1, network.slots, [], [], took[network.slots]))
        assert fast.profile(x).threads == 1
        took[1] = 3.0
        assert fast.profile(x).threads == 2


def test_that_a_thread_was_asleep_does_not_decide():
    """It sleeps while the other way is played, so the first call after that is slow: not every call may be one."""
    last = []

    class Sleepy(Pretended):
        def play(self, arena, program):
            if self.slots == 4:
                self.milliseconds = 1 if last == [4] else 30
            last[:] = [self.slots]
            super().play(arena, program)

    tried = Trial(Sleepy(4, 1), lambda: Sleepy(1, 10))
    for _ in range(trial.FIRST + TRIAL):
        call(tried)
    assert tried.best.slots == 4


def test_threads_that_are_late_for_a_whole_row_do_not_decide():
    """They had slept for long, and the calls are so short that a row of them is over before a thread is awake."""
    awake = []

    class Late(Pretended):
        def play(self, arena, program):
            awake.append(self.slots)
            self.milliseconds = 20 if len(awake) <= trial.FIRST + trial.RUN else 1
            super().play(arena, program)

    tried = Trial(Late(4, 1), lambda: Pretended(1, 10))
    for _ in range(trial.FIRST + TRIAL):
        call(tried)
    assert tried.best.slots == 4


def test_the_memory_of_the_slower_one_is_let_go():
    tried = Trial(Pretended(4, 1), lambda: Pretended(1, 10))
    for _ in range(trial.FIRST + TRIAL + 1):
        call(tried)
    assert {network.slots: len(arenas) for network, arenas in tried.free.items()} == {4: 1, 1: 0}


def test_forward_alone_says_nothing_of_forward_and_backward():
    """Where nobody asks for backward, all threads go on; a call counts when its backward has run."""
    tried = Trial(Pretended(4, 10, programs=2), lambda: Pretended(1, 1, programs=2))
    for _ in range(trial.FIRST + TRIAL + 2 * trial.RUN):
        call(tried, programs=1)
    assert tried.best.slots == 4 and not tried.times and tried.left == trial.KEPT
    for _ in range(trial.KEPT + TRIAL):
        call(tried, programs=2)
    assert tried.best.slots == 1 and not tried.times


def test_many_images_are_not_tried():
    tried = Trial(Pretended(4, 0, few=False), lambda: pytest.fail("made another one"))
    assert {call(tried) for _ in range(40)} == {4} and tried.explain() == "phases"


def test_threads_that_call_at_once_end_a_trial_once(monkeypatch):
    monkeypatch.setattr(trial, "KEPT", 3)
    tried = Trial(Pretended(4, 0.05), lambda: Pretended(1, 0.05))
    failed = []

    def work():
        try:
            for _ in range(150):
                call(tried)
        except Exception as error:  # noqa: BLE001  (handed to the test's own thread)
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert not failed


@pytest.mark.skipif(threads.count() == 1, reason="there is one thread only")
@pytest.mark.parametrize("math", ["strict", "winograd"])
def test_no_bit_depends_on_who_played(math, monkeypatch):
    """Forty steps at one image, in which every other call is the other one's, beside the same on one thread."""
    import numba

    monkeypatch.setattr(trial, "KEPT", 1)

    def steps():
        model = classifier()
        step = tinynet.compile(training(model, optim.Adam(model.parameters(), lr=1e-3)), math=math)
        losses = [step(*batch(1)).item() for _ in range(40)]
        return losses, [p.numpy().copy() for p in model.parameters()], [np.array(p.grad) for p in model.parameters()], step

    def tried(step) -> int:
        (plan,) = step.plans.values()
        return len(plan.parts[0].trial.free)

    losses, weights, gradients, step = steps()
    assert tried(step) == 2
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        wanted, weights_of_one, gradients_of_one, step = steps()
    finally:
        numba.set_num_threads(before)
    assert losses == wanted and tried(step) == 1
    for got, want in zip((*weights, *gradients), (*weights_of_one, *gradients_of_one), strict=True):
        np.testing.assert_array_equal(got, want)

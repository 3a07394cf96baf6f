"""Programs: every part is played once, and where their memory lies."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from tinynet.kernels.cpu.players import atomic_get, atomic_put, pause
from tinynet.kernels.cpu.program import address_of, compiled, copy_of, play, row, run, scratch_address, table_of
from tinynet.kernels.cpu.simd_memory import get, pointer, put


def shares_and_chunks(T):
    def kernel(row, image, slot, chunk, share, shares):
        y = pointer(get(row, 0), T)
        put(y, image * 8 + share, get(y, image * 8 + share) + 1.0 + slot * 0.0)

    return kernel


@pytest.mark.parametrize("images, chunks, shares", [(1, 1, 8), (7, 3, 2), (5, 5, 1), (16, 8, 4)])
def test_every_image_is_played_once_by_each_of_its_shares(images, chunks, shares):
    done = np.zeros((images, 8), np.float32)
    run([row(compiled(shares_and_chunks, np.float32), address_of(done))], images, chunks, shares)
    assert (done[:, :shares] == 1).all() and (done[:, shares:] == 0).all()


BELOW = 65_521  # numbers stay below it, and so whole


def adding_up(T):
    """y[share] += the sum of x, modulo BELOW: right only if all that come before have written x, and none that come after."""

    def kernel(row, image, slot, chunk, share, shares):
        x, y, total = pointer(get(row, 0), T), pointer(get(row, 1), T), T(0)
        for i in range(get(row, 2)):
            total += get(x, i)
        put(y, share, (get(y, share) + total) % BELOW)

    return kernel


@pytest.mark.parametrize("laid_for", [1, 2, 3, 8])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_phase_begins_when_the_one_before_is_done_in_every_turn(slots, laid_for):
    """Phases of one part and of several, by turns, last one of each kind; more threads than parts, and fewer; more than there are cores."""
    a, b, c = (np.zeros(8) for _ in range(3))
    a[:] = 1
    phases, shares = [], [(a, 8, b, 5), (b, 5, c, 1), (c, 1, a, 8), (a, 8, b, 3), (b, 5, c, 1)]
    for x, count, y, parts in shares:
        phases.append(([row(compiled(adding_up, np.float64), address_of(x), address_of(y), count)], 1, 1, parts))
    wanted = [v.copy() for v in (a, b, c)]
    names = {id(v): i for i, v in enumerate((a, b, c))}
    tables = [table_of(phases, laid_for)]
    tables.append(copy_of(tables[0]))
    for turn in range(12):
        play(address_of(tables[turn % 2]), slots)
        for x, count, y, parts in shares:
            sums = wanted[names[id(y)]]
            sums[:parts] = (sums[:parts] + wanted[names[id(x)]][:count].sum()) % BELOW
    for got, want in zip((a, b, c), wanted):
        np.testing.assert_array_equal(got, want)


def who_plays(T):
    """y[share] = slot, after a while."""

    def kernel(row, image, slot, chunk, share, shares):
        y, n = pointer(get(row, 0), T), T(0)
        for _ in range(20_000):
            n = n * T(0.5) + get(y, 8)
        put(y, 4 + share, n)
        put(y, share, T(slot))

    return kernel


def test_a_thread_takes_others_parts_only_when_it_has_none_left():
    """So never do two of them take each other's."""
    y = np.zeros(9)
    table = table_of([([row(compiled(who_plays, np.float64), address_of(y))], 1, 1, 4)], 2)
    for _ in range(300):
        play(address_of(table), 2)
        assert not ((y[2:4] == 0).any() and (y[:2] == 1).any()), f"played by {y[:4]}; the first two are the first thread's"


def meeting(T):
    """Whether the other share was played at the same time: there[2 + share] = 1 if it was."""

    def kernel(row, image, slot, chunk, share, shares):
        there = get(row, 0)
        atomic_put(there, share, 1)
        for _ in range(get(row, 1)):
            if atomic_get(there, 1 - share) > 0:
                atomic_put(there, 2 + share, 1)
                break
            pause()

    return kernel


def test_a_worker_that_sleeps_comes_while_another_thread_has_the_interpreter():
    there = np.zeros(8, np.int64)
    table = table_of([([row(compiled(meeting, np.float64), address_of(there), 3_000_000)], 1, 1, 2)], 2)
    play(address_of(table), 2)
    time.sleep(0.1)
    before, going = sys.getswitchinterval(), threading.Event()

    def python():
        going.set()
        while not there[2]:
            pass

    sys.setswitchinterval(1.0)  # who waits for the interpreter waits for a second
    hog = threading.Thread(target=python)
    try:
        there[:] = 0
        hog.start()
        going.wait()
        play(address_of(table), 2)
        met = there[2:4].tolist()
    finally:
        sys.setswitchinterval(before)
        there[2] = 1
        hog.join()
    assert met == [1, 1], "the caller gave up waiting, and played both"


def test_tables_begin_with_a_cache_line():
    """Else what one thread writes would lie beside what another reads."""
    table = table_of([([row(0)], 1, 1, 3)])
    assert all(address_of(t) % 64 == 0 for t in (table, copy_of(table), copy_of(copy_of(table))))


def test_scratch_memory_is_aligned_to_cache_lines():
    assert all(scratch_address(size) % 64 == 0 for size in (1, 1000, 1_000_000, 7))


def test_the_address_of_an_array_is_where_numpy_says_that_its_memory_begins():
    whole = np.zeros((6, 7), np.float32)
    for array in (whole, whole[1:], whole[:, 3:], whole.T, np.zeros(0), np.zeros((), np.int32)):
        assert address_of(array) == array.__array_interface__["data"][0]

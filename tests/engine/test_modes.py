"""no_grad, devices and threads: what is per thread, what is shared, and what a missing dependency says."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from tinynet import Parameter, Tensor, no_grad, nn, tensor
from tinynet import functional as F


def leaf(values, dtype=np.float64) -> Tensor:
    return tensor(np.array(values, dtype), requires_grad=True)

# --- modes, devices, threads -------------------------------------------------------------------------------


def test_no_grad_as_context_and_decorator_nested_and_reused():
    a = leaf([1.0])
    pause = no_grad()

    @no_grad()
    def inside():
        return a * a

    with pause:
        assert not (a * a).requires_grad
        with pause:  # the same object again
            assert not (a * a).requires_grad
        assert not (a * a).requires_grad
        assert not inside().requires_grad
    assert not inside().requires_grad
    assert inside.__name__ == "inside"
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert (a * a).requires_grad


def test_no_grad_is_per_thread():
    a, seen = leaf([1.0]), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((a * a).requires_grad))
        thread.start()
        thread.join()
        assert not (a * a).requires_grad
    assert seen == [True]


def test_nothing_is_saved_without_recording():
    a = leaf([1.0])
    with no_grad():
        y = a * a
    assert y.node is None
    assert a.data.flags.writeable


def test_detach_is_the_same_memory_outside_of_the_graph():
    a = leaf([1.0, 2.0])
    d = (a * 2).detach()
    assert not d.requires_grad and d.node is None
    y = (a * d).sum()
    y.backward()
    assert a.grad.tolist() == [2.0, 4.0]
    assert a.detach().data is a.data


def test_to_another_device_and_back_keeps_the_graph():
    a = leaf([1.0, 2.0])
    b = a.to("reference")
    assert b.device == "reference" and b.dtype == a.dtype
    y = (b * b).to("cpu")
    assert y.device == "cpu"
    y.sum().backward()
    assert a.grad.tolist() == [2.0, 4.0]
    assert a.to("cpu") is a


def test_two_devices_are_never_mixed_in_silence():
    a, b = tensor([1.0]), tensor([1.0], device="reference")
    with pytest.raises(ValueError, match=r"add: y is on 'reference', the inputs before it on 'cpu'; move one with .to"):
        a + b
    with pytest.raises(ValueError, match="there is no device 'gpu'; choose from 'cpu', 'reference'"):
        a.to("gpu")
    with pytest.raises(ValueError, match="there is no device 'gpu'"):
        tensor([1.0], device="gpu")
    with pytest.raises(ValueError, match="there is no device 'gpu'"):
        Tensor(np.ones(1), device="gpu")


def test_a_copy_of_a_tensor_stays_on_its_device():
    assert tensor(tensor([1.0], device="reference")).device == "reference"
    assert Parameter(tensor([1.0], device="reference")).device == "reference"
    assert tensor(tensor([1.0], device="reference"), device="cpu").device == "cpu"


def test_without_numba_the_message_says_what_to_do_and_the_reference_works(python):
    done = python(
        """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import numpy as np, tinynet
from tinynet import functional as F
x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
try:
    F.conv2d(x, w)
except ModuleNotFoundError as error:
    print(error)
print(tinynet.devices()["reference"], tinynet.devices()["cpu"])
on = tinynet.tensor(x, device="reference", requires_grad=True)
F.conv2d(on, w).sum().backward()
print(on.grad.sum())
print((tinynet.tensor(x) + 1).sum().item())        # what needs no kernel works
with tinynet.use(conv2d="reference"):
    print(F.conv2d(x, w).shape)
"""
    )
    assert done.returncode == 0, done.stderr
    message, reasons, gradient, total, shape = done.stdout.splitlines()
    assert message.startswith("device 'cpu' needs numba, which is not installed; pip install numba, or compute on device 'reference' (numpy alone)")
    assert reasons == "None numba is not installed; pip install numba"
    assert (gradient, total, shape) == ("16.0", "18.0", "(1, 1, 2, 2)")


def test_two_threads_train_side_by_side():
    """Each its own graph, parameters shared: gradients add up, arrays are writable after, nothing is lost."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    x = np.random.default_rng(0).standard_normal((4, 1, 6, 6)).astype(np.float32)
    y = np.array([0, 1, 2, 0])
    F.cross_entropy(model(x), y, reduction="sum").backward()
    one = [p.grad.copy() for p in model.parameters()]
    model.zero_grad()
    rounds, failures = 20, []

    def work():
        try:
            for _ in range(rounds):
                F.cross_entropy(model(x), y, reduction="sum").backward()
                model(x)  # a graph that is dropped
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for p, g in zip(model.parameters(), one):
        total = g.copy()
        for _ in range(2 * rounds - 1):
            total += g  # equal shares, so in whatever order the threads came
        np.testing.assert_array_equal(p.grad, total)
        p.data[...] = 0


def test_many_threads_hold_and_release_one_array():
    """The counts of guard.py stand however threads and the garbage collector interleave."""
    from tinynet import guard

    a = leaf([1.0, 2.0])
    stop, failures = threading.Event(), []

    def work():
        try:
            while not stop.is_set():
                graphs = [a * a for _ in range(5)]
                cycle = [graphs]
                cycle.append(cycle)  # ends in the collector, whenever that runs
                assert not a.data.flags.writeable
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not failures
    assert a.data.flags.writeable
    assert id(a.data) not in guard._holds


def test_kernels_may_be_called_from_two_threads_in_numbas_simplest_threading_layer(python):
    """workqueue, which numba takes where there is no OpenMP, ends the process if two threads launch at once."""
    done = python(
        """
import threading, numpy as np
from tinynet import functional as F
import numba
x, w = np.ones((8, 4, 16, 16), np.float32), np.ones((4, 4, 3, 3), np.float32)
def work():
    for _ in range(50):
        F.conv2d(x, w)
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
print(numba.threading_layer())
""",
        NUMBA_THREADING_LAYER="workqueue",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "workqueue"

"""Arrays that a graph has saved: read-only until it lets go, and an edit that numpy cannot refuse is noticed."""

from __future__ import annotations

import gc
import os
import platform
from textwrap import dedent

import numpy as np
import pytest

from tinynet import Parameter, Tensor, nn, optim, tensor
from tinynet import functional as F
from tinynet.op import OPS, op


def leaf(values, dtype=np.float64) -> Tensor:
    return tensor(np.array(values, dtype), requires_grad=True)

# --- memory ------------------------------------------------------------------------------------------------


def test_tensor_copies_and_Tensor_shares():
    array = np.ones(3)
    assert not np.shares_memory(tensor(array).data, array)
    assert Tensor(array).data is array
    assert not np.shares_memory(Parameter(array).data, array)


def test_non_contiguous_and_read_only_arrays_are_computed_on():
    wide = np.arange(24.0).reshape(4, 6)
    wide.flags.writeable = False
    for view in (wide[::2, ::3], wide.T, wide[::-1], np.broadcast_to(np.arange(4.0), (4, 4)), np.asfortranarray(wide)):
        view = view.view()
        view.flags.writeable = False
        a = Tensor(view, True)
        (a * a).sum().backward()
        assert np.array_equal(a.grad, 2 * view)
        assert np.array_equal(F.linear(view, np.eye(view.shape[1])).numpy(), view)
        assert not view.flags.writeable


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_an_array_edited_in_place_after_it_was_saved_is_refused_by_numpy(device):
    a = tensor(np.array([1.0, 2.0]), requires_grad=True, device=device)
    y = a * a
    with pytest.raises(ValueError, match="read-only"):
        a.data[0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        a.data += 1
    y.sum().backward()
    assert a.grad.tolist() == [2.0, 4.0]
    a.data[0] = 5.0  # the graph is released: it is the user's again


def test_the_owner_of_a_saved_view_is_refused_too():
    memory = np.arange(6.0)
    a = Tensor(memory[::2], True)
    y = a * a
    for array in (memory, a.data):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5.0
    y.sum().backward()
    memory[0] = a.data[1] = 5.0


def test_an_array_that_came_in_raw_stays_the_callers():
    """It is copied if it is saved: a batch may be refilled while the graph lives."""
    a, batch = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    y = (a * batch).sum()
    batch[:] = 0
    y.backward()
    assert a.grad.tolist() == [3.0, 4.0]


def test_an_index_that_came_in_raw_stays_the_callers():
    a, rows, columns = leaf(np.arange(6.0).reshape(2, 3)), np.array([0, 1]), np.array([2, 2])
    y = a[rows, columns].sum() + a[rows].sum()
    rows[:] = columns[:] = 0
    y.backward()
    assert a.grad.tolist() == [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]


def test_arrays_become_writable_when_the_last_graph_lets_go():
    a = leaf([1.0, 2.0])
    first, second = (a * a).sum(), (a.reshape(2, 1) * 3.0 * a.reshape(2, 1)).sum()
    first.backward()
    assert not a.data.flags.writeable
    second.backward()
    a.data[0] = 1.0


def test_views_and_owner_may_be_released_in_any_order():
    for order in ((0, 1), (1, 0)):
        a = leaf([1.0, 2.0])
        view = a.reshape(2, 1)
        graphs = [(view * view).sum(), (a * a).sum()]
        for i in order:
            graphs[i].backward(retain_graph=True)
            graphs[i] = None
        gc.collect()
        a.data[0] = view.data[1] = 5.0


def test_a_graph_that_is_dropped_without_backward_lets_go():
    a = leaf([1.0, 2.0])
    y = (a * a).exp().sum()
    assert not a.data.flags.writeable
    del y
    assert a.data.flags.writeable
    cycle = [a * a]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert a.data.flags.writeable


def test_a_retained_graph_keeps_its_hold_until_it_goes():
    a = leaf([1.0, 2.0])
    y = (a * a).sum()
    y.backward(retain_graph=True)
    assert not a.data.flags.writeable
    del y
    a.data[0] = 1.0


def test_arrays_that_were_read_only_before_stay_so():
    array = np.array([1.0, 2.0])
    array.flags.writeable = False
    a = Tensor(array, True)
    (a * a).sum().backward()
    assert not array.flags.writeable


def test_memory_of_another_library_is_not_locked_for_good():
    """numpy can't give write permission back for it, so it is not taken away."""
    import torch

    theirs = torch.ones(3)
    for array in (theirs.numpy(), np.from_dlpack(theirs), np.frombuffer(bytearray(24))):
        a = Tensor(array, True)
        (a * a).sum().backward()
        assert a.grad is not None
        assert array.flags.writeable


def test_a_failed_op_leaves_nothing_locked():
    a = leaf([1.0, 2.0])
    with pytest.raises(ValueError):
        F.matmul(a, a)
    assert a.data.flags.writeable

    @op
    def broken(k, x):
        return x * 2

    @broken.gradient("x")
    def _(k, dy, *, x, nowhere):
        return dy

    try:
        with pytest.raises(TypeError, match=r"broken: a gradient asks for 'nowhere', which is neither an input \(x\), nor a parameter, nor saved by the forward"):
            broken(a)
        assert a.data.flags.writeable
    finally:
        del OPS["broken"]


def change_by_optimiser(p):
    p.grad = np.ones_like(p.data)
    optim.SGD([p], lr=0.5).step()


def change_by_loading(p):
    module = nn.Module()
    module.p = p
    module.load_state_dict({"p": p.data + 1})


@pytest.mark.parametrize("change", [change_by_optimiser, change_by_loading])
@pytest.mark.parametrize("use", [lambda p: p * p, lambda p: p.detach() * p, lambda p: p.reshape(2, 1) * p.reshape(2, 1), lambda p: Tensor(p.data) * p, lambda p: p[0:1] * p[0:1]], ids=["itself", "detached", "reshaped", "its array", "a slice"])
def test_parameters_that_changed_after_they_were_saved_are_an_error_at_backward(change, use):
    p = Parameter(np.array([1.0, 2.0]))
    y = use(p).sum()
    change(p)
    with pytest.raises(RuntimeError, match=r"backward: . of multiply \(shape .*\) was changed in place \(by an optimiser step or load_state_dict\) after it was saved; call backward before the change"):
        y.backward()
    use(p).sum().backward()  # computed again, it is right


def test_a_change_before_the_graph_was_made_is_none_of_its_business():
    p = Parameter(np.array([1.0, 2.0]))
    other = (p * 3.0).sum()  # does not save p
    y = (p * p).sum()
    y.backward()
    change_by_optimiser(p)
    other.backward()
    p.grad = None
    (p * p).sum().backward()
    assert np.array_equal(p.grad, 2 * p.data)


def test_a_step_between_forward_and_forward_is_fine_and_leaves_the_parameter_writable():
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(np.ones((4, 3), np.float32)), np.array([0, 1, 0, 1]))
        loss.backward()
        optimizer.step()
    model.weight.data[...] = 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own for memory that was freed")
def test_results_of_eager_ops_lie_in_memory_that_was_there_before(python, monkeypatch):
    """3 MiB each: glibc would give them back at once, and every call would wait for 800 pages and more to be filled with zeros."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    done = python(
        dedent("""
        import resource
        import numpy as np
        from tinynet import functional as F, nn, no_grad

        layer, x = nn.Conv2d(3, 32, 3), np.ones((32, 3, 30, 30), np.float32)
        def call():
            with no_grad():
                return F.relu(layer(x))
        for _ in range(5):
            call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            call()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
        """)
    )
    assert float(done.stdout) < 80, done.stderr


@pytest.mark.skipif(platform.system() != "Linux", reason="asks Linux how much memory the process has")
def test_a_program_s_memory_goes_back_to_the_system_and_is_no_forked_process_s(python):
    """16 MiB: the heap would keep as much."""
    done = python(
        dedent("""
        import os
        import psutil
        from tinynet.kernels import cpu
        from tinynet.kernels.cpu.memory import Arena

        resident = lambda: psutil.Process().memory_info().rss / 2**20
        Arena(1, [])  # what loads code, once
        before = resident()
        arena = Arena(16 << 20, [])
        arena.memory[:] = 1
        held = resident()
        child = os.fork()
        if child == 0:
            arena.memory[:] = 2
            os._exit(0)
        os.waitpid(child, 0)
        print(held - before, arena.memory.max())
        del arena
        print(resident() - before)
        """)
    )
    held, largest, left = map(float, done.stdout.split())
    assert held > 15 and largest == 1 and left < 2, done.stderr

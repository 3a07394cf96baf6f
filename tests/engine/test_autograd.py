"""The paper cuts that users of other small engines report, each a statement of what holds here."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import tinynet
from tinynet import Parameter, Tensor, no_grad, nn, oracle, tensor
from tinynet import functional as F
from tinynet.op import OPS, op


def leaf(values, dtype=np.float64) -> Tensor:
    return tensor(np.array(values, dtype), requires_grad=True)

# --- the walk back -----------------------------------------------------------------------------------------


def test_backward_twice_is_an_error_that_says_what_to_do():
    a = leaf([1.0, 2.0])
    y = (a * a).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"backward: the graph through sum was already used and released; compute the result again, or call backward\(retain_graph=True\)"):
        y.backward()


def test_backward_twice_with_retain_graph_adds_up():
    a = leaf([1.0, 2.0])
    y = (a * a).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert a.grad.tolist() == [4.0, 8.0]


def test_a_part_of_the_graph_that_was_used_is_an_error_too():
    a = leaf([1.0, 2.0])
    shared = a * a
    first, second = shared.sum(), shared.mean()
    first.backward()
    with pytest.raises(RuntimeError, match="the graph through multiply was already used"):
        second.backward()


def test_backward_on_a_leaf_is_its_cotangent():
    a = leaf(3.0)
    a.backward()
    assert a.grad.tolist() == 1.0
    b = leaf([1.0, 2.0])
    given = np.array([5.0, 6.0])
    b.backward(given)
    given[:] = 0
    assert b.grad.tolist() == [5.0, 6.0]


def test_backward_without_a_graph_is_an_error():
    with pytest.raises(RuntimeError, match="backward: this tensor requires no gradient.*set requires_grad=True on a leaf"):
        tensor([1.0]).sum().backward()
    with no_grad():
        y = leaf([1.0]).sum()
    with pytest.raises(RuntimeError, match="computed without recording"):
        y.backward()


def test_backward_on_a_non_scalar_wants_a_gradient():
    a = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"backward: the result has shape \(2,\); give gradient= an array of that shape, or reduce it to one number first"):
        (a * 2).backward()
    (a * 2).backward(np.array([10.0, 1.0]))
    (a * 2).backward(tensor(np.array([10.0, 1.0])))
    assert a.grad.tolist() == [40.0, 4.0]


def test_the_gradient_of_backward_must_fit():
    a = leaf([1.0, 2.0], np.float32)
    with pytest.raises(ValueError, match=r"gradient must be float32 of shape \(2,\).*got float32 of shape \(3,\)"):
        (a * 2).backward(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"got float64 of shape \(2,\)"):
        (a * 2).backward(np.ones(2))


def test_the_gradient_of_backward_may_be_a_number_or_a_list():
    a = leaf([1.0, 2.0], np.float32)
    (a * 2).backward([1, 2])
    a.sum().backward(3.0)
    a.sum().backward(np.float64(0.5))
    assert a.grad.tolist() == [5.5, 7.5]
    assert a.grad.dtype == np.float32


def test_a_result_that_is_used_twice_by_one_op_gets_both_shares():
    a = leaf(2.0)
    b = a + a
    c = b + b
    c.backward()
    assert a.grad == 4


def test_a_result_waits_for_all_that_used_it():
    a = leaf(3.0)
    b = a * a
    c = b * b
    d = c + b  # b must not run before c has handed it its share
    d.backward()
    assert a.grad == 4 * 3.0**3 + 2 * 3.0


@pytest.mark.parametrize("depth", [5_000, 50_000])
def test_a_deep_graph_runs_and_is_freed_without_recursion(depth, python):
    """In a process of its own: a stack that overflows in C kills it."""
    done = python(
        f"""
import gc, numpy as np, tinynet
from tinynet.tape import Node
a = tinynet.tensor(np.ones(2), requires_grad=True)
def chain():
    y = a
    for _ in range({depth}):
        y = y + 1.0
    return y.sum()
chain().backward()
assert a.grad.tolist() == [1.0, 1.0]
y = chain(); del y; gc.collect()          # dropped as a whole
y = chain(); y.backward(retain_graph=True); del y; gc.collect()
y = a
for _ in range({depth}):
    y = y * 1.0 + y * 0.0                 # a ladder: as many paths as 2 ** depth
y.sum().backward()
assert a.grad.tolist() == [3.0, 3.0]
del y
assert not [o for o in gc.get_objects() if isinstance(o, Node)]
"""
        if depth == 5_000
        else f"""
import gc, numpy as np, tinynet
a = tinynet.tensor(np.ones(2), requires_grad=True)
for backward in (True, False):
    y = a
    for _ in range({depth}):
        y = -y
    if backward:
        y.sum().backward()
    del y
    gc.collect()
assert a.grad.tolist() == [1.0, 1.0]
"""
    )
    assert done.returncode == 0, done.stderr


def test_gradients_add_up_until_they_are_zeroed():
    layer = nn.Linear(2, 1)
    for _ in range(3):
        layer(np.ones((1, 2), np.float32)).sum().backward()
    assert layer.weight.grad.tolist() == [[3.0, 3.0]]
    layer.zero_grad()
    assert layer.weight.grad is None
    layer(np.ones((1, 2), np.float32)).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "expression",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: (a + b).reshape(4) + a.reshape(4),
        lambda a, b: (a + b).permute(1, 0) + b,
        lambda a, b: F.matmul(a, b) + a,
        lambda a, b: (a.sum() + b.sum()).reshape(1, 1) + a,
        lambda a, b: a[0:2] + b,
        lambda a, b: F.flatten(a) + F.flatten(b),
        lambda a, b: a.to("reference").to("cpu") + b.astype(np.float64),
    ],
    ids=["+", "-", "reshape", "permute", "matmul", "sum", "getitem", "flatten", "to"],
)
def test_gradients_are_arrays_of_their_own(expression):
    """Editing one in place (clipping, say) changes no other gradient, nor the cotangent, nor a value."""
    a, b = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[5.0, 6.0], [7.0, 8.0]])
    y = expression(a, b)
    cotangent = np.ones(y.shape)
    y.backward(cotangent, retain_graph=True)
    arrays = [a.grad, b.grad, cotangent, a.data, b.data, y.data]
    for i, first in enumerate(arrays):
        for second in arrays[i + 1 :]:
            assert not np.shares_memory(first, second) or {id(first), id(second)} <= {id(a.data), id(b.data), id(y.data)}
    for grad in (a.grad, b.grad):
        assert grad.flags.writeable and grad.flags.c_contiguous
        grad *= 0
    y.backward(cotangent)
    assert (a.grad != 0).any() and (b.grad != 0).any()


def test_a_gradient_that_somebody_kept_is_not_edited_by_the_next_backward():
    a = leaf([1.0, 2.0])
    (a * 2).sum().backward()
    kept = a.grad
    (a * 2).sum().backward()
    assert kept.tolist() == [2.0, 2.0]
    assert a.grad.tolist() == [4.0, 4.0]


def test_gradients_that_nobody_needs_are_not_computed():
    calls = []

    @op
    def counted(k, x, y):
        return x * y

    @counted.gradient("x")
    def _(k, dy, *, y):
        calls.append("x")
        return dy * y

    @counted.gradient("y")
    def _(k, dy, *, x):
        calls.append("y")
        return dy * x

    try:
        a, b = leaf([1.0]), tensor(np.array([2.0]))
        counted(a, b).backward()
        assert calls == ["x"]
        counted(b, a).backward()
        assert calls == ["x", "y"]
        counted(a, a).backward()
        assert calls == ["x", "y", "x", "y"]
    finally:
        del OPS["counted"]


def test_the_images_gradient_of_a_first_layer_is_not_computed(monkeypatch):
    """Training asks for weights' gradients alone: conv2d_dx of the first layer would be half the work for nothing."""
    from tinynet.dispatch import kernels

    k = kernels("cpu")
    monkeypatch.setattr(k, "conv2d_dx", lambda *_, **__: pytest.fail("nobody needs it"), raising=False)
    nn.Conv2d(3, 4, 3)(np.ones((1, 3, 5, 5), np.float32)).sum().backward()


def test_only_what_the_gradients_ask_for_is_kept():
    x, weight, bias = (leaf(np.ones(shape)) for shape in ((1, 2, 3, 3), (2, 2, 3, 3), (2,)))
    assert set(F.conv2d(x.detach(), weight, bias).node.saved) == {"x", "weight_shape", "window", "layout"}
    assert set(F.conv2d(x, weight.detach(), bias.detach()).node.saved) == {"weight", "x_shape", "window"}
    assert set((x + 1).node.saved) == set()


# --- numbers, dtypes, 0-d ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("number", [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.int8(2), np.uint16(2)], ids=lambda n: f"{type(n).__name__}")
def test_a_number_never_changes_a_tensors_dtype(number, dtype):
    a = leaf([1.0, 4.0], dtype)
    for y in (a + number, number + a, a - number, number - a, a * number, number * a, a / number, number / a, a**number, F.softmax(a) * number):
        assert isinstance(y, Tensor)
        assert y.dtype == dtype
        y.sum().backward()
    assert a.grad.dtype == dtype
    expected = (a.data + dtype(number), dtype(number) - a.data, dtype(number) / a.data)
    for got, want in zip((number + a, number - a, number / a), expected):
        assert np.array_equal(got.numpy(), want)


def test_an_ndarray_on_either_side_is_ours_to_answer():
    a, array = leaf([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    for ours, want in (
        (a + array, a.data + array),
        (array + a, a.data + array),
        (a - array, a.data - array),
        (array - a, array - a.data),
        (a * array, a.data * array),
        (array * a, a.data * array),
        (a / array, a.data / array),
        (array / a, array / a.data),
        (a @ array, a.data @ array),
        (array @ a, array @ a.data),
    ):
        assert type(ours) is Tensor
        assert np.array_equal(ours.numpy(), want)
        assert ours.node is not None


def test_0_d_tensors_work_like_the_others():
    a, b = leaf(3.0), leaf([1.0, 2.0])
    y = (a * b + a).sum() / a
    assert y.shape == ()
    assert isinstance(y.data, np.ndarray)
    y.backward()
    assert a.grad.shape == ()
    assert float(tensor(2.0)) == 2.0 and int(tensor(2)) == 2 and bool(tensor(0.0)) is False
    assert tensor(2.0).item() == 2.0
    assert f"{tensor(2.0):.3f}" == "2.000"
    assert tensor(5.0).reshape(1).shape == (1,)
    assert (a[()]).shape == ()
    with pytest.raises(TypeError, match="0-d tensor has no first axis"):
        len(a)
    with pytest.raises(TypeError, match="0-d tensor has no first axis"):
        list(a)


def test_integers_cannot_require_a_gradient():
    for make in (lambda: tensor([1, 2], requires_grad=True), lambda: Tensor(np.array([1, 2]), True), lambda: Parameter([1, 2]), lambda: setattr(tensor([1]), "requires_grad", True)):
        with pytest.raises(TypeError, match="only float32 and float64 tensors can require a gradient; this one is int64"):
            make()


def test_integers_are_computed_on_but_never_cast():
    a = tensor([1, 2, 3])
    assert (a + 1).dtype == a.dtype and (a * a).dtype == a.dtype and a.sum().dtype == a.dtype
    with pytest.raises(TypeError, match="divide: x must be float32 or float64; got int64; convert it with .astype"):
        a / 2
    with pytest.raises(TypeError, match="add: a Python float never changes a tensor's dtype, and int64 can't hold one"):
        a + 0.5
    with pytest.raises(TypeError, match="add: y is float32, the inputs before it are int64; dtypes are never mixed"):
        a + tensor([1.0, 2.0, 3.0])
    assert (a.astype(np.float32) / 2).numpy().tolist() == [0.5, 1.0, 1.5]


def test_a_cast_to_integers_ends_the_graph():
    a = leaf([1.5, 2.5])
    assert not a.astype(np.int64).requires_grad
    a.astype(np.float32).sum().backward()
    assert a.grad.dtype == np.float64


def test_float32_with_float64_is_an_error_not_a_cast():
    a, b = leaf([1.0], np.float32), leaf([1.0], np.float64)
    with pytest.raises(TypeError, match=r"multiply: y is float64, the inputs before it are float32; dtypes are never mixed or cast in silence: use .astype\(...\) on one"):
        a * b
    with pytest.raises(TypeError, match="conv2d: weight is float64, the inputs before it are float32"):
        F.conv2d(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3)))
    (a.astype(np.float64) * b).sum().backward()
    assert a.grad.dtype == np.float32 and b.grad.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, ">f4", object, "U3"], ids=str)
def test_other_dtypes_are_refused_where_they_come_in(dtype):
    values = np.array(["a", "b"], dtype) if dtype == "U3" else np.array([1, 2], dtype)
    with pytest.raises(TypeError, match="tensor: .* is not supported; use float32 or float64"):
        tensor(values)
    with pytest.raises(TypeError, match="relu: x must be float32 or float64; got .*; convert it"):
        F.relu(values)


def test_python_floats_become_float32_and_arrays_keep_their_dtype():
    assert tensor(1.0).dtype == tensor([1.0, 2]).dtype == Parameter([1.0]).dtype == np.float32
    assert tensor(np.float64(1.0)).dtype == tensor(np.ones(2)).dtype == np.float64
    assert tensor([1.0], dtype=np.float64).dtype == np.float64
    assert tensor([1, 2]).dtype.kind == "i"
    assert tensor(True).dtype == bool


# --- edges of shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_empty_batch_passes_through_a_whole_network(layout, device):
    options = dict(layout=layout)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", **options), nn.ReLU(), nn.MaxPool2d(2, **options), nn.Conv2d(4, 4, 2, groups=4, **options), nn.AvgPool2d(2, stride=1, **options), nn.Flatten(), nn.Linear(16, 5), nn.LogSoftmax()
    ).to(device)  # fmt: skip
    x = tensor(np.zeros((0, 3, 8, 8) if layout == "NCHW" else (0, 8, 8, 3), np.float32), requires_grad=True, device=device)
    y = model(x)
    assert y.shape == (0, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    for p in model.parameters():
        assert p.grad.shape == p.shape
        assert not p.grad.any()


def test_a_window_larger_than_its_image_says_so():
    x = np.zeros((1, 1, 4, 9), np.float32)
    with pytest.raises(ValueError, match=r"max_pool2d: a window of 5 rows \(kernel 5, dilation 1\) does not fit into 4 padded rows \(4 \+ 0 \+ 0\); use a smaller kernel or more padding"):
        F.max_pool2d(x, 5)
    with pytest.raises(ValueError, match="does not fit into 4 padded rows"):
        F.avg_pool2d(x, (5, 3), ceil_mode=True)  # an incomplete window counts only beside a complete one
    with pytest.raises(ValueError, match=r"a window of 13 columns \(kernel 4, dilation 4\) does not fit into 11 padded columns \(9 \+ 2 \+ 0\)"):
        F.max_pool2d(x, (1, 4), dilation=4, padding=((0, 0), (2, 0)))


def test_a_kernel_larger_than_the_padded_image_says_so():
    x = np.zeros((1, 2, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"conv2d: a window of 6 rows \(kernel 6, dilation 1\) does not fit into 5 padded rows"):
        F.conv2d(x, np.zeros((1, 2, 6, 1), np.float32), padding=1)
    assert F.conv2d(x, np.zeros((1, 2, 5, 5), np.float32), padding=1).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((2, 3), (2, 1)), ((1,), (2, 3)), ((), (2, 3)), ((2, 1, 3), (4, 1)), ((0, 3), (3,)), ((1, 0), (2, 1)), ((2, 3), (2, 3))], ids=str)
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide"])
def test_gradients_of_broadcast_inputs_have_their_shape_and_value(name, shapes, rng):
    import torch

    arrays = [rng.integers(1, 5, shape).astype(np.float64) for shape in shapes]
    ours, theirs = [Tensor(a, True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, want = OPS[name](*ours), getattr(torch, name)(*theirs)
    dy = rng.integers(-3, 4, y.shape).astype(np.float64)
    y.backward(dy)
    want.backward(torch.tensor(dy))
    for a, b, truth in zip(ours, theirs, oracle.reference.find(f"{name}_grad")(dy, *arrays)):
        oracle.assert_matches(a.grad, truth, max_zero_share=1.0)
        oracle.assert_matches(b.grad.numpy(), truth, max_zero_share=1.0)


def test_a_gradient_of_the_wrong_shape_is_caught():
    @op
    def bent(k, x):
        return x * 2

    @bent.gradient("x")
    def _(k, dy):
        return dy[:1]

    try:
        with pytest.raises(RuntimeError, match=r"bent: a gradient function returned shape \(1,\) for an input of shape \(2,\)"):
            bent(leaf([1.0, 2.0])).backward(np.ones(2))
    finally:
        del OPS["bent"]


def test_an_op_without_a_gradient_says_so_when_it_is_recorded():
    @op
    def forward_only(k, x):
        return x * 2

    try:
        assert forward_only(np.ones(2)).shape == (2,)
        with pytest.raises(TypeError, match=r"forward_only: there is no gradient for x; write one with @forward_only.gradient\('x'\), or pass x.detach\(\)"):
            forward_only(leaf([1.0, 2.0]))
    finally:
        del OPS["forward_only"]


# --- tensors as Python objects -----------------------------------------------------------------------------


def test_augmented_assignment_makes_a_new_tensor_and_edits_nothing():
    a = leaf([1.0, 2.0])
    before, array = a, a.data
    a += 1
    a *= 2
    assert a is not before
    assert array.tolist() == [1.0, 2.0]
    a.sum().backward()
    assert before.grad.tolist() == [2.0, 2.0]


def test_iteration_gives_the_rows_and_keeps_the_graph():
    a = leaf([[1.0, 2.0], [3.0, 4.0]])
    first, second = a
    (first * second).sum().backward()
    assert a.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert len(a) == 2


def test_tensors_are_not_compared():
    """`t == 3` is no silent False: it is an error that says what to do."""
    a = tensor([1.0, 2.0])
    for compare in (lambda: a == 1, lambda: a == a, lambda: a != np.ones(2), lambda: np.ones(2) == a, lambda: a < 2, lambda: 2 >= a, lambda: a == [1.0, 2.0], lambda: np.float64(1) == a):
        with pytest.raises(TypeError, match=r"Tensor: tensors are not compared.*a.numpy\(\) == b.numpy\(\), or ask with `is`"):
            compare()
    assert (a == None) is False  # noqa: E711
    assert a in [a] and len({a, a, tensor([1.0])}) == 2


def test_the_truth_of_many_values_is_refused():
    with pytest.raises(ValueError, match="item: only a tensor of one element is a number"):
        bool(tensor([1.0, 2.0]))
    assert tensor([[3.0]]).item() == 3.0


def test_asarray_shares_memory_and_copy_copies():
    a = tensor(np.arange(3.0))
    assert np.asarray(a) is a.data
    assert np.shares_memory(np.array(a, copy=None), a.data)
    assert not np.shares_memory(np.array(a), a.data)
    assert np.array(a, copy=True).flags.writeable
    assert np.asarray(a, dtype=np.float32).dtype == np.float32
    assert np.array(a, copy=False) is a.data
    with pytest.raises(ValueError, match="copy"):
        np.array(a, dtype=np.float32, copy=False)


def test_dlpack_shares_memory_with_other_libraries():
    import torch

    a = tensor(np.arange(3.0))
    assert np.shares_memory(np.from_dlpack(a), a.data)
    assert torch.from_dlpack(a).tolist() == [0.0, 1.0, 2.0]


def test_leaves_are_copied_and_pickled_and_results_are_not():
    p = Parameter(np.array([1.0, 2.0]))
    graph = p * p  # the array is read-only now: the copies are not
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(twin) is Parameter and twin.requires_grad and twin.device == "cpu"
        assert np.array_equal(twin.data, p.data)
        assert not np.shares_memory(twin.data, p.data)
        twin.data[0] = 5.0
    assert copy.copy(p).data is p.data
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"a tensor made by multiply can't be copied or pickled.*use .detach\(\) first"):
            attempt(graph)


def test_a_module_is_copied_with_its_parameters_and_ops():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.activation = F.relu
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.activation is F.relu
        assert np.array_equal(twin[0].weight.data, model[0].weight.data)
        assert not np.shares_memory(twin[0].weight.data, model[0].weight.data)


def test_repr_shows_values_shape_and_origin():
    a = tensor([[1.0, 2.0]], requires_grad=True)
    assert repr(a) == "tensor([[1., 2.]], shape=(1, 2), float32, requires_grad=True)"
    assert repr((a * 2).to("reference")).endswith("shape=(1, 2), float32, device='reference', made by move)")
    assert "..." in repr(tensor(np.zeros(100)))
    assert f"{tensor([1.0])}" == repr(tensor([1.0]))


def test_a_graph_that_is_alive_at_exit_ends_in_silence(python):
    done = python("import tinynet; a = tinynet.tensor([1.0], requires_grad=True); y = (a * a).sum(); cycle = [y]; cycle.append(cycle)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_manual_seed_repeats_initial_weights():
    tinynet.manual_seed(3)
    first = nn.Linear(4, 3).weight.data.copy()
    tinynet.manual_seed(3)
    assert np.array_equal(nn.Linear(4, 3).weight.data, first)

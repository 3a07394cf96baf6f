"""check: honest implementations pass every case of every table; planted faults are named."""

import numpy as np
import pytest
from peers_as_kernels import torch_functions

import tinynet.kernels.reference  # noqa: F401  (registers the kernels)
from tinynet import functional, oracle
from tinynet.devices import devices
from tinynet.dispatch import find, variants
from tinynet.kernels.contract import IMPLEMENTATIONS
from tinynet.oracle import Band, Case, check, honest_function
from tinynet.op import OPS
from tinynet.tensor import Tensor

KERNELS = ("conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx", "matmul")


def reference_kernel(name):
    return oracle.with_out(IMPLEMENTATIONS[name, "reference"]["numpy"].function, name)


# --- honest implementations are never refused ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_reference_kernels_pass(name, dtype):
    with np.errstate(all="ignore"):
        report = check(reference_kernel(name), name, dtype=dtype, seed=1)
    assert report, report.explain()
    assert len(report) > 25 and report.r_max < 6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in KERNELS for variant in variants(name, "cpu")])
def test_every_variant_of_the_cpu_kernels_passes(name, variant, dtype):
    with np.errstate(all="ignore"):
        report = check(oracle.with_out(find(name, f"cpu.{variant}"), name), name, dtype=dtype, seed=1)
    assert report, report.explain()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", oracle.names())
def test_the_truth_itself_passes_every_table(name, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    report = check(honest_function(name), name, dtype=dtype, seed=2)
    assert report, report.explain()


class Order:
    """The kernels of the contract's sums by plain numpy, in float32 and in a given order."""

    def __init__(self, backwards):
        self.step = -1 if backwards else 1

    def dot(self, a, b):
        total = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
        for t in range(a.shape[-1])[:: self.step]:
            total += a[..., t : t + 1] * b[..., t : t + 1, :]
        return total


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_plain_loops_pass_in_any_order(backwards, seed):
    small = lambda case: "large" not in case.label
    with np.errstate(all="ignore"):
        report = check(Order(backwards).dot, "matmul", seed=seed, cases=small)
    assert report, report.explain()


@pytest.mark.parametrize("seed", range(3))
def test_sequential_sums_of_a_hundred_thousand_pass(seed):
    case = oracle.case("conv2d_db", "large reduction/reals", seed=seed)
    sequential = lambda dy, *, layout: dy.transpose(1, 0, 2, 3).reshape(dy.shape[1], -1).cumsum(axis=1, dtype=dy.dtype)[:, -1].copy()
    report = check(sequential, "conv2d_db", cases=[case])
    assert report, report.explain()


def as_function(op, device):
    def run(*arrays, **parameters):
        out = op(*(Tensor(a, device=device) if isinstance(a, np.ndarray) else a for a in arrays), **parameters)
        return out.numpy()

    return run


def as_gradient(op, device):
    def run(dy, *arrays, **parameters):
        tensors = [Tensor(a, requires_grad=a.dtype.kind == "f", device=device) if isinstance(a, np.ndarray) else a for a in arrays]
        op(*tensors, **parameters).backward(dy)
        found = tuple(t.grad for t in tensors if isinstance(t, Tensor) and t.requires_grad)
        return found if len(found) > 1 else found[0]

    return run


def tinynet_ops():
    ops = {**{name: op for name, op in OPS.items() if name in oracle.names()}, "flatten": functional.flatten}
    return sorted(ops.items())


@pytest.mark.parametrize("device", [name for name, reason in devices().items() if reason is None and not name.startswith("cuda")])  # CUDA: tests/cuda
@pytest.mark.parametrize(("name", "op"), tinynet_ops())
def test_the_engines_ops_and_gradients_pass(name, op, device):
    with np.errstate(all="ignore"):
        if name != "max_pool2d":  # the op gives no argmax; its kernel is checked with the others
            report = check(as_function(op, device), name, seed=3)
            assert report, report.explain()
        report = check(as_gradient(op, device), f"{name}_grad", seed=3)
        assert report, report.explain()


# --- torch ---


TORCH = ("conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "max_pool2d", "matmul", "linear", "relu", "softmax", "log_softmax", "cross_entropy", "sqrt", "divide", "mean")


@pytest.mark.parametrize("name", TORCH)
def test_torch_passes(name):
    # Of several NaN torch takes the last, and a window in the padding alone has a place there.
    cases = (lambda case: case.kind != "special" and "alone" not in case.label) if name == "max_pool2d" else None
    report = check(torch_functions()[name], name, adapt="torch", cases=cases, seed=4)
    assert report, report.explain()


def test_torch_in_bfloat16_passes():
    pytest.importorskip("ml_dtypes")
    functions = torch_functions()
    # On processors with bfloat16 instructions (VDPBF16PS) subnormal numbers count as 0, and torch's convolution
    # (oneDNN) gives NaN where infinities of one sign meet.
    plain = lambda case: case.kind != "special"
    for name in ("conv2d", "matmul", "softmax"):
        report = check(functions[name], name, adapt="torch", dtype="bfloat16", flush=True, cases=plain if name == "conv2d" else None)
        assert report, report.explain()


# --- planted faults, and what is said about them ---

conv2d, conv2d_dw, matmul, max_pool2d = (honest_function(name) for name in ("conv2d", "conv2d_dw", "matmul", "max_pool2d"))


def short(a, bits=13):
    step = 1 << bits
    return ((a.view(np.int32) + step // 2) & ~(step - 1)).view(np.float32)


def half_sums(a, b):
    return np.matmul(a.astype(np.float16), b.astype(np.float16)).astype(np.float32)


def last_column_skipped(x, weight, bias, **window):
    y = conv2d(x, weight, bias, **window)
    y[..., -1] = 0
    return y


FAULTS = {
    "the kernel is flipped": ("conv2d", lambda x, w, b, **k: conv2d(x, w[..., ::-1, ::-1], b, **k)),
    "the bias is missing": ("conv2d", lambda x, w, b, **k: conv2d(x, w, None, **k)),
    "the bias is added twice": ("conv2d", lambda x, w, b, **k: conv2d(x, w, None if b is None else 2 * b, **k)),
    "padding is on the wrong side": ("conv2d", lambda x, w, b, *, padding, **k: conv2d(x, w, b, padding=tuple(p[::-1] for p in padding), **k)),
    "dilation is ignored": ("conv2d", lambda x, w, b, *, dilation, **k: conv2d(x, w, b, dilation=1, **k)),
    "inputs rounded to TF32": ("conv2d", lambda x, w, b, **k: conv2d(short(x), short(w), b, **k)),
    "inputs rounded to bfloat16": ("matmul", lambda a, b: matmul(short(a, 16), short(b, 16))),
    "1.001 times the truth": ("conv2d", lambda x, w, b, **k: conv2d(x, w, b, **k) * np.float32(1.001)),
    "the last column": ("conv2d", last_column_skipped),
    "the kernel's rows and columns are swapped": ("conv2d", lambda x, w, b, **k: conv2d(x, w.swapaxes(2, 3) if w.shape[2] == w.shape[3] else w, b, **k)),
    "of the truth: a mean instead of a sum": ("matmul", lambda a, b: matmul(a, b) / np.float32(max(a.shape[-1], 1))),
    "-1 times the truth": ("matmul", lambda a, b: -matmul(a, b)),
    "never computed: all zeros": ("matmul", lambda a, b: 0 * matmul(a, b)),
    "of equal maxima the last": ("max_pool2d", None),
}


def last_maximum(x, *, padding, layout, **window):
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    y, place = max_pool2d(np.flip(x, axes), padding=tuple(p[::-1] for p in padding), layout=layout, **window)
    size = x.shape[axes[0]] * x.shape[axes[1]]
    return np.flip(y, axes).copy(), np.where(np.flip(place, axes) < 0, -1, size - 1 - np.flip(place, axes)).astype(np.int32)


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_is_found_and_named(said):
    name, fault = FAULTS[said]
    with np.errstate(all="ignore"):
        report = check(fault or last_maximum, name, cases=lambda c: "ceil" not in c.label and c.kind not in ("special", "subnormal"))
    assert not report
    assert said in report.explain(), report.explain()
    assert report.failures[0].case.repeat() in report.explain() or "to repeat: oracle.case(" in report.explain()


def test_one_dropped_tap_among_a_hundred_thousand_is_found():
    def dropped(dy, x, *, weight_shape, **window):
        dy = dy.copy()
        dy.reshape(-1)[dy.size // 2] = 0
        return conv2d_dw(dy, x, weight_shape=weight_shape, **window)

    report = check(dropped, "conv2d_dw", cases=lambda case: "large" in case.label, strided=False)
    assert [row.band for row in report.rows][0] == "WRONG"  # whole numbers see it; reals may not


def test_a_stale_result_is_named():
    kept = {}

    def stale(a, b):
        return kept.setdefault((a.shape, b.shape), matmul(a, b)).copy()

    report = check(stale, "matmul")
    assert not report and "stale output" in report.explain()


def test_writing_into_an_input_is_found_even_if_the_result_is_right():
    def rude(x, weight, bias, **window):
        y = conv2d(x, weight, bias, **window)
        x[...] = 0
        return y

    report = check(rude, "conv2d")
    assert not report and "wrote into its input x" in report.explain()


def test_results_must_be_fresh():
    buffers = {}

    def reused(a, b):
        out = buffers.setdefault((a.shape, b.shape), np.empty((*a.shape[:-1], b.shape[-1]), a.dtype))
        out[...] = matmul(a, b)
        return out

    assert "first one's memory" in check(reused, "matmul").explain()
    assert "memory of input x" in check(lambda x: x, "relu", cases=[Case.of("relu", np.ones((3, 4), np.float32))]).explain()


def test_two_calls_must_agree():
    calls = []

    def drifting(a, b):
        calls.append(1)
        return np.nextafter(matmul(a, b), np.float32(np.inf if len(calls) % 2 else -np.inf))

    assert "two calls on equal inputs gave different bits" in check(drifting, "matmul").explain()


def test_inputs_that_are_not_contiguous_work_or_are_refused():
    def ignores_strides(a, b):
        flat = np.lib.stride_tricks.as_strided(a, a.shape, np.zeros(a.shape, a.dtype).strides)
        return matmul(flat, b)

    def refuses(a, b):
        if not a.flags.c_contiguous:
            raise ValueError("a must be contiguous")
        return matmul(a, b)

    small = lambda case: case.label == "small"
    report = check(ignores_strides, "matmul", cases=small)
    assert [row.contiguous for row in report.failures] == [False]
    assert check(refuses, "matmul", cases=small)


def test_errors_of_the_function_are_failures_and_are_shown():
    def broken(a, b):
        raise ZeroDivisionError("oops")

    report = check(broken, "matmul")
    assert not report and "ZeroDivisionError: oops" in report.explain()


def test_no_case_is_no_pass():
    report = check(matmul, "matmul", cases=[])
    assert not report and "NO CASES" in report.explain()


def test_cases_of_ones_own():
    rng = np.random.default_rng(0)
    case = Case.of("conv2d", rng.standard_normal((1, 2, 5, 4)).astype("f4"), rng.standard_normal((3, 2, 2, 2)).astype("f4"), None, stride=2, padding="same")
    assert check(lambda x, w, b, *, stride, padding: conv2d(x, w, b, stride=stride, padding=padding), "conv2d", cases=[case])
    with pytest.raises(TypeError, match="for matmul"):
        check(matmul, "matmul", cases=[case])
    with pytest.raises(ValueError, match="there is no table|has no"):
        check(matmul, "matmull")


def test_cases_repeat_from_their_id_and_seed():
    for dtype in ("float32", "float64"):
        for case in oracle.cases("conv2d", seed=5, dtype=dtype)[:6]:
            again = oracle.case("conv2d", case.id, seed=5, dtype=dtype)
            for a, b in zip(case.inputs()[0], again.inputs()[0]):
                assert a is b is None or a.tobytes() == b.tobytes()
    first, other = (oracle.case("matmul", "small/reals", seed=s).inputs()[0][0] for s in (0, 1))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_whole_numbers_must_be_exact_where_no_division_is(name, dtype):
    for case in oracle.cases(name, kinds=["ints"], dtype=dtype):
        want = case.want()
        assert want.exact != name.startswith("avg_pool2d"), case


def test_a_norm_wise_variant_passes_with_its_bound_and_structure_still_counts():
    tf32 = lambda x, w, b, **k: conv2d(short(x), short(w), b, **k)
    plain = lambda case: case.kind in ("ints", "reals") and "empty" not in case.label
    assert check(tf32, "conv2d", norm=2.0**-10, cases=plain)
    shifted = lambda x, w, b, **k: tf32(np.roll(x, 1, axis=0), w, b, **k)
    assert not check(shifted, "conv2d", norm=2.0**-10, cases=plain)


def test_the_report_draws_its_errors():
    page = check(last_column_skipped, "conv2d").html()
    assert page.startswith("<!doctype html>") and "<svg" in page and page.rstrip().endswith("</html>")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page
    assert "passed" in check(conv2d, "conv2d", cases=lambda c: "one" in c.label).html()


def test_assert_op_and_assert_sensitive():
    assert oracle.assert_op(matmul, "matmul")
    with pytest.raises(AssertionError, match="FAILED"):
        oracle.assert_op(half_sums, "matmul", cases=lambda case: case.kind == "reals" and "large" not in case.label)

    mutants = [("1.001x", lambda a, b: matmul(a, b) * np.float32(1.001)), ("zeros", lambda a, b: 0 * matmul(a, b))]
    ours = lambda fn: oracle.assert_op(fn, "matmul", cases=lambda case: case.label == "small")
    assert oracle.assert_sensitive(ours, "matmul", mutants=mutants) == ["1.001x", "zeros"]

    a, b = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    lax = lambda fn: np.testing.assert_allclose(fn(a, b), a @ b, rtol=1e-2)
    with pytest.raises(AssertionError, match="1 of 2 planted faults pass: 1.001x"):
        oracle.assert_sensitive(lax, mutants=dict(mutants), honest=matmul)
    with pytest.raises(TypeError, match="which implementation is correct"):
        oracle.assert_sensitive(lax, mutants=dict(mutants))
    with pytest.raises(AssertionError, match="refuses a correct implementation"):
        oracle.assert_sensitive(lambda fn: False, "matmul", mutants=mutants)
    with pytest.raises(TypeError, match="which mutants"):
        oracle.assert_sensitive(ours)


def test_adapters():
    assert check(lambda a, b: (np.asarray(a[0]) @ np.asarray(b[0]),), "matmul", adapt=(lambda a: [a], lambda t: t), cases=lambda c: c.label == "small").rows[0].band == "SHAPE"
    assert check(lambda a, b: [a[0] @ b[0]][0], "matmul", adapt=(lambda a: [a], lambda t: t), cases=lambda c: c.label == "small")
    with pytest.raises(ValueError, match="adapt must be one of"):
        check(matmul, "matmul", adapt="theano")
    assert Band.OK.severity < Band.WRONG.severity


@pytest.mark.parametrize("name", KERNELS)
def test_random_geometries_pass_too(name):
    with np.errstate(all="ignore"):
        report = check(reference_kernel(name), name, cases=oracle.random_cases(name, 60, seed=1))
    assert len(report) == 61 and report, report.explain()


def test_a_report_names_the_dtype_of_the_cases_that_it_was_given():
    assert "matmul (honest_matmul), float64" in check(matmul, "matmul", cases=oracle.random_cases("matmul", 3, dtype="float64")).explain()


def test_random_cases_repeat_from_their_id_too():
    case = oracle.random_cases("conv2d", 5, seed=3)[4]
    again = eval(case.repeat(), {"oracle": oracle})
    assert all(a is b is None or a.tobytes() == b.tobytes() for a, b in zip(case.inputs()[0], again.inputs()[0]))


# --- cases of ones own, and functions that return other things ---


def own_cases():
    rng = np.random.default_rng(0)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    yield Case.of("conv2d", f(1, 2, 5, 4), f(3, 2, 2, 2))
    yield Case.of("conv2d", f(1, 2, 5, 4), f(3, 2, 2, 2), f(3), padding=1, stride=2)
    yield Case.of("conv2d_dx", f(1, 3, 4, 3), f(3, 2, 2, 2), x_shape=(1, 2, 5, 4))
    yield Case.of("max_pool2d", f(1, 2, 6, 4), kernel_size=2)
    yield Case.of("avg_pool2d", f(1, 2, 6, 4), kernel_size=2, padding=1)
    yield Case.of("linear", f(3, 4), f(5, 4))
    yield Case.of("cross_entropy", f(3, 4), np.array([0, 2, 1]))
    yield Case.of("softmax", f(3, 4))
    yield Case.of("matmul", f(3, 4), f(4, 2))


@pytest.mark.parametrize("case", list(own_cases()), ids=str)
def test_a_failing_case_of_ones_own_is_explained(case):
    """Parameters that were left out or given in short form are understood by whoever explains."""
    honest = honest_function(case.name)

    def off(*arrays, **parameters):
        found = honest(*arrays, **parameters)
        return tuple(f + f.dtype.type(1) for f in found) if isinstance(found, tuple) else found * np.float32(1.37)

    assert check(honest, case.name, cases=[case])
    report = check(off, case.name, cases=[case])
    assert not report and case.name in report.explain() and report.html()


@pytest.mark.parametrize("returned", [None, [[1.0]], (None, None), "text"])
def test_a_function_that_returns_no_array_is_a_failure_that_says_so(returned):
    report = check(lambda a, b: returned, "matmul")
    assert not report and "expected an array, or a tuple of them" in report.explain()


def test_every_step_of_an_optimiser_that_is_off_is_explained():
    honest = honest_function("sgd_step")

    def off(*arrays, **parameters):
        found = honest(*arrays, **parameters)
        return tuple(f * np.float32(1.37) for f in found) if isinstance(found, tuple) else found * np.float32(1.37)

    assert "FAILED" in check(off, "sgd_step").explain()


def test_a_variant_declares_that_it_is_judged_by_norm():
    from tinynet.kernels.contract import implements

    @implements("matmul", device="cpu", variant="halves", norm=2.0**-9)
    def matmul_in_halves(a, b, *, out):
        out[...] = np.matmul(a.astype(np.float16).astype(np.float32), b.astype(np.float16).astype(np.float32))

    try:
        declared = find("matmul", "cpu.halves")
        plain = lambda case: case.kind in ("ints", "reals")
        assert check(oracle.with_out(declared, "matmul"), "matmul", cases=plain)
        assert not check(oracle.with_out(declared.function, "matmul"), "matmul", cases=plain)
    finally:
        del IMPLEMENTATIONS["matmul", "cpu"]["halves"]

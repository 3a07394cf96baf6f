"""judge: each band, what it means, and what a verdict says."""

import numpy as np
import pytest

from tinynet import oracle
from tinynet.oracle import Band, Bounded, judge, reference
from tinynet.oracle.patterns import describe


def dot(n, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, n)).astype(dtype), rng.standard_normal((n, 3)).astype(dtype)


def sequential(a, b):
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for t in range(a.shape[1]):
        total = (total + a[:, t : t + 1] * b[t]).astype(a.dtype)
    return total


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n", [1, 27, 1000])
def test_honest_orders_of_summation_pass(dtype, n):
    a, b = dot(n, dtype=dtype)
    want = reference.matmul(a, b)
    pairwise = (a[:, :, None] * b).sum(axis=1, dtype=dtype)
    for got in (sequential(a, b), sequential(a[:, ::-1], b[::-1]), pairwise, a @ b):
        assert judge(got, want, zero_mean=True), judge(got, want, zero_mean=True).explain()


def test_bfloat16_is_judged_by_its_own_u():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a, b = (v.astype(ml_dtypes.bfloat16) for v in dot(50))
    want = reference.matmul(a, b)
    assert want.dtype == "bfloat16"
    assert judge(sequential(a, b), want)
    assert not judge((sequential(a, b) * ml_dtypes.bfloat16(1.3)).astype(ml_dtypes.bfloat16), want)


def test_exact_is_the_truth_rounded_once():
    a, b = dot(100)
    want = reference.matmul(a, b)
    assert judge(want.value.astype(np.float32), want).band is Band.EXACT


def test_a_dropped_term_is_wrong_and_says_so():
    a, b = dot(27)
    verdict = judge(sequential(a[:, :-1], b[:-1]), reference.matmul(a, b))
    assert verdict.band is Band.WRONG and not verdict
    assert verdict.n_bad == 12 and verdict.r_max > verdict.proof
    text = verdict.explain()
    assert "no order of summation in float32" in text and "worst at" in text and "gate" in text


def test_loose_lies_between_gate_and_proof_and_passes_only_without_strict():
    a, b = dot(10_000)
    want = reference.matmul(a, b)
    got = (want.value + 1000 * 2.0**-24 * want.gauge).astype(np.float32)
    assert judge(got, want, zero_mean=True).band is Band.LOOSE
    assert not judge(got, want, zero_mean=True)
    assert judge(got, want, zero_mean=True, strict=False)


def test_float64_is_judged_finer_than_float64_could_be():
    a, b = dot(300, dtype=np.float64)
    want = reference.matmul(a, b)
    assert judge(sequential(a, b), want, zero_mean=True)
    assert judge(want.value, want).band is Band.EXACT
    assert not judge(want.value + 20 * 2.0**-53 * want.gauge, want, zero_mean=True)
    assert not judge((a.astype("f4") @ b.astype("f4")).astype("f8"), want)


def test_shape_and_dtype_come_first_and_give_advice():
    a, b = dot(5)
    want = reference.matmul(a, b)
    assert judge((a @ b).T.copy(), want).band is Band.SHAPE
    assert "another order" in judge((a @ b).T.copy(), want).note
    assert judge((a @ b).astype(np.float64), want).band is Band.DTYPE
    assert judge(a.astype("f8") @ b.astype("f8"), want.in_dtype(None))
    assert judge(np.zeros((4, 3), complex), want.in_dtype(None)).band is Band.DTYPE
    assert judge((a @ b, a @ b), want).band is Band.SHAPE
    assert judge(a @ b, (want, want)).band is Band.SHAPE


def test_nan_and_infinity_must_be_where_the_truth_has_them():
    want = Bounded(np.array([np.nan, np.inf, -np.inf, 1.0]), np.array([np.inf, np.inf, np.inf, 1.0]), 3)
    assert judge(np.array([np.nan, np.inf, -np.inf, 1.0], np.float32), want)
    for place, value in ((0, 0.0), (1, np.nan), (1, -np.inf), (3, np.nan), (3, np.inf), (2, 3e38)):
        got = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
        got[place] = value
        verdict = judge(got, want)
        assert verdict.band is Band.NONFINITE and verdict.worst == (place,)


def test_overflow_of_the_format_is_right_and_overflow_on_the_way_is_loose():
    a, b = np.full((1, 4), 200, np.float16), np.full((4, 1), 200, np.float16)
    want = reference.matmul(a, b)
    assert judge(np.array([[np.inf]], np.float16), want).band is Band.EXACT
    b[2:] *= -1
    assert judge(np.array([[np.inf]], np.float16), reference.matmul(a, b), max_zero_share=1).band is Band.LOOSE
    assert judge(np.array([[0]], np.float16), reference.matmul(a, b), max_zero_share=1).band is Band.EXACT


def test_where_the_gauge_is_zero_only_the_exact_value_is_right():
    want = Bounded(np.zeros(20) + np.eye(1, 20)[0], np.eye(1, 20)[0], 5)
    got = np.eye(1, 20)[0].astype(np.float32)
    assert judge(got, want, max_zero_share=1)
    got[7] = 1e-44
    assert judge(got, want, max_zero_share=1).band is Band.WRONG


def test_underflow_is_forgiven_and_flushing_only_when_declared():
    x = np.full((1, 8), 2.0**-140, np.float32)
    w = np.full((8, 1), 0.3, np.float32)
    want = reference.matmul(x, w)
    assert judge(sequential(x, w), want)
    assert not judge(np.zeros((1, 1), np.float32), want)
    assert judge(np.zeros((1, 1), np.float32), want, flush=True)


def test_a_truth_of_zeros_is_mistrusted():
    want = Bounded(np.zeros(100), np.ones(100), 10)
    verdict = judge(np.zeros(100, np.float32), want)
    assert verdict.band is Band.MISTRUSTED and not verdict and "zero" in verdict.explain()
    assert judge(np.zeros(100, np.float32), want, max_zero_share=1)


def test_empty_results_only_have_shape_and_dtype():
    want = reference.matmul(np.zeros((0, 3), np.float32), np.zeros((3, 2), np.float32))
    assert judge(np.zeros((0, 2), np.float32), want)
    assert not judge(np.zeros((2, 0), np.float32), want)


def test_effective_bits_name_tf32():
    a, b = dot(512, seed=3)

    def tf32(v):
        return ((v.view(np.int32) + 0x1000) & ~0x1FFF).view(np.float32)

    verdict = judge(tf32(a) @ tf32(b), reference.matmul(a, b), zero_mean=True)
    assert not verdict and 9.5 < verdict.effective_bits < 12
    assert judge(a @ b, reference.matmul(a, b), zero_mean=True).effective_bits > 15


def test_the_norm_wise_class_states_its_bound():
    a, b = dot(512, seed=3)
    want = reference.matmul(a, b).with_norm(2.0**-10)
    got = a.astype(np.float16).astype(np.float32) @ b.astype(np.float16).astype(np.float32)
    verdict = judge(got, want)
    assert verdict and verdict.norm[1] == 2.0**-10 and "stated bound" in verdict.explain()
    assert judge(got * np.float32(1.5), want).band is Band.WRONG


def test_ties_of_max_pooling_first_or_any():
    x = np.ones((1, 1, 4, 4), np.float32)
    y, last = np.ones((1, 1, 2, 2), np.float32), np.array([[[[5, 7], [13, 15]]]], np.int32)
    assert not judge((y, last), reference.max_pool2d(x, kernel_size=2))
    assert judge((y, last), reference.max_pool2d(x, kernel_size=2, ties="any"))
    assert not judge((y, last[..., ::-1]), reference.max_pool2d(x, kernel_size=2, ties="any"))


def test_results_of_other_libraries_are_read():
    torch = pytest.importorskip("torch")
    a, b = dot(20)
    assert judge(torch.from_numpy(a) @ torch.from_numpy(b), reference.matmul(a, b))


def test_a_truth_is_required():
    with pytest.raises(TypeError, match="Bounded"):
        judge(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((slice(None), slice(None), slice(None), -1), "last column"),
        ((slice(None), slice(5, None)), "last 3 of 8 channels"),
        ((1,), "the last image"),
        ((slice(None), slice(None), slice(0, None, 2)), "every second row, from 0 on"),
        ((slice(None), slice(None), slice(2, 4), slice(4, 7)), "one tile"),
        ((slice(None), 3), "channel (3 of 0..7)"),
    ],
)
def test_patterns(where, said):
    bad = np.zeros((2, 8, 6, 9), bool)
    bad[where] = True
    assert said in describe(bad, ("image", "channel", "row", "column"))


def test_the_pattern_of_a_border():
    bad = np.ones((2, 3, 6, 9), bool)
    bad[:, :, 1:-1, 1:-1] = False
    assert "border of the image, 1 wide" in describe(bad, ("image", "channel", "row", "column"))


def test_assert_matches_raises_the_explanation():
    a, b = dot(9)
    assert oracle.assert_matches(a @ b, reference.matmul(a, b))
    with pytest.raises(AssertionError, match="my matmul: WRONG"):
        oracle.assert_matches((a @ b) * np.float32(1.01), reference.matmul(a, b), name="my matmul")


def test_a_long_softmax_that_is_off_by_a_thousandth_is_not_ok():
    """The gate of sums holds inside formulas too: a bound that grows with the number of classes would let this pass."""
    x = np.random.default_rng(0).standard_normal((2, 32_000)).astype(np.float32)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    want = reference.softmax(x)
    assert judge(p, want)
    off = judge(p * np.float32(1.001), want)
    assert off.band is Band.LOOSE and not off and off.proof > off.limit


def test_rows_missing_from_a_large_mean_are_found():
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((20_000, 10)).astype(np.float32), rng.integers(0, 10, 20_000)
    losses = -(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))[np.arange(20_000), t]
    want = reference.cross_entropy(x, t)
    assert judge(np.float32(losses.mean()), want)
    assert not judge(np.float32(losses[:-19].sum() / 20_000), want)


@pytest.mark.parametrize(("dtype", "classes"), [("bfloat16", 300), ("float16", 4096)])
def test_half_precision_has_bounds_on_long_axes_too(dtype, classes):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = oracle.inputs.reals(np.random.default_rng(0), (3, classes), dtype=dtype)
    honest = oracle.honest_function("softmax")(x)
    assert judge(honest, reference.softmax(x))
    assert not judge((0 * honest).astype(x.dtype), reference.softmax(x))


def test_long_half_precision_products_keep_a_proof():
    pytest.importorskip("ml_dtypes")
    a, b = (oracle.inputs.reals(np.random.default_rng(i), s, dtype="bfloat16") for i, s in enumerate([(3, 300), (300, 4)]))
    want = reference.matmul(a, b)
    assert judge(np.full((3, 4), 1e30).astype(a.dtype), want, strict=False).band is Band.WRONG


def test_factors_too_far_apart_for_exact_slices_are_judged_with_slack():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((4, 1)) * 10.0 ** rng.uniform(-60, 60, (4, 1)), rng.standard_normal((1, 5)) * 10.0 ** rng.uniform(-60, 60, (1, 5))
        assert judge(a @ b, reference.matmul(a, b)), seed


def test_a_library_that_flushes_is_known_by_its_arrays():
    tf = pytest.importorskip("tensorflow")
    x = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32) * 60
    assert judge(tf.nn.softmax(x), reference.softmax(x), max_zero_share=1.0)


def test_a_sum_behind_a_mean_may_overflow():
    x = np.full(10, 1e38, np.float32)
    with np.errstate(over="ignore"):
        assert judge(x.mean(), reference.mean(x)).band is Band.LOOSE


def test_nan_where_the_format_overflows_is_not_ok_by_norm_either():
    a, b = np.full((1, 4), 200, np.float16), np.full((4, 2), 200, np.float16)
    want = reference.matmul(a, b).with_norm(1e-3)
    assert judge(np.full((1, 2), np.nan, np.float16), want).band is Band.LOOSE


@pytest.mark.parametrize("got", [(np.ones(3, "f4"),), (np.ones(3, "f4"), np.ones(3, "f4"))])
def test_a_wrong_number_of_results_is_explained(got):
    want = reference.relu(np.ones(3, np.float32))
    assert "SHAPE" in str(judge(got, want)) and "SHAPE" in str(judge(np.ones(3, "f4"), (want, want)))


def test_nothing_is_said_of_a_handful_of_zeros():
    assert judge(np.float32(0), reference.sum(np.array([1, -1], np.float32)))


def test_bfloat16_and_gradient_tensors_of_torch_are_read():
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    a, b = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True), torch.randn(4, 2, dtype=torch.bfloat16)
    assert judge(a @ b, reference.matmul(a, b))
    assert oracle.Case.of("matmul", a, b).dtype == "bfloat16"

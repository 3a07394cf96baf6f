"""gradcheck: right gradients pass, wrong ones are found whatever their size, kinks are seen."""

import numpy as np
import pytest

from tinynet import functional as F
from tinynet.op import OPS, op
from tinynet.oracle import gradcheck
from tinynet.tensor import Tensor


def samples():
    for name, found in sorted(OPS.items()):
        if found.make_samples is None or name in ("astype", "move") or name.startswith("_test"):
            continue
        for i, (*inputs, parameters) in enumerate(found.make_samples(np.random.default_rng(1))):
            yield pytest.param(found, inputs, parameters, id=f"{name}-{i}")


@pytest.mark.parametrize(("found", "inputs", "parameters"), list(samples()))
def test_every_op_passes_on_its_own_samples(found, inputs, parameters):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(i) if isinstance(i, tuple) else i for i in inputs]
    given = [a for a in arrays if a is not None]

    def fn(*tensors):
        rest = iter(tensors)
        return found(*(None if a is None else next(rest) for a in arrays), **parameters)

    report = gradcheck(fn, given)
    assert report, report.explain()


def planted(wrong):
    """An op y = x*x whose gradient is `wrong(dy, x)`."""

    @op
    def _test_square(k, x):
        return x * x

    @_test_square.gradient("x")
    def _(k, dy, *, x):
        return wrong(dy, x)

    del OPS["_test_square"]
    return _test_square


def first_element_off(dy, x):
    dx = 2 * x * dy
    dx[(0,) * dx.ndim] *= 1.01
    return dx


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda dy, x: 2 * x * dy * 1.000001, "1.000001 times the right one"),
        (lambda dy, x: x * dy, "0.5 times the right one"),
        (lambda dy, x: 2 * x * dy / x.size, "times the right one"),
        (first_element_off, "1 of 12 elements are wrong, like [0, 0]"),
        (lambda dy, x: 2 * x, "elements are wrong"),
    ],
)
def test_wrong_gradients_are_found_and_described(wrong, said):
    report = gradcheck(planted(wrong), [np.random.default_rng(0).standard_normal((3, 4))])
    assert not report and said in report.explain(), report.explain()


def test_the_cotangent_is_never_all_ones():
    # d(sum of softmax)/dx = 0: with a cotangent of ones any multiple of the gradient would pass
    seen = []
    square = planted(lambda dy, x: (seen.append(dy.copy()), 2 * x * dy)[1])
    assert gradcheck(square, [np.random.default_rng(0).standard_normal((3, 4))])
    assert all(len(np.unique(dy)) == dy.size for dy in seen)


def test_kinks_are_seen_and_left():
    report = gradcheck(F.relu, [np.zeros((3, 4))])
    assert report and "kink" in report.explain()
    ties = gradcheck(lambda x: F.max_pool2d(x, 2), [np.ones((1, 1, 4, 4))])
    assert ties and "kink" in ties.explain()
    smooth = gradcheck(lambda x: F.max_pool2d(x, 2), [np.random.default_rng(0).permutation(16).reshape(1, 1, 4, 4).astype(float)])
    assert smooth and not smooth.notes


def test_a_float32_detour_is_undecided_and_not_passed():
    report = gradcheck(lambda x: (x * x).astype("float32").astype("float64"), [np.random.default_rng(0).standard_normal((3, 4))])
    assert not report


def test_results_in_float32_are_an_error():
    with pytest.raises(TypeError, match="lower precision"):
        gradcheck(lambda x: x.astype("float32"), [np.ones((2, 2))])


def test_integers_are_passed_on_and_nothing_checked_is_no_pass():
    target = np.array([0, 2, 1])
    assert gradcheck(lambda x, t: F.cross_entropy(x, t), [np.random.default_rng(0).standard_normal((3, 4)), target])
    report = gradcheck(lambda t: Tensor(np.ones(3), device="reference"), [target])
    assert not report and "NOTHING" in report.explain()


def test_a_missing_gradient_is_a_failure():
    report = gradcheck(lambda x: x.detach() * Tensor(np.ones(3), requires_grad=True, device="reference"), [np.arange(1.0, 4.0)])
    assert not report and "no gradient arrived" in report.explain()


def test_constant_functions_have_gradient_zero():
    assert gradcheck(lambda x: x * 0.0, [np.ones((2, 3))])


def test_float32_inputs_are_checked_in_float64():
    assert gradcheck(F.softmax, [np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)])


def planted_log(factor):
    @op
    def _test_log(k, x):
        return k.xp.log(x)

    @_test_log.gradient("x")
    def _(k, dy, *, x):
        return factor * dy / x

    del OPS["_test_log"]
    return _test_log


def test_steps_that_leave_the_domain_are_not_a_pass():
    near_zero = np.full(3, 0.01)
    assert gradcheck(planted_log(1.0), [near_zero])
    assert not gradcheck(planted_log(7.0), [near_zero])
    with np.errstate(all="ignore"):
        assert "undecided, the function is not finite" in gradcheck(planted_log(1.0), [np.full(3, -1.0)]).explain()


def test_a_result_without_elements_is_refused():
    with pytest.raises(ValueError, match="no elements"):
        gradcheck(lambda x: x[:0], [np.ones(3)])

"""Every planted fault is caught; the usual checks let some through; the table says which."""

from __future__ import annotations

import pytest

from tinynet import oracle
from tinynet.kernels.contract import CONTRACTS
from tinynet.oracle.mutants import USUAL


@pytest.fixture(scope="module")
def table():
    return oracle.kill_table()


def test_every_planted_fault_is_caught(table):
    assert table and table.survivors == []
    assert not [row.mutant.name for row in table.rows if "ERROR" in row.caught], "caught for its signature, not for its fault"


@pytest.mark.parametrize("seed", [1, 2])
def test_and_not_by_the_luck_of_a_seed(seed):
    assert oracle.kill_table(seed=seed).survivors == []


def test_there_are_many_over_every_kernel_and_its_gradients(table):
    planted = {row.mutant.op for row in table.rows}
    assert len(table) >= 120 and len({row.mutant.name for row in table.rows}) == len(table)
    assert {name for name in CONTRACTS if name in oracle.reference.NAMES} <= planted
    assert {"relu_grad", "softmax_grad", "cross_entropy_grad", "linear_grad", "sgd_step", "adam_step"} <= planted


@pytest.mark.parametrize("check", USUAL)
def test_each_of_the_usual_checks_lets_some_through(table, check):
    assert table.missed_by(check)
    assert any(row.usual[check] for row in table.rows), "and notices others: the comparison is fair"


def test_cotangents_of_ones_are_blind_to_softmaxs_gradient(table):
    assert "softmax_grad: the sign is wrong" in table.missed_by("ones")
    assert "softmax_grad: the sign is wrong" not in table.missed_by("torch")


def test_the_table_prints_and_is_published(table):
    text = str(table)
    assert f"{len(table)} planted faults; the oracle missed 0" in text
    assert table.markdown().count("\n") == len(table) + 1


def test_a_table_of_nothing_is_no_proof():
    assert not oracle.kill_table([])


def test_a_lax_test_is_told_which_faults_it_lets_through():
    import numpy as np

    a, b = np.random.default_rng(0).standard_normal((2, 6, 6)).astype("f4")
    with pytest.raises(AssertionError, match="planted faults pass: .*matmul: 1.001 times the truth"):
        oracle.assert_sensitive(lambda fn: np.testing.assert_allclose(fn(a, b), a @ b, rtol=1e-2, atol=1e-2), "matmul")


@pytest.mark.parametrize("name", ["conv2d", "matmul", "relu_grad"])
def test_the_oracles_own_check_is_sensitive(name):
    named = oracle.assert_sensitive(lambda fn: oracle.check(fn, name), name)
    assert len(named) == len(oracle.mutants_of(name)) >= 2


def test_faults_are_called_as_the_honest_function_is():
    """A fault may not be noticed for its signature: what has a default can be left out."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((1, 2, 6, 4)).astype("f4")
    w, p = np.ones((3, 2, 2, 2), "f4"), np.array([0, 1])
    for name, call in {
        "nll_loss": lambda fn: fn(np.zeros((2, 3), "f4"), p),
        "max_pool2d": lambda fn: fn(x, kernel_size=2),
        "conv2d": lambda fn: fn(x, w, padding=1),
        "softmax": lambda fn: fn(x[0, 0], 1),
    }.items():
        with pytest.raises(AssertionError, match=f"lets {len(oracle.mutants_of(name))} of {len(oracle.mutants_of(name))} planted faults pass"):
            oracle.assert_sensitive(lambda fn, call=call: (call(fn), None)[1], name)

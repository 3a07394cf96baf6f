"""Every peer computes the same networks, and the derived bound sees what is wrong."""

import numpy as np
import pytest

from tinynet.compare import bounds, networks, parity
from tinynet.compare.peers import make
from tinynet.data import load_digits
from tinynet.oracle import Bounded, judge
from tinynet.oracle.running import K

CASES = [
    (name, mode)
    for name in ("tinynet", "tensorflow", "keras", "keras-jax", "keras-torch", "pytorch")
    for mode in make(name).modes
    if mode != "compile"  # tens of seconds of compiling for each network; `tinynet compare` runs it
]


@pytest.fixture(scope="module")
def truths():
    """network -> (state, x, y, truth), for 8 images."""
    training, _ = load_digits()
    made = {}
    for name, network in networks.NETWORKS.items():
        state = networks.canonical_state(network)
        x, y, _ = parity.batch(network, state, training, 8)
        made[name] = state, x, y, bounds.truth(network, state, x, y)
    return made


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("peer, mode", CASES)
def test_state_output_loss_every_gradient_and_a_step_are_within_their_bounds(started, truths, peer, mode, network):
    state, x, y, truth = truths[network]
    rows = parity.checks(state, truth, started(peer).call("parity", network, mode, state, x, y, parity.STEP))
    assert len(rows) == 3 + 2 * len(state) + 1  # state, output, loss; each parameter's gradient and step, and the images' gradient
    assert [row for row in rows if not row["ok"]] == []


def test_probabilities_and_log_probabilities_are_one_network(truths):
    p, log_p = truths["keras"][3].output, truths["pytorch"][3].output
    # In float64: the roundings of ten exponentials, their sum, a division and a logarithm, K units in the last place each.
    judged = Bounded(log_p.value, 1 + np.abs(log_p.value), int(10 + 4 * K + 4), dtype="float64")
    assert judge(np.log(p.value), judged)


def test_no_image_of_the_batch_has_a_near_tie(truths):
    for *_, truth in truths.values():
        assert truth.near_ties.sum() == 0 and truth.choices > 10_000


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("fault", ["one tap off by 1e-3 in every filter", "inputs rounded to 11 bits", "a bias left out", "gradient 1.001x", "gradient transposed", "one image skipped"])
def test_a_fault_breaks_its_bound(started, truths, network, fault):
    state, x, y, truth = truths[network]
    process = started("tinynet")
    altered, images = dict(state), x
    if fault == "one tap off by 1e-3 in every filter":
        altered["conv2.weight"] = state["conv2.weight"].copy()
        altered["conv2.weight"][:, :, 1, 2] += 1e-3
    elif fault == "inputs rounded to 11 bits":
        images = (np.round(x * 2**11) / 2**11).astype(np.float32)
    elif fault == "a bias left out":
        altered["conv1.bias"] = np.zeros_like(state["conv1.bias"])
    elif fault == "one image skipped":
        images = x.copy()
        images[-1] = 0
    result = process.call("parity", network, "eager", altered, images, y, parity.STEP)
    if fault == "gradient 1.001x":
        result["gradients"]["conv2.weight"] = result["gradients"]["conv2.weight"] * np.float32(1.001)
    elif fault == "gradient transposed":
        result["gradients"]["conv2.weight"] = np.ascontiguousarray(result["gradients"]["conv2.weight"].swapaxes(2, 3))
    result["state"] = state
    assert not all(row["ok"] for row in parity.checks(state, truth, result))


def test_a_nan_or_a_missing_gradient_is_not_ok(started, truths):
    state, x, y, truth = truths["keras"]
    result = started("tinynet").call("parity", "keras", "eager", state, x, y, parity.STEP)
    result["output"] = np.full_like(result["output"], np.nan)
    del result["gradients"]["fc1.bias"]
    wrong = {row["name"] for row in parity.checks(state, truth, result) if not row["ok"]}
    assert wrong == {"output", "gradient of fc1.bias"}


def seven_columns_twice(before, after):
    after[:, -7:] += (after - before)[:, -7:]


def nothing(before, after):
    after[...] = before


def a_thousandth_more(before, after):
    after += np.float32(1e-3) * (after - before)


@pytest.mark.parametrize("fault", [seven_columns_twice, nothing, a_thousandth_more])
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_step_that_is_not_the_gradient_s_breaks_its_bound_and_no_other(started, truths, network, fault):
    state, x, y, truth = truths[network]
    result = started("tinynet").call("parity", network, "compiled", state, x, y, parity.STEP)
    fault(state["fc1.weight"], result["stepped"]["fc1.weight"])
    assert [row["name"] for row in parity.checks(state, truth, result) if not row["ok"]] == ["step of fc1.weight"]

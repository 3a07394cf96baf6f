"""What every kernel promises, and that a function which promises something else is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from tinynet.devices import devices
from tinynet.dispatch import find, kernels, variants
from tinynet.kernels.contract import CONTRACTS, IMPLEMENTATIONS, implements

# tests/cuda proves the CUDA devices' kernels.
READY = [device for device, reason in devices().items() if reason is None and not device.startswith("cuda")]
IMAGES = dict(stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, layout="NCHW")


@pytest.mark.parametrize("device", [*READY, "cuda", "cuda-emulator"])
@pytest.mark.parametrize("name", CONTRACTS)
def test_every_device_has_every_kernel(name, device):
    assert variants(name, device), f"{device} has no {name}"
    implementation = find(name, device)
    assert implementation.device == device
    assert implementation.path == f"{device}.{implementation.variant}"


def test_every_registered_implementation_has_the_contracts_signature():
    for device in READY:
        variants("conv2d", device)
    for (name, _), found in IMPLEMENTATIONS.items():
        for implementation in found.values():
            signature = inspect.signature(implementation.function)
            arrays = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            keywords = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
            assert tuple(arrays) == CONTRACTS[name].arrays, implementation.path
            assert keywords == {*CONTRACTS[name].parameters, "out"}, implementation.path


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: None,
        lambda a, *, out: None,
        lambda a, b, c, *, out: None,
        lambda b, a, *, out: None,
        lambda a, b, out: None,
        lambda a, b, *, out, transpose: None,
    ],
    ids=["no out", "one array", "three arrays", "other order", "out by position", "a parameter of its own"],
)
def test_a_kernel_with_a_wrong_signature_is_refused(wrong):
    with pytest.raises(TypeError, match=r"test\.wrong: kernel matmul must have the signature \(a, b, \*, out\); got") as caught:
        implements("matmul", device="test", variant="wrong")(wrong)
    assert str(inspect.signature(wrong)) in str(caught.value)
    assert ("matmul", "test") not in IMPLEMENTATIONS


def test_a_kernel_of_no_contract_is_refused():
    with pytest.raises(ValueError, match="there is no kernel 'convolve'; the kernels are conv2d, conv2d_dx"):
        implements("convolve", device="test", variant="any")


def test_a_variant_is_registered_once():
    with pytest.raises(ValueError, match="matmul already has an implementation reference.numpy; choose another variant name"):
        implements("matmul", device="reference", variant="numpy")(lambda a, b, *, out: None)


def test_every_contract_states_its_definition_and_its_work():
    for name, contract in CONTRACTS.items():
        assert "=" in contract.definition, name
        assert contract.judged in ("sum", "selection")


def test_the_work_of_a_convolution_is_counted():
    x, weight, bias = np.zeros((2, 3, 8, 7), np.float32), np.zeros((5, 3, 3, 2), np.float32), np.zeros(5, np.float32)
    contract = CONTRACTS["conv2d"]
    spec = contract.spec(x, weight, bias, **IMAGES)
    assert spec.outputs == (((2, 5, 6, 6), np.dtype(np.float32)),)
    assert spec.flops == 2 * (2 * 5 * 6 * 6) * (3 * 3 * 2)
    assert spec.terms == 3 * 3 * 2 + 1
    assert contract.least_bytes((x, weight, bias), spec) == 4 * (x.size + weight.size + bias.size + 2 * 5 * 6 * 6)
    assert contract.least_bytes((x, weight, None), spec) == 4 * (x.size + weight.size + 2 * 5 * 6 * 6)


@pytest.mark.parametrize("device", READY)
def test_kernels_take_read_only_inputs_and_float64(device, rng):
    x, weight = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((4, 3, 3, 2))
    x.flags.writeable = weight.flags.writeable = False
    y = kernels(device).conv2d(x, weight, None, **IMAGES)
    assert y.dtype == np.float64
    assert y.flags.writeable and y.flags.c_contiguous


def test_an_unknown_kernel_of_the_namespace_is_an_error():
    with pytest.raises(AttributeError, match="there is no kernel 'convolve'; the kernels are conv2d"):
        kernels("cpu").convolve


def test_other_peoples_numba_functions_compile_beside_our_announcer():
    """A function made by exec has no module; the listener that announces our compilations must not mind."""
    variants("matmul", "cpu")  # loads the backend, and with it the listener
    scope = {}
    exec("import numba\n@numba.njit\ndef twice(x):\n    return x + x\n", scope)
    assert scope["twice"](2) == 4

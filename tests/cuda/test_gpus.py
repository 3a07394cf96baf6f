"""Several GPUs, their memory, and arrays of other libraries: on a stand-in for CuPy that insists on the current GPU."""

from __future__ import annotations

import numpy as np
import pytest
import standin

import tinynet
from tinynet import functional as F
from tinynet.dispatch import kernels
from tinynet.kernels.cuda.emulator import build
from tinynet.op import OPS

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"the stand-in's kernels run on the emulator: {build.reason()}")


@pytest.fixture
def gpus(monkeypatch):
    with standin.installed(monkeypatch) as found:
        yield found


def whole(rng, *shape) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


def test_every_gpu_is_a_device(gpus):
    assert [name for name, why in tinynet.devices().items() if why is None and name.startswith("cuda")] == ["cuda", "cuda-emulator", "cuda:1"]
    with pytest.raises(RuntimeError, match="device 'cuda:2' can't be used: NVIDIA's driver finds 2 GPUs: 'cuda', 'cuda:1'"):
        tinynet.tensor([1.0]).to("cuda:2")
    for name in ("cuda:0", "cuda:01", "cuda:-1", "cuda:", "cpu:1", "cuda:1 "):
        with pytest.raises(ValueError, match=f"there is no device '{name}'; choose from 'cpu', .*; GPUs beside the first are 'cuda:1' and so on"):
            tinynet.tensor([1.0], device=name)


def test_a_network_trains_on_the_second_gpu_while_the_first_is_current(gpus, rng):
    """Forward, backward and optimisers, in whole numbers: as on numpy, and nothing is made on the first GPU."""
    x, weight, images = whole(rng, 6, 8), whole(rng, 4, 8), whole(rng, 2, 3, 6, 6)
    found = {}
    for device in ("cuda:1", "reference"):
        w = tinynet.tensor(weight, device=device, requires_grad=True)
        i = tinynet.tensor(images, device=device, requires_grad=True)
        optimizer = tinynet.optim.SGD([w, i], lr=0.5, momentum=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            y = F.relu(F.linear(tinynet.tensor(x, device=device), w))
            loss = (y * y).sum() + (F.max_pool2d(i, 2) + F.avg_pool2d(i, 2) * 4.0).sum() + w.sum()
            loss.backward()
            optimizer.step()
        assert {t.device for t in (y, loss, w)} == {device}
        if device == "cuda:1":
            assert {a.number for a in (w.data, w.grad, i.grad, *optimizer.state[0].values()) if not isinstance(a, int)} == {1}
        found[device] = [t.numpy() for t in (loss, w, i)]
    for got, want in zip(found["cuda:1"], found["reference"]):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert gpus.current == [0], "the current GPU is the user's again"


def test_a_graph_goes_from_gpu_to_gpu_without_the_host(gpus, rng):
    x = tinynet.tensor(whole(rng, 3, 4), device="cuda", requires_grad=True)
    y = (x * 2.0).to("cuda:1")
    waits = gpus.waits
    z = (y * y).to("cuda") + x.to("cuda:1").to("cuda")
    z.backward(gpus.ones((3, 4), np.float32))
    assert gpus.waits == waits, "nobody waits for a GPU, or goes by way of the host"
    assert (y.device, z.device, x.grad.number) == ("cuda:1", "cuda", 0)
    np.testing.assert_array_equal(x.grad.get(), 8 * x.numpy() + 1)


def test_tensors_on_two_gpus_do_not_meet(gpus):
    a, b = (tinynet.tensor([1.0, 2.0], device=device) for device in ("cuda", "cuda:1"))
    with pytest.raises(ValueError, match="add: y is on 'cuda:1', the inputs before it on 'cuda'; move one with .to"):
        a + b
    with pytest.raises(TypeError, match=r"Tensor: an array on 'cuda:1' does not lie in the memory of device 'cuda'; tinynet.tensor\(values, device='cuda'\) copies it there"):
        tinynet.Tensor(b.data, device="cuda")
    with pytest.raises(TypeError, match="an array on 'cuda' does not lie in the memory of device 'reference'"):
        tinynet.Tensor(a.data, device="reference")
    assert tinynet.tensor(b, device="cuda").data.number == 0 and tinynet.Tensor(b.data).device == "cuda:1"


def test_weights_are_loaded_onto_their_gpu(gpus):
    model = tinynet.nn.Linear(3, 2).to("cuda:1")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert all(np.array_equal(model.state_dict()[name], value) for name, value in state.items())


# --- what others made --------------------------------------------------------------------------------------------------


class Foreign:
    """A tensor of torch's on a GPU, as far as others see it."""

    dtype = "torch.float32"

    def __init__(self, array):
        self._array = array

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def __dlpack__(self, **_):
        return self._array

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")


def test_dlpack_makes_a_tensor_of_the_same_memory(gpus):
    with gpus.cuda.Device(1):
        array = gpus.array([1.0, 2.0, 3.0], np.float32)
    waits, used = gpus.waits, gpus.used
    shared = tinynet.Tensor(Foreign(array))
    assert (gpus.waits, gpus.used) == (waits, used), "no copy, and no waiting"
    array.values[1] = 7
    assert shared.device == "cuda:1" and shared.numpy().tolist() == [1, 7, 3]
    copied = tinynet.tensor(Foreign(array), device="cuda:1")
    array.values[1] = 9
    assert copied.device == "cuda:1" and copied.numpy().tolist() == [1, 7, 3]
    assert tinynet.tensor(Foreign(array)).device == "cpu", "as for any other array"


def test_a_copy_on_one_gpu_does_not_go_by_way_of_the_host(gpus):
    x = tinynet.tensor([1.0, 2.0], device="cuda:1")
    waits = gpus.waits
    y = tinynet.tensor(x)
    assert gpus.waits == waits and y.device == "cuda:1" and y.data.values is not x.data.values


# --- memory ------------------------------------------------------------------------------------------------------------


def test_out_of_memory_says_what_was_asked_and_what_is_free(gpus):
    x = tinynet.tensor(np.ones(1 << 19, np.float32), device="cuda:1")
    gpus.memory, gpus.used = 3 << 20, 2 << 20
    window = dict(kernel_size=(1, 1), stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout="NCHW")
    images = x.data.values.reshape(1, 1, 1, -1)
    for ask in (lambda: x * x, lambda: tinynet.tensor(x), lambda: x.to("cuda"), lambda: kernels("cuda:1").max_pool2d(gpus.ndarray(images, 1), **window)):
        with pytest.raises(MemoryError, match="GPU [01] is out of memory: 2.0 MiB were asked for; of its 3.0 MiB, 1.0 MiB are free, and 2.0 MiB hold this process's arrays; use smaller batches"):
            ask()
    assert gpus.current == [0]


# --- every op ------------------------------------------------------------------------------------------------------------


def made_on(device: str, value, requires_grad: bool):
    if value is None or isinstance(value, (int, float)):
        return value
    return tinynet.tensor(value, device=device, requires_grad=requires_grad and value.dtype.kind == "f")


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.ours and op.make_samples])
def test_every_op_and_its_gradients_run_on_what_cupy_has(name, gpus):
    """On the second GPU, so that no array is made past it."""
    op, rng = OPS[name], np.random.default_rng(0)
    for *inputs, parameters in op.make_samples(rng):
        inputs = [rng.standard_normal(value).astype(np.float32) ** 2 + 0.5 if isinstance(value, tuple) else value for value in inputs]
        inputs = [value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value for value in inputs]
        found = []
        for device in ("cuda:1", "reference"):
            tensors = [made_on(device, value, True) for value in inputs]
            y = op(*tensors, **parameters)
            if y.requires_grad:
                (y * y).sum().backward()
            found.append([y.numpy(), *(None if t._grad is None else made_on("cpu", t.grad, False).numpy() for t in tensors if isinstance(t, tinynet.Tensor))])
        for got, want in zip(*found):
            if want is not None:
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

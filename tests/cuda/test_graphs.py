"""Compiled functions on CUDA's devices: on a GPU one graph, here launched by a stand-in for CuPy; on the emulator the same ops."""

from __future__ import annotations

import numpy as np
import pytest
import standin

import tinynet
from tinynet import functional as F
from tinynet import nn, optim
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.gpu_arrays import Graph
from tinynet.op import OPS

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")


@pytest.fixture
def gpus(monkeypatch):
    with standin.installed(monkeypatch) as found:
        yield found


@pytest.fixture(params=[pytest.param("cuda", id="stand-in"), pytest.param("cuda:1", id="second stand-in"), "cuda-emulator"])
def device(request, gpus):
    return request.param


class Step:
    """A training step of a small network with pooling: the same function, compiled or not."""

    def __init__(self, device: str, optimizer=lambda p: optim.SGD(p, lr=0.1, momentum=0.9), compiled: bool = True):
        tinynet.manual_seed(3)
        self.model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 4)).to(device)
        self.optimizer, self.ran = optimizer(list(self.model.parameters())), 0

        def step(x, y):
            self.ran += 1
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return loss

        self.step = tinynet.compile(step) if compiled else step

    def weights(self) -> list[np.ndarray]:
        return list(self.model.state_dict().values())


def batches(device: str, count: int = 4):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x, y = rng.standard_normal((5, 2, 6, 6)).astype(np.float32), rng.integers(0, 4, 5)
        yield tinynet.tensor(x, device=device), tinynet.tensor(y, device=device)


def test_a_step_is_replayed_as_it_would_run(device, gpus):
    """Losses, weights, gradients and the optimiser's state, bit for bit; the function runs once."""
    compiled, plain = Step(device), Step(device, compiled=False)
    for number, (x, y) in enumerate(batches(device)):
        got, want = compiled.step(x, y), plain.step(x, y)
        assert got.numpy() == want.numpy() and got.device == device
        for a, b in zip(compiled.weights(), plain.weights()):
            np.testing.assert_array_equal(a, b)
        for p, q in zip(compiled.model.parameters(), plain.model.parameters()):
            np.testing.assert_array_equal(tinynet.Tensor(p.grad, device=device).numpy(), tinynet.Tensor(q.grad, device=device).numpy())
        assert [s["t"] for s in compiled.optimizer.state] == [number + 1] * 4
    assert compiled.ran == 1 and gpus.launches == (0 if device == "cuda-emulator" else 3)
    said = f"6 ops, backward, SGD's update, played on {device} "
    assert said + ("op by op: only a GPU has graphs" if device == "cuda-emulator" else "as one CUDA graph") in compiled.step.explain()


def test_a_replay_waits_for_nothing_and_takes_no_memory_but_its_results(gpus):
    step = Step("cuda")
    (a, b), (c, d), *_ = batches("cuda")
    step.step(a, b), step.step(c, d)
    waits, used = gpus.waits, gpus.used
    step.step(a, b)
    assert gpus.waits == waits and gpus.used == used + 4, "the loss is the caller's own"


def test_results_are_the_callers_own_and_batches_may_be_arrays_of_the_host(device):
    @tinynet.compile
    def double(x):
        x = tinynet.tensor(x, device=device)
        return {"twice": x * 2.0, "both": [x + 1.0, F.relu(x)]}

    x = np.array([[-1.0, 2.0]], np.float32)
    found = [double(x + i) for i in range(4)]
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each["twice"].numpy(), 2 * (x + i))
        np.testing.assert_array_equal(each["both"][1].numpy(), np.maximum(x + i, 0))
    assert double.explain().endswith("graph" if device != "cuda-emulator" else "graphs")


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
}


@pytest.fixture
def captures(monkeypatch) -> list:
    """Grows by one with every graph that is made."""
    made = []
    monkeypatch.setattr("tinynet.captured.Graph", lambda *arguments: made.append(None) or Graph(*arguments))
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_numbers_of_an_optimiser_change_from_step_to_step_within_one_graph(optimizer, device, captures):
    """Adam's with every step by themselves; and whatever the user sets, a schedule of learning rates say."""
    compiled, plain = Step(device, OPTIMIZERS[optimizer]), Step(device, OPTIMIZERS[optimizer], compiled=False)
    for number, (x, y) in enumerate(batches(device, 6)):
        for step in (compiled, plain):
            step.optimizer.lr = 0.1 / (number + 1)
            step.optimizer.weight_decay = 0.01 * number
            if number > 3 and "Adam" in optimizer:
                step.optimizer.betas, step.optimizer.eps = (0.8, 0.99), 1e-6
            if number > 3 and optimizer == "momentum":
                step.optimizer.momentum, step.optimizer.nesterov = 0.5, False
        assert compiled.step(x, y).numpy() == plain.step(x, y).numpy(), number
        for a, b in zip(compiled.weights(), plain.weights()):
            np.testing.assert_array_equal(a, b)
    assert compiled.ran == 1 and len(captures) == (0 if device == "cuda-emulator" else 1)
    assert [s["t"] for s in compiled.optimizer.state] == [6] * 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_else_changes_between_calls_is_seen(optimizer, device, gpus, captures):
    """The optimiser's state, in whole or how many steps one parameter has made; weights edited in place and replaced."""
    compiled, plain = Step(device, OPTIMIZERS[optimizer]), Step(device, OPTIMIZERS[optimizer], compiled=False)
    for number, (x, y) in enumerate(batches(device, 9)):
        for step in (compiled, plain):
            if number == 2:
                step.optimizer.state[1]["t"] = 7
            if number == 3:
                step.model.load_state_dict({name: value * 0.5 for name, value in step.model.state_dict().items()})
            if number == 4:
                step.optimizer.state[0].clear()
            if number == 6:
                weight = next(step.model.parameters())
                weight.data = weight.data.copy() if device == "cuda-emulator" else gpus.ndarray(weight.data.values.copy(), weight.data.number)
            if number == 8 and optimizer == "momentum":
                step.optimizer.momentum, step.optimizer.nesterov = 0.0, False
        got, want = compiled.step(x, y), plain.step(x, y)
        assert got.numpy() == want.numpy(), number
    for a, b in zip(compiled.weights(), plain.weights()):
        np.testing.assert_array_equal(a, b)
    assert compiled.ran == 2, "a weight that is another array is another function"
    assert len(captures) < 7, "not every change makes a graph anew"


def test_a_parameter_that_the_loss_does_not_reach_is_not_stepped(device, captures):
    """It is read, and the optimiser has it, but it gets no gradient: it has made no step, for which Adam has no numbers."""
    steps, models = [], []
    for compiled in (True, False):
        tinynet.manual_seed(1)
        used, idle = nn.Linear(4, 3).to(device), nn.Linear(4, 2).to(device)
        optimizer = optim.Adam([*idle.parameters(), *used.parameters()], lr=0.1)

        def step(x, used=used, idle=idle, optimizer=optimizer):
            optimizer.zero_grad()
            loss, beside = used(x).sum(), idle(x).sum()
            loss.backward()
            optimizer.step()
            return loss, beside

        steps.append(tinynet.compile(step) if compiled else step)
        models.append((used, idle))
    for number in range(4):
        x = tinynet.tensor(np.full((2, 4), number + 1, np.float32), device=device)
        got, want = (step(x) for step in steps)
        assert [t.numpy() for t in got] == [t.numpy() for t in want], number
    for a, b in zip(*models):
        for p, q in zip(a.parameters(), b.parameters()):
            np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert len(captures) == (0 if device == "cuda-emulator" else 1), steps[0].explain()


def test_an_optimiser_of_ones_own_steps_by_itself(device, gpus):
    class Halving(optim.SGD):
        def update(self, k, t, w, g):
            w -= g * 0.5**t

    compiled, plain = Step(device, Halving), Step(device, Halving, compiled=False)
    for x, y in batches(device):
        assert compiled.step(x, y).numpy() == plain.step(x, y).numpy()
    for a, b in zip(compiled.weights(), plain.weights()):
        np.testing.assert_array_equal(a, b)
    assert compiled.ran == 1 and "Halving steps by itself" in compiled.step.explain()


def test_gradients_that_are_there_are_added_to(device):
    """Without zero_grad inside: the function runs as always while there are gradients, and a graph is launched when there are none."""
    weight = tinynet.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    ran = []

    @tinynet.compile
    def gradients(x):
        ran.append(1)
        loss = F.linear(x, weight).sum()
        loss.backward()
        return loss

    x = tinynet.tensor([[3.0, 4.0]], device=device)
    for call, (want, runs) in enumerate([([3, 4], 1), ([6, 8], 2), ([3, 4], 2), ([3, 4], 2)]):
        if call >= 2:
            weight.grad = None
        gradients(x)
        assert tinynet.Tensor(weight.grad, device=device).numpy().tolist() == [want] and len(ran) == runs, call


def test_what_can_not_be_captured_is_played_op_by_op_and_says_why(gpus, monkeypatch):
    step, plain = Step("cuda"), Step("cuda", compiled=False)
    relu = OPS["relu"].forward
    monkeypatch.setattr(OPS["relu"], "forward", lambda k, x: relu(k, x) if float(x.sum()) < np.inf else x)  # an op that waits for the GPU
    for x, y in batches("cuda"):
        assert step.step(x, y).numpy() == plain.step(x, y).numpy()
    assert gpus.launches == 0 and step.ran == 1
    assert [s["t"] for s in step.optimizer.state] == [4] * 4, "the attempt was no step"
    assert "played on cuda op by op, since no graph could be made: CUDARuntimeError: cudaErrorStreamCaptureUnsupported" in step.step.explain()


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda x, w: F.relu(x * w), "its result needs a gradient, which no graph passes on; call backward inside, or call it in no_grad()"),
        (lambda x, w: F.relu(x).to("cuda:1"), "tensors are on cuda, cuda:1; programs run on cpu, and graphs on one GPU"),
        (lambda x, w: x * float((x * 2.0).sum()), "it reads the values of a tensor while it runs"),
    ],
    ids=["a result with a gradient", "two GPUs", "a value"],
)  # fmt: skip
def test_what_has_no_graph_runs_as_always_and_says_why(function, said, gpus):
    w = tinynet.tensor([1.0, 3.0], device="cuda", requires_grad=True)
    compiled = tinynet.compile(lambda x: function(x, w))
    for _ in range(2):
        x = tinynet.tensor([1.0, -2.0], device="cuda")
        np.testing.assert_array_equal(compiled(x).numpy(), function(x, w).numpy())
    assert said in compiled.explain() and gpus.launches == 0


def test_a_model_is_replayed_where_nothing_is_recorded(device, gpus):
    model = Step(device).model
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        for x, _ in batches(device):
            np.testing.assert_array_equal(fast(x).numpy(), model(x).numpy())
    assert gpus.launches == (0 if device == "cuda-emulator" else 3)
    with pytest.raises(ValueError, match="profile: a call with these arguments is not captured yet"):
        fast.profile(x)


def test_on_a_gpu_a_class_out_of_range_makes_the_loss_nan(gpus):
    """To look at it would be to wait."""
    logits = tinynet.tensor(np.zeros((3, 4), np.float32), device="cuda", requires_grad=True)
    for classes, wrong in (([0, 1, 3], False), ([0, 4, 1], True), ([0, -1, 1], True)):
        target, waits = tinynet.tensor(np.array(classes), device="cuda"), gpus.waits
        losses = [F.cross_entropy(logits, target), F.nll_loss(logits, target)]
        logits.grad = None
        losses[0].backward()
        assert gpus.waits == waits
        assert [bool(np.isnan(loss.numpy())) for loss in losses] == [wrong] * 2
        assert np.isnan(logits.grad.get()).all(axis=1).tolist() == [False, wrong, False]
    with pytest.raises(ValueError, match="cross_entropy: classes run from 0 to 3; target holds 0 to 4"):
        F.cross_entropy(tinynet.tensor(np.zeros((5, 4), "f4")), tinynet.tensor(np.arange(5)))

"""The kernels of compiled programs: every step of a network's program in its place, and by itself beside what the machine can do.

`tinynet bench kernels` shows the contract's kernels; here are those that only programs have: convolution with bias, ReLU
and pooling in one, Winograd's, softmax with cross-entropy, updates of optimisers, packing. A program as a whole is
held against float64 (truth.py) before its steps are timed; kernels/cpu/profile.py says what their times mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

import tinynet
from tinynet import functional as F
from tinynet.bench import truth
from tinynet.bench.roofline import Roofline
from tinynet.bench.zoo import Network
from tinynet.kernels.cpu.profile import Profile, StepTime

LEVELS = (1 / 32, 1 / 4, 1, 4, 16, 64)  # MiB whose reading is measured: a step's bandwidth is held against that of what it touches
MATHS = ("strict", "winograd")
RATE, DECAY = truth.LEARNING_RATE, 0.01
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda parameters: tinynet.optim.SGD(parameters, RATE),
    "momentum": lambda parameters: tinynet.optim.SGD(parameters, RATE, momentum=0.9),
    "adam": lambda parameters: tinynet.optim.Adam(parameters, RATE),
    "adamw": lambda parameters: tinynet.optim.AdamW(parameters, RATE, weight_decay=DECAY),
}
SCHEMA = "tinynet.bench.programs/2"
RUNS = ("forward", *OPTIMIZERS)  # what a program does: a forward pass, or a whole training step with one of these


@dataclass(frozen=True)
class Table:
    """One program. wrong: what is further from the truth than it may be; then there is no profile."""

    network: str
    images: int
    run: str
    math: str
    wrong: list[str]
    profile: Profile | None

    @property
    def title(self) -> str:
        what = "forward" if self.run == "forward" else f"training with {self.run}"
        return f"{self.network}, {self.images} image{'s' if self.images > 1 else ''}, {what}, {self.math}"


def measure(network: Network, state: truth.State, x: np.ndarray, y: np.ndarray, run: str, math: str, want: truth.Truth, rounds: int) -> Table:
    """want: the truth of a forward pass, or of a step of plain SGD: the first step with momentum is the same."""
    model = truth.make_model(network, state)
    if run == "forward":
        fast = tinynet.compile(model, math=math)
        with tinynet.no_grad():
            wrong = _wrong(truth.errors(want, state, {"output": fast(x).numpy()}))
            profile = None if wrong else fast.profile(x, rounds=rounds)
        return Table(network.name, len(x), run, math, wrong, profile)
    names, parameters = list(state), list(model.parameters())
    optimizer = OPTIMIZERS[run](parameters)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    fast = tinynet.compile(step, math=math)
    loss = fast(x, y).item()
    after = {name: p.numpy() for name, p in zip(names, parameters, strict=True)}
    if run in ("adam", "adamw"):
        # Its step is nearly the gradient's sign, which rounding may turn: so the gradient is held against the truth, and
        # the step against the formula for this gradient.
        gradients = {name: p.grad for name, p in zip(names, parameters)}
        found = truth.errors(want, state, {"loss": loss, "state": {name: state[name].astype(np.float64) - RATE * g for name, g in gradients.items()}})
        for name, g in gradients.items():
            g, before = g.astype(np.float64), state[name].astype(np.float64)
            step_of_adam = -RATE * (g / (np.abs(g) + 1e-8) + (DECAY * before if run == "adamw" else 0.0))
            found[f"Adam's step of {name}"] = (truth.error(after[name] - before, step_of_adam, allowed=np.linalg.norm(before) * 2.0**-24), truth.TOLERANCE)
    else:
        found = truth.errors(want, state, {"loss": loss, "state": after})
    wrong = _wrong(found)
    return Table(network.name, len(x), run, math, wrong, None if wrong else fast.profile(x, y, rounds=rounds))


def _wrong(found: dict[str, tuple[float, float]]) -> list[str]:
    return [f"the {name} errs by {error:.1e} of its norm, {allowed:.0e} is allowed" for name, (error, allowed) in found.items() if not error <= allowed]


@dataclass(frozen=True)
class Limit:
    """What bounds a step, as the roofline has it: "peak" or "bandwidth", the rate of that in operations or bytes a second, and the
    share of it that the step reaches. impossible: faster than the arithmetic or the fastest memory allows."""

    by: str
    rate: float
    share: float
    impossible: bool


def limit(step: StepTime, roof: Roofline) -> Limit:
    bandwidth = roof.reading(step.touched)
    arithmetic, memory = (step.operations or 0) / roof.peak, step.moved / bandwidth
    impossible = not step.fewer and max(arithmetic, step.moved / max(roof.bandwidth.values())) > 1.1 * step.seconds
    if arithmetic >= memory:
        return Limit("peak", roof.peak, arithmetic / step.seconds, impossible)
    return Limit("bandwidth", bandwidth, memory / step.seconds, impossible)


def as_data(table: Table, roof: Roofline) -> dict:
    """Plain data, for --json."""
    found = {"network": table.network, "images": table.images, "run": table.run, "math": table.math, "wrong": table.wrong}
    if table.profile is None:
        return {**found, "seconds": None, "stamped": None, "waited": None, "sum_of_steps": None, "phases": [], "steps": []}
    profile, steps = table.profile, []
    for step in profile.steps:
        bound = limit(step, roof)
        steps.append(
            {
                "step": step.name, "kernel": step.kernel, "on": step.on, "program": step.program, "phase": step.phase, "in_place": step.in_place, "seconds": step.seconds, "low": step.low, "high": step.high,
                "share_of_time": step.in_place / profile.stamped, "operations": step.operations, "gflops": step.gflops, "bytes": step.moved, "gb_s": step.gb_s,
                "bound": bound.by, "share_of_bound": bound.share, "fewer_operations": step.fewer,
            }
        )  # fmt: skip
    phases = [asdict(phase) for phase in profile.phases]
    return {**found, "seconds": profile.seconds, "stamped": profile.stamped, "waited": profile.waited, "sum_of_steps": profile.sum, "phases": phases, "steps": steps}

"""From the start of a process to the first result of a compiled training step whose kernels are on disk.

Each round is a process of its own, as its user would start one: it imports numpy and tinynet, makes a network, and trains on
one batch. It says when it is where; the times are this process' own, which read what it says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from time import perf_counter

STAGES = ("python", "numpy", "tinynet", "network", "first step", "second step")  # each after the one before
TARGET = 1.0  # seconds, from the start to the first step's result

_PROCESS = """
import sys
def reached(stage):
    print(stage, flush=True)
reached("python")
import numpy as np
reached("numpy")
import tinynet
from tinynet import functional as F
reached("tinynet")
from tinynet.bench.truth import make_model
from tinynet.bench.zoo import NETWORKS
network, size = NETWORKS[sys.argv[1]], int(sys.argv[2])
rng = np.random.default_rng(0)
model = make_model(network, {name: 0.05 * rng.standard_normal(shape) for name, shape in network.parameters().items()})
optimizer = tinynet.optim.SGD(model.parameters(), 1e-3)
x, y = rng.standard_normal((size, *network.image), np.float32), np.arange(size) % 10
@tinynet.compile
def step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss
reached("network")
step(x, y).item()
reached("first step")
step(x, y).item()
reached("second step")
"""


def once(network: str, size: int) -> dict[str, float]:
    """Seconds from the start of one process to the end of each stage."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # Python too keeps what it compiled
    began, found = perf_counter(), {}
    with subprocess.Popen([sys.executable, "-c", _PROCESS, network, str(size)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            found[line.strip()] = perf_counter() - began
    if process.returncode or tuple(found) != STAGES:
        raise RuntimeError(f"the process that was timed ended with {process.returncode} after {', '.join(found) or 'nothing'}; what it said is above")
    return found


def measure(network: str = "tensorflow", size: int = 32, rounds: int = 9) -> dict[str, float]:
    """Medians over `rounds` processes, after two that are not counted: the second also compiles what only a second step needs."""
    for _ in range(2):
        once(network, size)
    runs = [once(network, size) for _ in range(rounds)]
    return {stage: median(run[stage] for run in runs) for stage in STAGES}

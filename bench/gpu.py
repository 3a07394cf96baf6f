"""Every variant of every CUDA kernel on the layers of networks (zoo.py), beside torch where it sees the GPU: proved right on that
very shape, then timed in turns, and held against what the GPU can do at most, measured by kernels of our own (roofline.cu).

A time lies between two CUDA events. Before each a large array is written: it drives everything out of the L2 cache, and while it
is written Python launches what comes, so that no launch is waited for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from tinynet import oracle
from tinynet.bench.kernels import Work, layers
from tinynet.bench.networks import KINDS, Run, Settings
from tinynet.bench.peers import ON_GPU
from tinynet.bench.timing import Times, in_turns
from tinynet.compare.job import record
from tinynet.devices import check_device, here, moved, to_host
from tinynet.dispatch import find, variants
from tinynet.kernels.contract import CONTRACTS, INDEX
from tinynet.kernels.cuda.launch import kernel

FILE = Path(__file__).with_name("roofline.cu")
SCHEMA = 1
THREADS, CHAINS = 256, 8  # roofline.cu's
WRITTEN = 1 << 29  # bytes that are written before each time: more than any L2 cache holds, and some tenths of a millisecond


class Clock:
    def __init__(self, xp, written: int = WRITTEN):
        self.cuda, self.room = xp.cuda, xp.empty(written, np.uint8)

    def __call__(self, call: Callable[[], object]) -> float:
        """Seconds of what a call gives the GPU to do."""
        begin, end = self.cuda.Event(), self.cuda.Event()
        self.room.fill(0)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return self.cuda.get_elapsed_time(begin, end) / 1e3


@dataclass(frozen=True)
class Limits:
    """peak: float32 operations a second, an addition and a multiplication each counted; bandwidth: bytes a second, read and written."""

    peak: float
    bandwidth: float

    def least(self, flops: int, moved: int) -> float:
        return max(flops / self.peak, moved / self.bandwidth)


def limits(xp, clock: Clock, *, adds: int = 1 << 14, fours: int = 1 << 25, times: int = 9) -> Limits:
    """adds: multiply-adds of a chain; fours: float4s that are copied. The least of several times: a peak is a peak."""
    blocks = 16 * xp.cuda.Device().attributes["MultiProcessorCount"]
    y, source, target = xp.empty(blocks * THREADS, np.float32), xp.zeros(4 * fours, np.float32), xp.empty(4 * fours, np.float32)
    multiply_adds, copy = kernel(y, FILE, "multiply_adds"), kernel(y, FILE, "copy")
    work = lambda: multiply_adds((blocks,), (THREADS,), (y, np.float32(0.999), np.float32(1), adds))
    move = lambda: copy((blocks,), (THREADS,), (source, target, fours))
    work(), move()
    peak = 2 * CHAINS * adds * blocks * THREADS / min(clock(work) for _ in range(times))
    return Limits(peak, 2 * source.nbytes / min(clock(move) for _ in range(times)))


@dataclass(frozen=True)
class Row:
    """A variant, or torch, on one piece of work. No time without a verdict of the oracle's that is true, on this shape. share: of
    what the GPU can do at most; impossible: faster than it can compute, or read what must be read."""

    network: str
    images: int
    kernel: str
    layer: str
    variant: str
    verdict: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: tuple[float, ...] = ()
    gflops: float | None = None
    gb_s: float | None = None
    share: float | None = None
    impossible: bool = False


@dataclass(frozen=True)
class Task:
    """work: with numpy's arrays. window: of a pooling's gradient, which torch must be told, and a kernel is not."""

    network: str
    images: int
    work: Work
    window: dict


def tasks(networks, sizes, names, seed: int = 0) -> Iterator[Task]:
    """What the networks ask of kernels that have a CUDA variant."""
    rng, window = np.random.default_rng(seed), {}
    for network in networks:
        for size in sizes:
            for work in layers(network, size, rng):
                window = work.parameters if work.name == "max_pool2d" else window
                if work.name in names and work.name in able():
                    yield Task(network, size, work, window if work.name == "max_pool2d_dx" else {})


def able() -> list[str]:
    """The kernels that have a CUDA variant."""
    return [name for name in CONTRACTS if variants(name, "cuda")]


def measure(task: Task, clock: Clock, top: Limits, device: str, torch=None, *, rounds: int, block_s: float = 0.02) -> list[Row]:
    """Every variant of the kernel on this work, and torch, in turns."""
    work, name = task.work, task.work.name
    want = oracle.reference.find(name)(*work.arrays, **work.parameters)
    there = replace(work, arrays=tuple(None if a is None else moved(a, device) for a in work.arrays))
    calls = {variant: _ours(there, variant, device) for variant in variants(name, "cuda")}
    if torch is not None and (theirs := torch_call(torch, there, task.window)):
        calls["torch"] = theirs
    verdicts = {variant: oracle.judge(_on_host(call()), want, max_zero_share=1.0) for variant, call in calls.items()}
    times = in_turns({variant: call for variant, call in calls.items() if verdicts[variant]}, rounds=rounds, block_s=block_s, clock=clock)
    return [_row(task, variant, str(verdict.band), times.get(variant), top) for variant, verdict in verdicts.items()]


def _row(task: Task, variant: str, verdict: str, taken: Times | None, top: Limits) -> Row:
    work = task.work
    row = Row(task.network, task.images, work.name, work.layer, variant, verdict)
    if taken is None:
        return row
    s, flops, read = taken.median, work.spec.flops, sum(a.nbytes for a in work.arrays if a is not None)
    return replace(
        row, seconds=s, low=taken.spread[0], high=taken.spread[1], rounds=tuple(taken.rounds), gflops=flops / s / 1e9, gb_s=work.moved / s / 1e9,
        share=top.least(flops, work.moved) / s, impossible=top.least(flops, read) > 1.1 * s,
    )  # fmt: skip


def _ours(work: Work, variant: str, device: str) -> Callable[[], object]:
    """The kernel on this work, with outputs that are there."""
    function = find(work.name, f"cuda.{variant}").function
    with here(device) as xp:
        outputs = tuple(xp.empty(shape, dtype) for shape, dtype in work.spec.outputs)
    out = outputs if len(outputs) > 1 else outputs[0]

    def call():
        function(*work.arrays, **work.parameters, out=out)
        return out

    return call


def _on_host(result):
    """As numpy's arrays; torch's places are int64, where the contract's are int32."""
    if isinstance(result, tuple):
        return tuple(map(_on_host, result))
    array = to_host(result)
    return array.astype(INDEX) if array.dtype.kind == "i" else array


# --- torch -------------------------------------------------------------------------------------------------------------------


def see_gpu() -> tuple[object, str]:
    """torch, or None and why it is not timed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, f"torch {torch.__version__} sees no GPU; install a build for CUDA"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32, as ours
    torch.backends.cudnn.benchmark = True
    return torch, ""


def torch_call(torch, work: Work, window: dict) -> Callable[[], object] | None:
    """What torch calls this kernel; None where it has no such call: paddings that differ from side to side, NHWC, a loss
    with its gradient in one, a step of an optimiser with state."""
    parameters = {**window, **work.parameters}
    sides = parameters.get("padding", ((0, 0), (0, 0)))
    if parameters.get("layout") == "NHWC" or any(a != b for a, b in sides):
        return None
    arrays = [None if a is None else torch.from_dlpack(a) for a in work.arrays]
    padding = [a for a, _ in sides]
    stride, dilation = (list(parameters.get(name, (1, 1))) for name in ("stride", "dilation"))
    size, ceil, groups = list(parameters.get("kernel_size", ())), parameters.get("ceil_mode", False), parameters.get("groups", 1)
    aten, f = torch.ops.aten, torch.nn.functional

    def convolution_backward(dy, x, weight, place: int):
        return aten.convolution_backward(dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [place == 0, place == 1, False])[place]

    def like(name: str):
        return torch.empty(parameters[name], dtype=arrays[0].dtype, device=arrays[0].device)

    if work.name == "conv2d_dx":
        x = like("x_shape")
        return lambda: convolution_backward(arrays[0], x, arrays[1], 0)
    if work.name == "conv2d_dw":
        weight = like("weight_shape")
        return lambda: convolution_backward(*arrays, weight, 1)
    if work.name == "max_pool2d_dx":
        x, places = like("x_shape"), arrays[1].long()
        return lambda: aten.max_pool2d_with_indices_backward(arrays[0], x, size, stride, padding, dilation, ceil, places)
    if work.name == "avg_pool2d_dx":
        x = like("x_shape")
        return lambda: aten.avg_pool2d_backward(arrays[0], x, size, stride, padding, ceil, parameters["count_include_pad"], None)
    if work.name == "max_pool2d":
        return lambda: f.max_pool2d(arrays[0], size, stride, padding, dilation, ceil, return_indices=True)
    if work.name == "conv2d_relu_max_pool2d":
        return lambda: f.max_pool2d(f.relu(f.conv2d(*arrays, stride, padding, dilation, groups)), 2, return_indices=True)
    return {
        "matmul": lambda: torch.matmul(*arrays),
        "conv2d": lambda: f.conv2d(*arrays, stride, padding, dilation, groups),
        "conv2d_db": lambda: arrays[0].sum((0, 2, 3)),
        "relu_dx": lambda: aten.threshold_backward(*arrays, 0),
        "sgd_step": None if parameters.get("momentum") or parameters.get("weight_decay") else lambda: torch.sub(arrays[0], arrays[1], alpha=parameters["lr"]),
        "avg_pool2d": lambda: f.avg_pool2d(arrays[0], size, stride, padding, ceil, parameters["count_include_pad"]),
    }.get(work.name)


# --- the whole benchmark -------------------------------------------------------------------------------------------------------


def gpu_record(xp, number: int) -> dict:
    """The GPU, its driver and clocks, and the versions of what compiles and launches."""
    properties, runtime = xp.cuda.runtime.getDeviceProperties(number), xp.cuda.runtime
    return {
        "name": properties["name"].decode(), "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"], "memory_gb": round(properties["totalGlobalMem"] / 2**30, 1), "l2_mb": round(properties["l2CacheSize"] / 2**20, 1),
        "driver_cuda": runtime.driverGetVersion(), "runtime_cuda": runtime.runtimeGetVersion(), "cupy": xp.__version__, "clocks": clocks(number),
    }  # fmt: skip


def clocks(number: int) -> dict | str:
    """What nvidia-smi says of the GPU now, or why it says nothing."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    try:
        done = subprocess.run(["nvidia-smi", f"--id={number}", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: {error}"
    return dict(zip(asked.split(","), map(str.strip, done.stdout.split(",")))) if done.returncode == 0 else f"not known: {done.stderr.strip()}"


def run(device: str, networks, sizes, names, rounds: int, say: Callable[[Row], None], show: Callable[[int, int], None] = lambda done, of: None, **smaller) -> dict:
    """Measures everything on this GPU; `say` gets each row, `show` how many of the tasks are done. Raises RuntimeError where there is none.

    smaller: arguments of Clock and limits, for a machine without a GPU, where what is measured means nothing.
    """
    number = check_device(device).gpu
    torch, why = see_gpu()
    with here(device) as xp:
        gpu = gpu_record(xp, number)
        clock = Clock(xp, smaller.get("written", WRITTEN))
        top = limits(xp, clock, **smaller.get("limits", {}))
        found, rows = list(tasks(networks, sizes, names)), []
        for done, task in enumerate(found):
            show(done, len(found))
            for row in measure(task, clock, top, device, torch, rounds=rounds):
                rows.append(row)
                say(row)
    return {
        **record(SCHEMA), "gpu": gpu, "clocks_after": clocks(number),
        "torch": why or f"timed, {torch.__version__}", "settings": {"device": device, "networks": list(networks), "sizes": list(sizes), "kernels": list(names), "rounds": rounds},
        "peak_gflops": top.peak / 1e9, "bandwidth_gb_s": top.bandwidth / 1e9, "rows": [asdict(row) for row in rows],
        "ok": bool(rows or not names) and all(row.seconds is not None and not row.impossible for row in rows),
    }  # fmt: skip


def whole_networks(device: str, chosen, sizes, rounds: int, logs: Path, show: Callable[[str, int, int], None], result: dict) -> dict:
    """What `run` has found, and the networks as a whole: each contestant a process of its own, which sees this GPU alone."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = check_device(device).gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[number] if before else str(number)
    try:
        settings = Settings(tuple(chosen), KINDS, tuple(ON_GPU), tuple(sizes), rounds, os.cpu_count() or 1)
        found = Run(settings, logs, show).run()
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    return {"networks": found["tables"], "ok": result["ok"] and found["ok"]}

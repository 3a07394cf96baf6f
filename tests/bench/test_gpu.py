"""The benchmark of CUDA kernels: everything but its times, which only a GPU has; here on a stand-in for CuPy."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tinynet
from tests.cuda import standin
from tinynet import oracle
from tinynet.bench import gpu
from tinynet.bench.kernels import layers
from tinynet.cli import app
from tinynet.dispatch import variants
from tinynet.kernels.contract import IMPLEMENTATIONS, implements
from tinynet.kernels.cuda import occupancy
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.launch import Source, kernel

EMULATED = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")
SMALL = dict(written=1 << 10, limits=dict(adds=3, fours=100, times=2))


@pytest.fixture
def gpus(monkeypatch):
    with standin.installed(monkeypatch) as found:
        yield found


# --- what is timed, and how ------------------------------------------------------------------------------------------------


def test_a_time_lies_between_two_events_after_the_cache_was_written_over():
    done = []

    class Event:
        def record(self):
            done.append("event")

        def synchronize(self):
            done.append("wait")

    room = SimpleNamespace(fill=lambda value: done.append("write"))
    xp = SimpleNamespace(cuda=SimpleNamespace(Event=Event, get_elapsed_time=lambda begin, end: 5.0), empty=lambda count, dtype: room)
    assert gpu.Clock(xp)(lambda: done.append("call")) == 0.005
    assert done == ["write", "event", "call", "event", "wait"]


@EMULATED
def test_the_kernels_of_the_limits_do_what_is_counted():
    y, adds = np.zeros(2 * gpu.THREADS, np.float32), 5
    kernel(y, gpu.FILE, "multiply_adds")((2,), (gpu.THREADS,), (y, np.float32(2), np.float32(1), adds))
    want = [2**adds * k + 2**adds - 1 for k in range(gpu.CHAINS)]
    assert (y == sum(want)).all(), "so many chains of so many multiply-adds in each thread"
    x, copied = np.arange(4 * 700, dtype=np.float32), np.zeros(4 * 700, np.float32)
    kernel(y, gpu.FILE, "copy")((2,), (gpu.THREADS,), (x, copied, 700))
    assert np.array_equal(x, copied)


@pytest.mark.skipif(occupancy.reason() is not None, reason=f"nothing compiled for a GPU: {occupancy.reason()}")
def test_the_kernels_of_the_limits_compile_without_spills():
    for number in occupancy.gpus():
        found = occupancy.compiled(Source.read(gpu.FILE), {}, number)
        assert set(found) == {"multiply_adds", "copy"} and all(needs.spills == 0 and needs.occupancy(gpu.THREADS) == 1 for needs in found.values())


def test_the_tasks_are_all_layers_of_the_networks_that_have_a_cuda_kernel():
    found = list(gpu.tasks(["keras", "lenet5"], [1, 2], gpu.able()))
    assert {t.work.name for t in found} >= {"matmul", "max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx"}
    assert {(t.network, t.images) for t in found} == {(network, size) for network in ("keras", "lenet5") for size in (1, 2)}
    assert all(t.window["kernel_size"] == (2, 2) for t in found if t.work.name == "max_pool2d_dx"), "torch must be told"
    assert [t.work.name for t in gpu.tasks(["keras"], [1], ["max_pool2d"])] == ["max_pool2d"] * 2


@pytest.mark.parametrize("network", ["keras", "strided", "bottleneck", "lenet5"])
def test_what_torch_is_asked_for_is_the_kernel(network):
    """On the CPU, where torch is the same: every kernel of these layers, held against the oracle."""
    names, window = set(), {}
    for work in layers(network, 2, np.random.default_rng(0)):
        window = work.parameters if work.name == "max_pool2d" else window
        call = gpu.torch_call(torch, work, window if work.name == "max_pool2d_dx" else {})
        if work.name in ("softmax_cross_entropy", "adam_step"):
            assert call is None
            continue
        got = gpu._on_host(call())
        if work.name == "conv2d_relu_max_pool2d":
            got = got[0], np.where(got[0] > 0, got[1], -1)  # torch keeps what ReLU stops in its result
        verdict = oracle.judge(got, oracle.reference.find(work.name)(*work.arrays, **work.parameters), max_zero_share=1.0)
        assert verdict, f"{work.name}, {work.layer}: {verdict}"
        names.add(work.name)
    assert {"conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "matmul", "relu_dx", "sgd_step"} <= names


def test_torch_is_not_asked_for_what_it_has_no_call_for():
    work = next(w for w in layers("keras", 1, np.random.default_rng(0)) if w.name == "max_pool2d")
    for change in (dict(layout="NHWC"), dict(padding=((0, 1), (0, 1)))):
        assert gpu.torch_call(torch, gpu.Work(work.name, work.layer, work.arrays, {**work.parameters, **change}), {}) is None
    found, why = gpu.see_gpu()
    assert (found is None) == bool(why)


# --- the whole ---------------------------------------------------------------------------------------------------------------


@EMULATED
def test_every_variant_is_proved_and_timed_in_turns_and_a_wrong_one_is_not_timed(gpus):
    @implements("max_pool2d", device="cuda", variant="wrong")
    def wrong(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
        out[0][...] = x[:, :, ::2, ::2]
        out[1][...] = 0

    said, counted = [], []
    try:
        found = gpu.run("cuda:1", ["lenet5", "bottleneck"], [1], ["avg_pool2d", "max_pool2d"], 3, said.append, lambda done, of: counted.append((done, of)), **SMALL)
    finally:
        del IMPLEMENTATIONS["max_pool2d", "cuda"]["wrong"]
    rows = {(row["layer"], row["variant"]): row for row in found["rows"]}
    assert len(rows) == len(said) == 3 * 2 + 3 and counted == [(i, 4) for i in range(4)]
    for (_, variant), row in rows.items():
        if variant == "wrong":
            assert row["seconds"] is None and row["verdict"] == "WRONG" and not found["ok"]
        else:
            assert row["verdict"] in ("OK", "EXACT") and row["low"] <= row["seconds"] <= row["high"] and len(row["rounds"]) == 3 and row["share"] > 0
    assert found["gpu"]["name"] == "a stand-in" and found["gpu"]["compute_capability"] == "8.0" and found["peak_gflops"] > 0 and found["bandwidth_gb_s"] > 0
    json.dumps(found, allow_nan=False)


def test_a_time_that_can_not_be_is_marked():
    (task, *_) = gpu.tasks(["keras"], [1], ["matmul"])
    taken = gpu.Times(0.0, [1e-6, 2e-6, 3e-6])
    for peak, impossible in ((1e6, True), (1e18, False)):
        row = gpu._row(task, "vectors", "OK", taken, gpu.Limits(peak, 1e15))
        assert row.impossible == impossible and row.seconds == 2e-6 and row.gflops == pytest.approx(task.work.spec.flops / 2e-6 / 1e9)
    assert gpu._row(task, "vectors", "WRONG", None, gpu.Limits(1e6, 1e6)).seconds is None


def test_clocks_are_recorded_or_it_is_said_why_not(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu.subprocess, "run", missing)
    assert gpu.clocks(0) == "not known: nvidia-smi"
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="550.54, 1410 MHz, 1215 MHz, 1410 MHz, 1215 MHz, 40, 60.1 W, 0x0\n"))
    assert gpu.clocks(0)["clocks.sm"] == "1410 MHz" and gpu.clocks(0)["driver_version"] == "550.54"


@pytest.mark.skipif(tinynet.devices()["cuda"] is None, reason="there is a GPU here")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_without_a_gpu_it_says_that_nothing_was_measured(more):
    done = CliRunner().invoke(app, ["bench", "gpu", *more])
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.startswith("nothing was measured: ")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--device", "cpu"], "cpu is no GPU"),
        (["--device", "cuda-emulator"], "cuda-emulator is no GPU: nothing that it does says how fast one is"),
        (["--device", "gpu"], "there is no device 'gpu'"),
        (["--only", "relu"], "there is no CUDA kernel 'relu'"),
    ],
)
def test_what_can_not_be_measured_is_refused(arguments, said):
    done = CliRunner().invoke(app, ["bench", "gpu", *arguments])
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split())


@EMULATED
def test_the_command_prints_a_table_or_json(gpus, monkeypatch):
    whole = gpu.run
    monkeypatch.setattr(gpu, "run", lambda *args: whole(*args, **SMALL))
    arguments = ["bench", "gpu", "--networks", "lenet5", "--batch-sizes", "1", "--only", "avg_pool2d", "--rounds", "3"]
    table = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert "a stand-in: " in table.stdout and "torch: torch" in table.stdout
    assert sum(variant in table.stdout for variant in variants("avg_pool2d", "cuda")) == 2
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert {row["variant"] for row in told["rows"]} == {"simple", "separable"} and told["settings"]["kernels"] == ["avg_pool2d"] and told["machine"]["numpy"] == np.__version__

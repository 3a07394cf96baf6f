"""Whole networks in `tinynet bench gpu`: contestants on a GPU return what the truth says, and who sees no GPU is a row that says so."""

from __future__ import annotations

import json
import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from test_gpu import EMULATED, SMALL, gpus  # noqa: F401  (a fixture)
from typer.testing import CliRunner

import tinynet
from tinynet.bench import gpu, truth
from tinynet.bench.peers import CONTESTANTS, ON_GPU, make
from tinynet.bench.peers.tinynet_peer import Tinynet
from tinynet.bench.zoo import Conv, Dense, Flatten, Image, MaxPool, Network, ReLU, initial_state
from tinynet.cli import app

NETWORK = Network("small", "small", Image(3, 8, 8), (Conv(8, 3, padding=1), ReLU(), MaxPool(2, 2), Flatten(), Dense(10)), (1,))
NO_GPU = pytest.mark.skipif(tinynet.devices()["cuda"] is None, reason="there is a GPU here")
ONE = {"torch-cuda-eager": ON_GPU["torch-cuda-eager"]}


@EMULATED
@pytest.mark.parametrize("mode", ["eager", "strict"])
@pytest.mark.parametrize("kind", ["forward", "training"])
def test_tinynet_on_the_emulator_returns_the_truth(kind, mode):
    state = initial_state(NETWORK, 0)
    x, y = truth.images(NETWORK, state, 3)
    held = Tinynet(mode, "cuda-emulator")
    assert held.start(1) == f"tinynet {tinynet.__version__}, numpy {np.__version__}"
    held.build(NETWORK, state)
    if kind == "forward":
        got = {"output": held.forward(x)()}
    else:
        got = {"loss": held.training(x, y, truth.LEARNING_RATE)(), "state": held.state()}
    found = truth.errors(truth.truth(NETWORK, kind, state, x, y), state, got)
    assert all(error <= allowed for error, allowed in found.values()), found


def test_the_contestants_of_a_gpu_are_named_after_it_and_told_so():
    assert not set(ON_GPU) & set(CONTESTANTS)
    assert all(make(name).device == "cuda" and "-cuda-" in name for name in ON_GPU) and all(make(name).device == "cpu" for name in CONTESTANTS)


@NO_GPU
@pytest.mark.parametrize("name", ["torch-cuda-eager", "tensorflow-cuda-graph", "tinynet-cuda-compiled"])
def test_who_sees_no_gpu_says_so(name):
    with pytest.raises((RuntimeError, ValueError), match="sees no GPU|device 'cuda'"):
        make(name).start(1)


@NO_GPU
def test_a_contestant_without_a_gpu_is_a_row_with_the_reason_and_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ON_GPU", ONE)
    monkeypatch.setattr(gpu, "check_device", lambda device: SimpleNamespace(gpu=1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    stages = []
    found = gpu.whole_networks("cuda:1", ["lenet5"], [1], 3, tmp_path, lambda stage, done, of: stages.append(stage), {"ok": True})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7" and not found["ok"]
    assert [(table["network"], table["kind"]) for table in found["networks"]] == [("lenet5", "forward"), ("lenet5", "training")]
    for table in found["networks"]:
        ((cell,),) = [row["cells"].values() for row in table["rows"]]
        assert cell["status"] == "failed" and "sees no GPU" in cell["reason"]
    assert any("torch-cuda-eager" in stage for stage in stages)


@EMULATED
@NO_GPU
def test_the_command_shows_networks_alone_or_beside_kernels(gpus, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(gpu, "ON_GPU", ONE)
    monkeypatch.setattr(gpu, "run", partial(gpu.run, **SMALL))
    arguments = ["bench", "gpu", "--networks", "lenet5", "--batch-sizes", "1", "--rounds", "3", "--what", "networks", "--logs", str(tmp_path)]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert shown.exit_code == 1 and shown.stdout.count("torch-cuda-eager: failed:") == 2 and "variant" not in shown.stdout
    monkeypatch.setattr(gpu, "whole_networks", lambda device, chosen, sizes, rounds, logs, show, result: {"networks": [], "ok": result["ok"]})
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["rows"] == told["networks"] == [] and told["ok"] and told["gpu"]["name"] == "a stand-in"
    refused = CliRunner().invoke(app, ["bench", "gpu", "--what", "networks", "--only", "matmul"])
    assert refused.exit_code == 2 and "--only names single kernels" in " ".join(refused.stderr.replace("│", " ").split())

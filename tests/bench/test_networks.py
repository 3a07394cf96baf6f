"""Whole networks against everything else: every framework builds the same network, ratios are what they say, targets are found."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from rich.console import Console

from tinynet.bench import commands, contestant, networks, tables, truth
from tinynet.bench.contestant import ContestantProcess
from tinynet.bench.networks import Entrant, Run, Settings, best_of, ratios
from tinynet.bench.peers import CONTESTANTS, make
from tinynet.bench.peers.base import Trainer
from tinynet.bench.targets import ARTICLE, ORDINARY, target
from tinynet.bench.zoo import NETWORKS, AvgPool, Conv, Dense, Flatten, Image, MaxPool, Network, ReLU, initial_state
from tinynet.compare import networks as article
from tinynet.compare import worker


def small(*layers, image=Image(3, 8, 8)) -> Network:
    return Network("small", "small", image, layers, (1,))


# --- the networks ---


def test_the_shapes_of_the_zoo_add_up():
    for network in NETWORKS.values():
        steps = list(network.steps())
        assert all(before.after == after.before for before, after in zip(steps, steps[1:]))
        assert steps[0].before == network.image and steps[-1].after == (10,)
        assert {name: a.shape for name, a in initial_state(network).items()} == network.parameters()
    assert {name: network.flattened[1] for name, network in NETWORKS.items()} == {
        "keras": (16, 6, 6), "tensorflow": (64, 8, 8), "lenet5": (16, 5, 5), "vgg": (128, 8, 8), "strided": (128, 4, 4), "bottleneck": (128, 4, 4), "alexnet": (256, 3, 3),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["keras", "tensorflow"])
def test_the_articles_architectures_have_the_articles_parameters(name):
    assert NETWORKS[name].parameters() == article.get(name).parameters()
    assert NETWORKS[name].flattened[0] == article.get(name).flattened[0]


@pytest.mark.parametrize(
    "layers, expected",
    [
        ((Dense(10),), "layer 0, .* put a Flatten before it"),
        ((Flatten(), Conv(4, 3)), "layer 1, .* put it before the Flatten"),
        ((Conv(4, 9),), "windows of 9x9 don't fit an image of 8x8 with padding 0"),
        ((MaxPool(3, 3), AvgPool(3)), "layer 1, .* windows of 3x3 don't fit an image of 2x2"),
        ((Conv(6, 3, groups=2),), "groups must be 1 or the 3 channels"),
        ((Conv(6, 3, groups=3),), "must return the 3 channels"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, expected):
    with pytest.raises(ValueError, match=expected):
        small(*layers).parameters()


# --- every framework's builder ---


@cache
def two_images(network: str):
    state = initial_state(NETWORKS[network])
    return state, *truth.images(NETWORKS[network], state, 2)


@cache
def case(network: str, kind: str):
    return *two_images(network), truth.truth(NETWORKS[network], kind, *two_images(network))


BUILDERS = ("tinynet-eager", "tinynet-compiled", "torch-eager", "tensorflow-graph", "keras-tensorflow", "jax", "onnxruntime")


def kinds(name: str, network: str) -> tuple[str, ...]:
    """A training step runs forward too, through the same layers; what is left of forward is one function for all networks."""
    return ("forward",) if not isinstance(make(name), Trainer) else ("forward", "training") if network == "lenet5" else ("training",)


def run_all(name: str, process: ContestantProcess) -> dict:
    """What a contestant returns of each network and kind, how many samples a block has, and the memory it took."""
    memory = process.submit(contestant.start, name, 2)["memory_mb"]
    found = {}
    for network in NETWORKS:
        for kind in kinds(name, network):
            got = process.submit(contestant.first_call, NETWORKS[network], kind, *two_images(network))
            found[network, kind] = got, len(process.submit(contestant.time_block, 0.0))
    return {"found": found, "memory": (memory, process.submit(worker.highest_memory))}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """name -> the future of what it returned: all at once, or the frameworks' starts alone would take a minute."""
    folder = tmp_path_factory.mktemp("logs")
    ready = [name for name in BUILDERS if name != "onnxruntime" or find_spec("onnx") and find_spec("onnxruntime")]
    for network in NETWORKS:
        two_images(network)
    processes = {name: ContestantProcess(name, 2, folder / f"{name}.txt") for name in ready}
    with ThreadPoolExecutor(len(ready)) as pool:
        yield {name: pool.submit(run_all, name, process) for name, process in processes.items()}
    for process in processes.values():
        process.kill()


@pytest.mark.parametrize("name", BUILDERS)
def test_every_framework_builds_every_network(name, everything):
    if name not in everything:
        pytest.skip("onnx and onnxruntime are an extra: pip install 'tinynet-engine[bench]'")
    result = everything[name].result()
    assert list(result["found"]) == [(network, kind) for network in NETWORKS for kind in kinds(name, network)]
    for (network, kind), (got, samples) in result["found"].items():
        state, *_, want = case(network, kind)
        errors = truth.errors(want, state, got)
        assert all(error <= allowed for error, allowed in errors.values()), (network, kind, errors)
        assert len(errors) == (1 if kind == "forward" else 1 + len(state)) and samples == 1
    assert 10 < result["memory"][0] <= result["memory"][1]


def test_the_truth_of_repeated_images_is_theirs(monkeypatch):
    network = small(Conv(4, 3, padding=1), ReLU(), MaxPool(2, 2), Flatten(), Dense(10))
    state = initial_state(network)
    whole = truth.truth(network, "training", state, *truth.images(network, state, 12))
    monkeypatch.setattr(truth, "DISTINCT", 8)
    x, y = truth.images(network, state, 12)
    assert len(np.unique(x, axis=0)) == 6 and np.array_equal(x[:6], x[6:])
    half = truth.truth(network, "training", state, x, y)
    monkeypatch.undo()
    again = truth.truth(network, "training", state, x, y)
    assert half.loss == pytest.approx(again.loss, rel=1e-12) and half.loss != pytest.approx(whole.loss, rel=1e-3)
    assert all(truth.error(half.change[name], change) < 1e-12 for name, change in again.change.items())


def test_what_is_wrong_is_noticed():
    state, x, y, want = case("keras", "training")
    right = {"loss": want.loss, "state": {name: state[name] + change for name, change in want.change.items()}}
    errors = truth.errors(want, state, right)
    assert all(error <= allowed for error, allowed in errors.values())
    for wrong in (
        {**right, "loss": want.loss * 1.01},
        {**right, "state": {**right["state"], "conv1.weight": state["conv1.weight"]}},  # not trained
        {**right, "state": {**right["state"], "fc1.bias": state["fc1.bias"] + 2 * want.change["fc1.bias"]}},  # summed, not averaged
        {**right, "state": {**right["state"], "conv2.bias": np.full(16, np.nan)}},
    ):
        assert any(error > allowed for error, allowed in truth.errors(want, state, wrong).values())
    state, x, y, want = case("keras", "forward")
    assert truth.errors(want, state, {"output": want.output.T})["output"][0] == np.inf
    swapped = truth.errors(want, state, {"output": want.output[::-1]})["output"]
    assert swapped[0] > swapped[1]


# --- the run ---


def settings(**changes) -> Settings:
    return Settings(**{**dict(networks=("lenet5",), kinds=("forward",), contestants=("tinynet-eager",), sizes=(1, 2), rounds=3, threads=2, block_s=0.0), **changes})


def test_a_run_keeps_all_samples_and_goes_on_where_a_contestant_fails(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.syspath_prepend(blocked.parent)  # a spawned process inherits the path
    stages, finished = [], []
    result = Run(settings(contestants=("tinynet-eager", "torch-eager")), tmp_path / "logs", lambda *stage: stages.append(stage), finished.append).run()
    (table,) = result["tables"]
    ours, missing = table["rows"]
    assert finished == [table] and result["ok"] is True
    assert all(cell["status"] == "ok" and len(cell["samples"]) == 3 and cell["median_s"] > 0 and cell["first_s"] > 0 for cell in ours["cells"].values())
    assert ours["peak_mb"] > 0 and "tinynet" in ours["version"]
    assert [cell["status"] for cell in missing["cells"].values()] == ["missing", "missing"] and missing["peak_mb"] is None
    assert any("torch is not installed; pip install" in line for line in tables.lines(table))
    assert all(0 <= done <= of for _, done, of in stages)


def test_who_is_wrong_gets_no_time_and_the_run_is_not_ok(tmp_path, monkeypatch):
    monkeypatch.setattr(networks.truth, "TOLERANCE", 1e-12)
    result = Run(settings(), tmp_path, lambda *_: None).run()
    (row,) = result["tables"][0]["rows"]
    assert result["ok"] is False and all(cell["status"] == "wrong" and cell["median_s"] is None and not cell["samples"] for cell in row["cells"].values())
    assert any("the output errs by" in line for line in tables.lines(result["tables"][0]))


def test_a_process_that_is_gone_is_in_all_cells_after(tmp_path):
    entrant = Entrant("tinynet-eager", (1, 2), tmp_path / "log.txt")
    entrant.start(1)
    assert entrant._call(1, os._exit, 3) is None
    assert [cell["status"] for cell in entrant.row["cells"].values()] == ["crashed", "crashed"] and entrant.process is None
    entrant.time(2, 0.0)
    entrant.weigh()
    assert entrant.row["peak_mb"] is None


def test_who_had_to_compile_is_timed_and_weighed_in_a_process_that_finds_it_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    network = small(Conv(8, 3), ReLU(), Flatten(), Dense(10))
    state = initial_state(network)
    x, y = truth.images(network, state, 1)
    entrant = Entrant("tinynet-compiled", (1,), tmp_path / "log.txt")
    entrant.start(1)
    first = entrant.process
    try:
        entrant.check(1, truth.truth(network, "forward", state, x, y), network, "forward", state, x, y)
        assert entrant.row["cells"][1]["status"] == "ok" and entrant.process is not first
        assert entrant._call(None, eval, "'tinynet.kernels.cpu.compiler' in __import__('sys').modules") is False
        entrant.time(1, 0.0)
        entrant.weigh()
        assert entrant.row["cells"][1]["samples"] and entrant.row["peak_mb"] > 0
    finally:
        entrant.end()


# --- ratios and targets ---


def row(name: str, **medians: float | None) -> dict:
    """medians: s32=0.004 for 32 images; the three rounds took 0.9, 1 and 1.1 times as long."""
    cells = {int(size[1:]): {"status": "ok" if t else "failed", "reason": "" if t else "broken [so]", "median_s": t, "samples": [[0.9 * t], [t], [1.1 * t]] if t else []} for size, t in medians.items()}
    return {"contestant": name, "version": "", "log": "log", "peak_mb": 1.0, "cells": cells}


def test_ratios_of_times_that_are_made_up():
    rows = [row("tinynet-eager", s1=1.0, s32=0.001), row("tinynet-compiled", s1=1.0, s32=None), row("tinynet-winograd", s1=0.5, s32=1.0), row("jax", s1=1.8, s32=1.0), row("torch-eager", s1=2.0, s32=4.0), row("onnxruntime", s1=None, s32=3.0)]
    assert best_of(rows[3:], 1)["contestant"] == "jax" and best_of(rows[5:], 1) is None
    strict, one, many = ratios(NETWORKS["keras"], "forward", rows, None)
    assert (strict["contestant"], strict["size"], strict["other"]) == ("tinynet-compiled", 1, "jax")
    assert [strict["ratio"], strict["low"], strict["high"]] == pytest.approx([1.8, 1.8, 1.8])
    assert strict["target"]["against"]["other"] == "torch-eager" and strict["target"]["against"]["ratio"] == 2.0  # jax is not in the target
    assert strict["target"]["met"] and strict["target"]["floor_met"]
    assert one["ratio"] == pytest.approx(3.6) and one["target"]["against"]["ratio"] == 4.0 and one["target"]["met"]
    assert many["ratio"] == 1.0 and many["target"]["against"]["other"] == "onnxruntime" and many["target"]["against"]["ratio"] == 3.0
    table = {"network": "keras", "title": "keras", "kind": "forward", "busy_percent": 50.0, "sizes": [1, 32], "rows": rows, "ratios": [strict, one, many]}
    shown = "\n".join(tables.lines(table))
    assert "tinynet-compiled, 1 image: [bold]1.80 x[/] the best of the others (jax; 1.80 to 1.80 in the rounds); target 2 against torch-eager, 2.00 x: [green]met[/], floor 1.5: [green]met[/]" in shown
    assert shown.startswith("[red]others used 50 % of this machine")
    assert shown.count("broken \\[so]") == 2


def test_a_round_in_which_the_machine_was_busy_widens_the_range_and_moves_no_median():
    ours, theirs = row("tinynet-compiled", s7=1.0), row("jax", s7=2.0)
    theirs["cells"][7]["samples"][2] = [9.0]
    (entry,) = ratios(NETWORKS["keras"], "forward", [ours, theirs], None)
    assert entry["ratio"] == 2.0 and entry["low"] == 2.0 and entry["high"] == pytest.approx(9 / 1.1) and entry["target"] is None


def test_a_target_above_the_processors_peak_is_said_to_be():
    rows = [row("tinynet-compiled", s1=1.0), row("tinynet-winograd", s1=1.0), row("torch-eager", s1=1.8)]
    reached = NETWORKS["vgg"].operations("forward") / 1e9  # operations in the nanoseconds of a second, at which the products alone take a second
    for peak, said in ((reached, " (all products at the processor's peak would be 1.80 x)"), (1.2 * reached, ""), (None, "")):
        strict, winograd = ratios(NETWORKS["vgg"], "forward", rows, peak)
        assert not strict["target"]["floor_met"] and winograd["target"]["at_peak"] is None
        assert tables.beyond(strict["target"]) == said and tables.beyond(winograd["target"]) == ""
        table = {"network": "vgg", "title": "vgg", "kind": "forward", "busy_percent": 0.0, "sizes": [1], "rows": rows, "ratios": [strict]}
        assert f"floor 2: [red]not met[/]{said}\n" in "\n".join([*tables.lines(table), ""])


def test_operations_are_counted_as_numpy_would_count_them():
    network = small(Conv(4, 3, stride=2, padding=1), ReLU(), Conv(4, 3, groups=4), Flatten(), Dense(10))
    inside = sum(0 <= 2 * i + a - 1 < 8 and 0 <= 2 * j + b - 1 < 8 for i in range(4) for j in range(4) for a in range(3) for b in range(3))
    first, second, dense = 2 * 4 * 3 * inside, 2 * 4 * 9 * 2 * 2, 2 * 16 * 10
    assert network.operations("forward") == first + second + dense and network.operations("training") == 2 * first + 3 * (second + dense)


@pytest.mark.parametrize("pooling, read", [(MaxPool(2, 2), 6), (MaxPool(3, 2), 7), (AvgPool(4), 4)])
def test_outputs_that_no_whole_window_reads_are_not_counted(pooling, read):
    """Nobody needs to compute them: of 7 x 7, what these windows reach."""
    network = small(Conv(4, 2), ReLU(), pooling, Flatten(), Dense(10))
    convolution, *_, dense = network.steps()
    assert convolution.after == (4, 7, 7) and convolution.operations == 2 * 4 * 3 * 4 * read**2
    assert network.operations("forward") == convolution.operations + dense.operations


def test_what_nobody_reads_reaches_back_to_the_layers_before():
    """The article's network A: its second pooling reads 12 x 12 of 13 x 13, those 14 x 14 of 15 x 15, and the first pooling for these 28 x 28 of 30 x 30."""
    read = {step.name: (step.after[1:], step.read) for step in NETWORKS["keras"].steps() if step.name.startswith("conv")}
    assert read == {"conv1": ((30, 30), (28, 28)), "conv2": ((13, 13), (12, 12))}


def test_targets_are_the_projects():
    assert target("keras", "forward", "tinynet-compiled", 32).ratio == 1.7
    assert target("keras", "forward", "tinynet-compiled", 32).floor == pytest.approx(1.275)
    assert target("tensorflow", "training", "tinynet-winograd", 512).ratio == 2.3
    assert target("tensorflow", "training", "tinynet-compiled", 512) is None
    assert target("vgg", "forward", "tinynet-compiled", 128).floor == 1.0  # three quarters of 1.25 are less than any network must reach
    assert target("bottleneck", "training", "tinynet-compiled", 1).ratio == 7 and target("bottleneck", "training", "tinynet-winograd", 1) is None
    assert target("alexnet", "training", "tinynet-compiled", 1).floor == 2 and target("alexnet", "forward", "tinynet-compiled", 128).ratio == 1
    assert target("keras", "forward", "tinynet-eager", 1) is None and target("vgg", "forward", "tinynet-compiled", 2) is None
    assert set(ARTICLE) == {name for name in CONTESTANTS if not name.startswith("tinynet-")} - {"jax"} and set(ORDINARY) < set(ARTICLE)


# --- the command ---


def test_the_help_names_every_network():
    assert commands._NETWORKS == ",".join(NETWORKS)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--networks", "resnet"], "there is no network 'resnet'; choose from keras, tensorflow, lenet5, vgg, strided, bottleneck, alexnet"),
        (["--contestants", "mxnet"], "there is no contestant 'mxnet'; choose from tinynet-eager, tinynet-compiled"),
        (["--kinds", "backward"], "there is no kind 'backward'; choose from forward, training"),
        (["--batch-sizes", "0,32"], "batch sizes must be numbers from 1 to 4096"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(arguments, expected):
    done = subprocess.run([sys.executable, "-c", "from tinynet.cli import main; main()", "bench", "networks", *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 2 and expected in done.stderr


def test_growth_is_shown_in_images_a_second():
    console = Console(width=120, file=io.StringIO())
    console.print(tables.growth({"title": "keras", "kind": "forward", "sizes": [1, 4096], "rows": [row("tinynet-compiled", s1=0.001, s4096=0.5)]}))
    assert "1,000" in console.file.getvalue() and "8,192" in console.file.getvalue()

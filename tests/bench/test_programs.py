"""`tinynet bench kernels --compiled`: a program is proved before its steps are timed, shares are of what bounds a step. (No times are tested.)"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from functools import cache

import pytest
from rich.console import Console

from tinynet.bench import programs, tables, truth
from tinynet.bench.programs import MATHS, RUNS, as_data, limit, measure
from tinynet.bench.roofline import Roofline
from tinynet.bench.zoo import NETWORKS, initial_state
from tinynet.kernels.cpu.profile import PhaseTime, Profile, StepTime

ROOF = Roofline(2, "float32", 1e12, {0.25: 8e11, 4.0: 2e11, 64.0: 1e10})


@cache
def case(name: str, kind: str, images: int = 8):
    network = NETWORKS[name]
    state = initial_state(network)
    x, y = truth.images(network, state, images)
    return network, state, x, y, truth.truth(network, kind, state, x, y)


def measured(name: str, run: str, math: str, rounds: int = 1):
    network, state, x, y, want = case(name, "forward" if run == "forward" else "training")
    return measure(network, state, x, y, run, math, want, rounds)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["keras", "tensorflow"])
def test_every_kernel_of_the_articles_networks_is_shown(name, run, math):
    table = measured(name, run, math)
    assert not table.wrong and table.profile is not None
    names, kernels = ([getattr(step, what) for step in table.profile.steps] for what in ("name", "kernel"))
    assert any("conv2d + bias" in each for each in names) and "weights" in " ".join(names)
    assert any("Winograd" in each for each in names) is (math == "winograd")
    assert any(each.startswith("dots(") or each.startswith("gemm_packed(") for each in kernels)
    if run != "forward":
        assert "cross_entropy" in names and any("gradient of the weights" in each for each in names) and any(each.startswith(f"{run.removesuffix('w')}(") for each in kernels)
    console = Console(width=250, file=io.StringIO())
    console.print(tables.steps(table, ROOF))
    text = console.file.getvalue()
    assert table.title in text and f"{len(names)} steps by themselves" in text and all(kernel.partition("(")[0] in text for kernel in kernels)


def test_average_pooling_is_shown_where_it_is_used():
    kernels = " ".join(step.kernel for step in measured("lenet5", "sgd", "strict").profile.steps)
    assert "pool(" in kernels and "pool_back(" in kernels


@pytest.mark.parametrize("run", RUNS)
def test_what_is_wrong_is_not_timed(run, monkeypatch):
    monkeypatch.setattr(truth, "TOLERANCE", -1.0)
    table = measured("keras", run, "strict")
    assert table.profile is None and any("errs by" in each for each in table.wrong)
    assert as_data(table, ROOF)["seconds"] is None and as_data(table, ROOF)["wrong"] == table.wrong


def step(**changes) -> StepTime:
    return StepTime(**{**dict(name="s", kernel="k", on="1", program="program", phase=0, seconds=1e-3, low=1e-3, high=1e-3, in_place=2e-3, operations=5e8, fewer=False, moved=1000, touched=1000), **changes})


def test_the_roofline_says_what_bounds_a_step():
    assert limit(step(), ROOF) == programs.Limit("peak", 1e12, pytest.approx(0.5), False)
    # 100 MB in a millisecond: half of what reading 4 MiB again and again does, ten times what memory gives
    assert limit(step(operations=None, moved=10**8, touched=10**6), ROOF) == programs.Limit("bandwidth", 2e11, pytest.approx(0.5), False)
    assert limit(step(operations=None, moved=10**8, touched=10**9), ROOF).share == pytest.approx(10.0)
    assert limit(step(operations=1.2e9), ROOF).impossible and not limit(step(operations=1.2e9, fewer=True), ROOF).impossible
    assert limit(step(operations=None, moved=10**9), ROOF).impossible


def test_shares_are_of_the_whole_in_its_place_and_a_star_marks_what_is_fewer():
    profile = Profile(3, 2, [step(), step(name="t", phase=1, seconds=3e-3, operations=1.2e10, fewer=True)], [PhaseTime("program", 0, 3e-3, 1e-3), PhaseTime("program", 1, 5e-3, 3e-3)], 7.5e-3)
    table = programs.Table("keras", 3, "sgd", "winograd", [], profile)
    data = as_data(table, ROOF)
    assert [s["share_of_time"] for s in data["steps"]] == pytest.approx([0.25, 0.25])
    assert (data["seconds"], data["stamped"], data["waited"], data["sum_of_steps"]) == pytest.approx((7.5e-3, 8e-3, 4e-3, 4e-3))
    assert data["phases"][1] == {"program": "program", "phase": 1, "seconds": 5e-3, "waited": 3e-3}
    console = Console(width=200, file=io.StringIO())
    console.print(tables.steps(table, ROOF))
    text = console.file.getvalue()
    assert "keras, 3 images, training with sgd, winograd: the whole 7.5 ms, 50% of it waiting; 2 steps by themselves 4 ms" in " ".join(text.split())
    assert "50% of peak" in text and "400% of peak *" in text and "25.0%" in text and "2 ms" in text


def bench(*arguments):
    return subprocess.run([sys.executable, "-c", "from tinynet.cli import main; main()", "bench", "kernels", *arguments], capture_output=True, text=True, env={**os.environ, "TINYNET_QUIET": "1", "COLUMNS": "300"})


def test_the_command_prints_programs_as_json():
    done = bench("--compiled", "--networks", "keras", "--batch-sizes", "2", "--runs", "forward", "--maths", "strict", "--rounds", "3", "--json")
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    (program,) = result["programs"]
    assert (program["network"], program["images"], program["run"], program["math"], program["wrong"]) == ("keras", 2, "forward", "strict", [])
    assert program["seconds"] > 0 and program["sum_of_steps"] == pytest.approx(sum(s["seconds"] for s in program["steps"]))
    assert program["stamped"] == pytest.approx(program["waited"] + sum(s["in_place"] for s in program["steps"]))
    assert all(s["share_of_bound"] > 0 and s["bound"] in ("peak", "bandwidth") for s in program["steps"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--compiled", "--only", "conv2d"], "--only names single kernels"),
        (["--runs", "sgd"], "--runs and --maths choose compiled programs; add --compiled"),
        (["--compiled", "--runs", "lion"], "there is no run 'lion'; choose from forward, sgd, momentum, adam, adamw"),
        (["--compiled", "--maths", "fft"], "there is no math 'fft'; choose from strict, winograd"),
        (["--networks", "keras", "--only", "avg_pool2d", "--batch-sizes", "1"], "no layer of keras runs avg_pool2d"),
        (["--networks", "pytorch"], "there is no network 'pytorch'; choose from keras, tensorflow, lenet5"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(arguments, expected):
    done = bench(*arguments)
    assert done.returncode == 2 and expected in done.stderr

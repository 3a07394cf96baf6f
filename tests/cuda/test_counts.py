"""What is counted: known patterns give known counts, and the default variants are coalesced and free of bank conflicts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tinynet import explain
from tinynet.cli import app
from tinynet.dispatch import find, kernels
from tinynet.geometry import PoolWindow, Window, in_layout
from tinynet.kernels.cuda import matmul
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked
from tinynet.kernels.cuda.launch import Source, kernel

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")

PATTERNS = Source("patterns.cu", r"""
extern "C" __global__ void reads(const float* x, float* y, int step, int from) { int i = threadIdx.x; y[i] = x[i * step + from]; }
extern "C" __global__ void fours(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void banks(float* y, int step) {
  __shared__ float t[32 * 33];
  int i = threadIdx.x;
  t[i * step] = i;
  __syncthreads();
  y[i] = t[i * step];
}
extern "C" __global__ void wide_banks(float* y, int step) {
  __shared__ float4 t[32 * 9];
  int i = threadIdx.x;
  t[i * step] = make_float4(i, i, i, i);
  __syncthreads();
  y[i] = t[i * step].x + t[i * step].w;
}
extern "C" __global__ void some_lanes(const float* x, float* y) {
  int i = threadIdx.x;
  for (int k = 0; k < i; k++) y[i] = x[k * 32 + i];
}
""")


def counted(name: str, *arguments, threads: int = 32):
    with checked() as found:
        kernel(np.empty(0), PATTERNS, name)((1,), (threads,), arguments)
    return found.launches[0]


def place(launch, memory: str, writes: bool):
    (found,) = [p for p in launch.places if (p.memory, p.writes) == (memory, writes)]
    return found


# --- known patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step, start, sectors, least", [(1, 0, 4, 4), (0, 5, 1, 1), (2, 0, 8, 4), (8, 0, 32, 4), (32, 0, 32, 4), (1, 1, 5, 4), (-1, 31, 4, 4)],
    ids=["side by side", "one for all", "every second", "every eighth", "a column", "one off", "backwards"],
)  # fmt: skip
def test_sectors_of_a_warps_request(step, start, sectors, least):
    found = counted("reads", np.zeros(1024, np.float32), np.zeros(32, np.float32), step, start)
    read, write = place(found, "global", False), place(found, "global", True)
    assert (read.requests, read.lanes, read.bytes, read.transactions, read.least) == (1, 32, 4, sectors, least)
    assert (write.transactions, write.least) == (4, 4) and read.line == "patterns.cu:2"
    assert found.bytes_moved == 32 * (sectors + 4)


def test_four_numbers_at_a_time_are_one_request():
    found = counted("fours", np.zeros(256, np.float32), np.zeros(256, np.float32), threads=64)
    assert [(p.requests, p.bytes, p.transactions, p.least) for p in found.places] == [(2, 16, 32, 32)] * 2


@pytest.mark.parametrize("step, passes", [(1, 1), (2, 2), (3, 1), (4, 4), (16, 16), (32, 32), (33, 1)])
def test_passes_over_the_banks(step, passes):
    found = counted("banks", np.zeros(32, np.float32), step)
    for writes in (False, True):
        shared = place(found, "shared", writes)
        assert (shared.requests, shared.transactions, shared.least) == (1, passes, 1)
    assert found.barriers == 1


@pytest.mark.parametrize("step, passes", [(1, 4), (2, 8), (9, 4)])
def test_lanes_of_16_bytes_go_by_quarters_of_a_warp(step, passes):
    found = place(counted("wide_banks", np.zeros(32, np.float32), step), "shared", True)
    assert (found.requests, found.bytes, found.transactions, found.least) == (1, 16, passes, 4)


def test_lanes_that_go_round_a_loop_less_often_take_part_in_fewer_requests():
    found = place(counted("some_lanes", np.zeros(1024, np.float32), np.zeros(32, np.float32)), "global", False)
    assert (found.requests, found.lanes) == (31, sum(range(32)))


# --- the default variants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("variant", ["vectors", "async"])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_matmul_is_coalesced_and_free_of_conflicts_however_its_operands_lie(orders, variant, tile, monkeypatch, rng):
    monkeypatch.setattr(matmul, "tile_of", lambda shape: tile)
    a, b = (np.asarray(rng.standard_normal((128, 128)), np.float32, order=order) for order in orders)
    out = np.empty((128, 128), np.float32)
    with checked() as found:
        find("matmul", f"cuda-emulator.{variant}").function(a[:, :64], b[:64], out=out)
    for p in found.launches[0].places:
        assert p.transactions == p.least, f"{p.line} {'writes' if p.writes else 'reads'} {p.memory} memory by {p.transactions} where {p.least} would do"


@pytest.mark.parametrize("variant", ["vectors", "async"])
def test_so_is_a_product_whose_terms_are_split(variant, rng):
    a, b, out = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 512), (512, 64), (64, 64)))
    with checked() as found:
        find("matmul", f"cuda-emulator.{variant}").function(a, b, out=out)
    assert [(launch.kernel, launch.grid) for launch in found.launches] == [(f"matmul_{variant}", (1, 4, 1)), ("add_parts", (128, 1, 1))]
    assert all(p.transactions == p.least for launch in found.launches for p in launch.places)


@pytest.mark.parametrize("variant", ["naive", "tiles", "registers"])
def test_the_simple_variants_of_matmul_are_too_where_rows_lie_side_by_side(variant, rng):
    a, b, out = (rng.standard_normal((64, 64)).astype(np.float32) for _ in "abc")
    with checked() as found:
        find("matmul", f"cuda-emulator.{variant}").function(a, b, out=out)
    assert all(p.transactions == p.least for p in found.launches[0].places), found.launches[0].places


def test_even_sizes_that_nothing_divides_make_no_conflicts(rng):
    a, b, out = rng.standard_normal((70, 37)).astype("f4"), rng.standard_normal((37, 75)).astype("f4"), np.empty((70, 75), np.float32)
    with checked() as found:
        find("matmul", "cuda-emulator").function(a, b, out=out)
    assert found.launches[0].total("shared", "transactions") == found.launches[0].total("shared", "least") > 0


@pytest.mark.parametrize("classes", [8, 32, 64, 256, 512, 3072])
def test_softmax_cross_entropy_reads_rows_side_by_side_and_once_if_registers_hold_them(classes, rng):
    logits, target = rng.standard_normal((40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    with checked() as found:
        find("softmax_cross_entropy", "cuda-emulator").function(logits, target, out=(np.empty(40, np.float32), np.empty_like(logits)))
    (launch,) = found.launches
    assert all(p.transactions == p.least for p in launch.places), launch.places
    read = sum(32 * p.transactions for p in launch.places if p.memory == "global" and not p.writes and p.bytes == 4)
    assert read == logits.nbytes * (1 if classes <= 2048 else (2048 + 3 * 1024) / 3072)


@pytest.mark.parametrize("name, arrays", [("sgd_step", 5), ("adam_step", 7)])
def test_steps_of_optimisers_move_each_array_once_and_vectors_ask_a_quarter_as_often(name, arrays):
    simple, vectors = explain.count(name)
    assert simple.bytes_moved == vectors.bytes_moved == simple.least_bytes == arrays * 4 * 200 * 160
    assert simple.requests == 4 * vectors.requests == arrays * 200 * 160 // 32


def pooled(name: str, shape, layout: str, size: int, stride: int, padding: int, rng):
    """Every launch of a default pooling kernel on such images."""
    window = dict(PoolWindow(shape, size, stride, padding, False, layout, name, 1))
    x = rng.standard_normal(shape).astype(np.float32)
    y, argmax = kernels("reference").max_pool2d(x, **window)
    average = {k: v for k, v in window.items() if k != "dilation"} | {"count_include_pad": True}
    arrays, parameters = {
        "max_pool2d": ((x,), window), "max_pool2d_dx": ((y, argmax), dict(x_shape=shape, layout=layout)),
        "avg_pool2d": ((x,), average), "avg_pool2d_dx": ((y,), dict(average, x_shape=shape)),
    }[name]  # fmt: skip
    with checked() as found:
        getattr(kernels("cuda-emulator"), name)(*arrays, **parameters)
    return found.launches


POOLS = ["max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx"]


@pytest.mark.parametrize("layout, shape", [("NCHW", (2, 4, 32, 32)), ("NCHW", (1, 2, 64, 64)), ("NHWC", (2, 16, 16, 8)), ("NHWC", (2, 8, 8, 32))], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_pooling_is_coalesced_and_free_of_conflicts_in_both_layouts(name, layout, shape, rng):
    for launch in pooled(name, shape, layout, 2, 2, 0, rng):
        for p in launch.places:
            if name == "max_pool2d_dx" and p.lanes < p.requests * 32 and not p.writes:
                continue  # dy is read by those lanes alone that argmax names, wherever they are
            assert p.transactions == p.least, f"{p.line} {'writes' if p.writes else 'reads'} {p.memory} memory by {p.transactions} where {p.least} would do"


@pytest.mark.parametrize("layout, shape", [("NCHW", (2, 4, 30, 30)), ("NHWC", (2, 15, 15, 12))], ids=str)
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size, stride, padding", [(3, 2, 1), (3, 1, 1), (2, 2, 0)], ids=str)
def test_pooling_of_any_window_wastes_little(size, stride, padding, name, layout, shape, rng):
    """Where rows start anywhere and windows reach over the edge: few sectors, and passes over the banks, more than must be."""
    launches = pooled(name, shape, layout, size, stride, padding, rng)
    places = [p for launch in launches for p in launch.places if p.memory == "global" and (p.writes or name != "max_pool2d_dx")]  # which reads dy here and there
    assert sum(p.transactions for p in places) < 1.5 * sum(p.least for p in places)
    total = lambda what: sum(launch.total("shared", what) for launch in launches)
    assert total("transactions") <= 2 * total("least")


def watched(name: str, rng, layout: str, x, k, size, groups=1):
    """What the default variant asks of memory, launch by launch, on 3 x 3 or 1 x 1 windows that leave the image's size as it is."""
    n, c, h, w = x
    whole = lambda *shape: rng.integers(-3, 4, shape).astype(np.float32)
    x, weight, dy = whole(*in_layout(n, c, h, w, layout)), whole(k, c // groups, size, size), whole(*in_layout(n, k, h, w, layout))
    window = Window(x.shape, weight.shape, 1, size // 2, 1, groups, layout)
    arrays = {"conv2d": (x, weight, whole(k)), "conv2d_relu_max_pool2d": (x, weight, whole(k)), "conv2d_dx": (dy, weight), "conv2d_dw": (dy, x), "conv2d_db": (dy,)}[name]
    more = {"conv2d": window, "conv2d_relu_max_pool2d": window, "conv2d_dx": {"x_shape": x.shape, **window}, "conv2d_dw": {"weight_shape": weight.shape, **window}, "conv2d_db": {"layout": layout}}[name]
    with checked() as found:
        getattr(kernels("cuda-emulator"), name)(*arrays, **more)
    return found.launches


def excess(launch) -> dict[str, float]:
    """By memory: transactions for each one that would do."""
    return {memory: launch.total(memory, "transactions") / max(1, launch.total(memory, "least")) for memory in ("global", "shared")}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu_max_pool2d", "conv2d_dx", "conv2d_dw", "conv2d_db"])
def test_convolution_is_coalesced_and_free_of_conflicts(name, layout, rng):
    launches = watched(name, rng, layout, (2, 32, 8, 16), 64, 1)
    assert len(launches) == 1 + (name == "conv2d_dw") or name == "conv2d_db"
    for launch in launches:
        assert all(p.transactions == p.least for p in launch.places), launch.places


@pytest.mark.parametrize(
    "name, layout, most",
    [("conv2d", "NCHW", 1.15), ("conv2d_relu_max_pool2d", "NCHW", 1.3), ("conv2d_relu_max_pool2d", "NHWC", 1), ("conv2d_dx", "NCHW", 1.15), ("conv2d_dw", "NCHW", 1.7), ("conv2d", "NHWC", 1), ("conv2d_dx", "NHWC", 1), ("conv2d_dw", "NHWC", 1)],
)
def test_windows_that_start_anywhere_cost_little_more(name, layout, most, rng):
    """A window's row starts at any column, so what lies side by side begins in the middle of a sector. Channels never do."""
    launches = watched(name, rng, layout, (2, 16, 8, 32), 64, 3)
    assert launches[0].kernel == ("conv2d_pool_registers" if "pool" in name else "conv2d_registers")
    assert excess(launches[0])["shared"] == 1 and excess(launches[0])["global"] <= most
    for launch in launches[1:]:
        assert launch.kernel == ("conv2d_pool_parts" if "pool" in name else "add_parts") and excess(launch)["shared"] in (0, 1)
        reads = [p for p in launch.places if p.memory == "global" and not p.writes]
        assert all(p.transactions == p.least for p in reads), "parts; dw of NHWC is turned when it is written"


@pytest.mark.parametrize("layout, most", [("NCHW", 1.2), ("NHWC", 1)])
@pytest.mark.parametrize("name, kernel", [("conv2d", "conv2d_direct"), ("conv2d_dx", "conv2d_direct"), ("conv2d_dw", "conv2d_terms")])
def test_depthwise_is_coalesced_too(name, kernel, layout, most, rng):
    launch, *adding = watched(name, rng, layout, (2, 64, 8, 8), 64, 3, groups=64)
    assert launch.kernel == kernel and [a.kernel for a in adding] in ([], ["add_parts"])
    assert excess(launch)["global"] <= most and excess(launch)["shared"] <= 1


# --- tinynet explain ---------------------------------------------------------------------------------------------------


def test_explain_tells_the_story_in_numbers():
    found = explain.count("matmul")
    assert [c.variant for c in found] == ["naive", "tiles", "registers", "vectors", "async"]
    naive, tiles, registers, vectors, copies = found
    assert naive.bytes_moved > 5 * tiles.bytes_moved > 5 * registers.bytes_moved, "each reads less than the one before"
    assert registers.passes > vectors.passes == copies.passes, "8 x 8 elements a thread ask less of shared memory than 4 x 4"
    assert min(c.requests for c in found) == vectors.requests, "four numbers a request"
    assert naive.barriers == 0 and tiles.barriers == 2 * vectors.barriers // 2 == 16
    assert all(c.flops == 2 * 128**3 and c.least_bytes == 3 * 4 * 128**2 and c.sectors == c.least_sectors and c.passes == c.least_passes for c in found)


def test_explain_tells_the_story_of_softmax_cross_entropy():
    simple, warp, block, fitting = explain.count("softmax_cross_entropy")
    assert simple.bytes_moved > 5 * warp.bytes_moved, "neighbours a row apart, and every row three times"
    assert block.requests > warp.requests == 2 * fitting.requests, "ten classes: a warp takes two rows"
    assert fitting.bytes_moved < 1.5 * fitting.least_bytes and block.barriers == 2


def test_explain_tells_why_pooling_goes_down_and_then_across():
    for name in ("max_pool2d", "avg_pool2d", "avg_pool2d_dx"):
        simple, separable = explain.count(name)
        assert (simple.variant, separable.variant) == ("simple", "separable")
        assert simple.bytes_moved > 1.4 * separable.bytes_moved and simple.requests > separable.requests, name
    simple, near = explain.count("max_pool2d_dx")
    assert near.kernels == ("max_pool2d_dx_reach", "max_pool2d_dx_near") and simple.bytes_moved > 10 * near.bytes_moved


def test_explain_prints_it_and_says_what_it_is_not():
    done = CliRunner().invoke(app, ["explain", "matmul", "--device", "cuda-emulator", "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["measures"] == "structure, not time" and [v["variant"] for v in told["variants"]] == ["naive", "tiles", "registers", "vectors", "async"]
    text = " ".join(CliRunner().invoke(app, ["explain", "matmul"]).stdout.split())
    assert "c[..., i, j] = sum over t" in text and "structure, not time" in text and "nothing here ran on a GPU" in text
    assert f"│ {told['variants'][0]['requests']:,} │" in text


def test_explain_tells_the_story_of_a_convolution():
    for name in ("conv2d", "conv2d_dx", "conv2d_dw"):
        found = explain.count(name)
        if name == "conv2d_dw":
            direct, terms = found[:2]
            assert terms.variant == "terms" and 2.5 * terms.bytes_moved < direct.bytes_moved, "what lies side by side is read by neighbours"
            found = [direct, *found[2:]]
        direct, tiles, registers = found
        assert [c.variant for c in found] == ["direct", "tiles", "registers"]
        assert direct.bytes_moved > 10 * tiles.bytes_moved > 15 * registers.bytes_moved, "each reads less than the one before"
        assert tiles.passes > 2 * registers.passes and all(c.passes == c.least_passes for c in found)
    direct, parts = explain.count("conv2d_db")
    assert direct.bytes_moved > 7 * parts.bytes_moved and parts.bytes_moved < 1.1 * parts.least_bytes


@pytest.mark.parametrize("arguments, said", [(["matmull"], "there is no kernel 'matmull'"), (["matmul", "--device", "cpu"], "there is no device that counts 'cpu'")])
def test_explain_refuses_what_it_can_not_count(arguments, said):
    done = CliRunner().invoke(app, ["explain", *arguments])
    assert done.exit_code == 2 and said in " ".join(done.output.split())

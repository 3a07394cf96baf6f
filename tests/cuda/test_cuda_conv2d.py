"""conv2d and its gradients on CUDA's devices: the oracle accepts every variant, in every geometry, layout and memory order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from ready import READY, judged

import tinynet
from tinynet import functional as F
from tinynet import oracle
from tinynet.devices import array_module, to_host
from tinynet.dispatch import kernels, use, variants
from tinynet.geometry import Window, in_layout
from tinynet.kernels.cuda import conv2d, sums
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked

NAMES = ["conv2d", "conv2d_dx", "conv2d_dw"]
VARIANTS = ["registers", "direct", "tiles"]  # the default first
EVERY = [*product(NAMES, VARIANTS), ("conv2d_dw", "terms"), ("conv2d_db", "parts"), ("conv2d_db", "direct")]


@dataclass
class Case:
    """One convolution and the inputs of its gradients, in small whole numbers: every order of summation gives the same bits."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    dy: np.ndarray
    window: Window

    @staticmethod
    def of(rng, x, k, kernel, layout="NCHW", dtype=np.float32, bias=True, **geometry) -> "Case":
        n, c, h, w = x
        whole = lambda *shape: rng.integers(-4, 5, shape).astype(dtype)
        geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **geometry}
        x, weight = whole(*in_layout(n, c, h, w, layout)), whole(k, c // geometry["groups"], *kernel)
        window, bias = Window(x.shape, weight.shape, layout=layout, **geometry), whole(k) if bias else None
        return Case(x, weight, bias, whole(*kernels("reference").conv2d(x, weight, bias, **window).shape), window)

    def call(self, name: str) -> tuple[list, dict]:
        arrays = {"conv2d": [self.x, self.weight, self.bias], "conv2d_dx": [self.dy, self.weight], "conv2d_dw": [self.dy, self.x], "conv2d_db": [self.dy]}[name]
        return arrays, dict(conv2d={}, conv2d_dx={"x_shape": self.x.shape}, conv2d_dw={"weight_shape": self.weight.shape}, conv2d_db={})[name] | (
            self.window if name != "conv2d_db" else {"layout": self.window["layout"]}
        )

    def want(self, name: str) -> np.ndarray:
        arrays, parameters = self.call(name)
        return getattr(kernels("reference"), name)(*arrays, **parameters)

    def got(self, name: str, variant: str, device: str, placed=lambda array: array):
        """What the variant makes of arrays that lie in memory as `placed` puts them."""
        xp = array_module(device)
        arrays, parameters = self.call(name)
        with use(**{name: f"{device}.{variant}"}):
            return to_host(getattr(kernels(device), name)(*(None if a is None else placed(xp.asarray(a)) for a in arrays), **parameters))


def test_the_variants_are_those_of_the_stories_on_both_devices():
    for name in NAMES:
        assert variants(name, "cuda") == variants(name, "cuda-emulator") == (VARIANTS if name != "conv2d_dw" else ["registers", "direct", "terms", "tiles"])
    assert variants("conv2d_db", "cuda") == variants("conv2d_db", "cuda-emulator") == ["parts", "direct"]


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("name, variant, dtype", [(*one, dtype) for one, dtype in product(EVERY, ("float32", "float64")) if one[1] != "registers" or dtype == "float32"])
def test_the_oracle_accepts_every_variant(name, variant, dtype, device):
    large = device == "cuda" or (variant, dtype) == ("registers", "float32")
    report = judged(name, variant, device, dtype=dtype, cases=lambda case: large or "large" not in case.label)
    assert report, report.explain()
    assert len(report) > 40


# Around where blocks are cut: 32 and 64 channels, 128 places, steps of 8 and 16 terms; sizes of which four divide all, some
# or none; with groups, and with as few channels in a group as `direct` takes.
GEOMETRIES = [
    dict(x=(1, 8, 8, 16), k=32, kernel=(1, 1)),
    dict(x=(1, 8, 8, 16), k=64, kernel=(3, 3), padding=1),
    dict(x=(2, 5, 9, 8), k=65, kernel=(3, 2), padding=((1, 0), (2, 1))),
    dict(x=(1, 3, 11, 13), k=33, kernel=(3, 3), padding="same", bias=False),
    dict(x=(2, 7, 5, 6), k=10, kernel=(3, 3), padding=1),
    dict(x=(3, 12, 5, 7), k=40, kernel=(2, 3), stride=(2, 1), padding=1),
    dict(x=(2, 16, 7, 9), k=24, kernel=(3, 3), stride=(2, 3), padding=(2, 1), dilation=(3, 2), groups=2),
    dict(x=(1, 80, 6, 5), k=80, kernel=(3, 3), padding=1, groups=2),
    dict(x=(2, 12, 6, 6), k=12, kernel=(3, 3), padding=1, groups=12),
    dict(x=(2, 3, 6, 7), k=9, kernel=(5, 3), stride=4, padding=2, dilation=2, groups=3),
    dict(x=(1, 4, 3, 3), k=8, kernel=(2, 2), stride=5, padding=((0, 3), (4, 0))),  # places of x that no window meets
]
IDS = [" ".join(f"{key}={value}" for key, value in g.items()).replace(" ", "_") for g in GEOMETRIES]


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=IDS)
def test_every_geometry_in_both_layouts(geometry, device, rng):
    for layout in ("NCHW", "NHWC"):
        case = Case.of(rng, layout=layout, **geometry)
        for name, variant in EVERY:
            assert np.array_equal(case.got(name, variant, device), case.want(name)), f"{name} by {variant}, {layout}"


def test_those_geometries_run_every_form(rng, monkeypatch):
    forms = set()
    monkeypatch.setattr(conv2d, "add_parts", lambda *arguments: None)
    monkeypatch.setattr(conv2d, "kernel", lambda out, file, name, **defines: forms.add(tuple(defines.items())) or (lambda *launch: None))
    for geometry, layout, name in product(GEOMETRIES, ("NCHW", "NHWC"), NAMES):
        Case.of(rng, layout=layout, **geometry).got(name, "registers", "cuda-emulator")
    assert forms >= {tuple(defines.items()) for defines, _ in conv2d.units() if "OUTS" in defines and not defines["POOL"]}


def placements(xp):
    """Ways in which an array may lie in memory."""

    def part(a):
        wide = xp.zeros([n + 3 for n in a.shape], a.dtype)
        wide[tuple(slice(1, n + 1) for n in a.shape)] = a
        return wide[tuple(slice(1, n + 1) for n in a.shape)]

    def unaligned(a):
        raw = np.zeros(a.nbytes + 1, np.uint8)
        view = raw[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view

    ways = {
        "the axes turned": lambda a: xp.ascontiguousarray(a.T).T,
        "a part": part,
        "every second": lambda a: xp.repeat(a, 2, -1)[..., ::2],
        "backwards": lambda a: xp.ascontiguousarray(a[tuple(slice(None, None, -1) for _ in a.shape)])[tuple(slice(None, None, -1) for _ in a.shape)],
    }
    return ways | ({"at an odd address": unaligned} if xp is np else {})  # a GPU's array has no such addresses


@pytest.mark.parametrize("device", READY)
def test_inputs_lie_in_memory_as_they_please(device, rng):
    for layout, (way, placed) in product(("NCHW", "NHWC"), placements(array_module(device)).items()):
        case = Case.of(rng, (2, 8, 5, 8), 12, (3, 2), layout, stride=(1, 2), padding=1)
        for name, variant in EVERY:
            assert np.array_equal(case.got(name, variant, device, placed), case.want(name)), f"{name} by {variant}, {layout}, {way}"


@pytest.mark.parametrize("device", READY)
def test_float64_goes_to_the_simple_variants(device, rng):
    for layout, groups in product(("NCHW", "NHWC"), (1, 16)):
        case = Case.of(rng, (2, 16, 6, 5), 16, (3, 3), layout, np.float64, padding=1, groups=groups)
        for name in NAMES:
            assert np.array_equal(case.got(name, "registers", device), case.want(name))


@pytest.mark.parametrize("device", READY)
def test_sums_of_many_terms_are_split_and_give_the_same_bits_again(device, rng):
    for layout, groups in product(("NCHW", "NHWC"), (1, 8)):  # groups of one channel go to `terms`
        case = Case.of(rng, (8, 8, 20, 21), 8, (3, 3), layout, padding=1, groups=groups)
        found = conv2d.gradient_of_w(case.dy, case.x, *list(case.window.values())[:4], layout, np.empty((1, *case.weight.shape), np.float32))
        kernel, _, count, each = conv2d.plan("registers", found[0])
        assert (kernel, count > 1) == ("registers" if groups == 1 else "terms", True) and count * each >= found[0].terms
        assert np.array_equal(case.got("conv2d_dw", "registers", device), case.want("conv2d_dw"))
        case.x, case.dy = (rng.standard_normal(a.shape).astype(np.float32) for a in (case.x, case.dy))
        assert np.array_equal(case.got("conv2d_dw", "registers", device), case.got("conv2d_dw", "registers", device))
        oracle.assert_matches(case.got("conv2d_dw", "registers", device), oracle.reference.conv2d_dw(*case.call("conv2d_dw")[0], **case.call("conv2d_dw")[1]))


@pytest.mark.parametrize("device", READY)
def test_the_weights_gradient_of_few_channels_of_any_taps_and_groups(device, rng):
    """Fewer taps than a block has outputs, as many, and more; fewer channels than a warp has lanes, and more; two channels to a group; images of one term."""
    geometries = [
        dict(x=(2, 40, 9, 8), k=40, kernel=(3, 3), groups=40), dict(x=(1, 6, 9, 11), k=12, kernel=(1, 1), groups=6, stride=2), dict(x=(2, 8, 12, 13), k=12, kernel=(5, 4), groups=4, dilation=2),
        dict(x=(3, 34, 5, 7), k=68, kernel=(2, 5), groups=34, padding=1), dict(x=(9, 3, 4, 4), k=5, kernel=(4, 4)),
    ]  # fmt: skip
    for layout, geometry, dtype in product(("NCHW", "NHWC"), geometries, (np.float32, np.float64)):
        case = Case.of(rng, layout=layout, dtype=dtype, **geometry)
        found = conv2d.gradient_of_w(case.dy, case.x, *case.window.values(), np.empty((1, *case.weight.shape), dtype))
        assert conv2d.plan("registers", found[0])[0] == "terms"
        assert np.array_equal(case.got("conv2d_dw", "registers", device), case.want("conv2d_dw")), (geometry, layout)


@pytest.mark.parametrize("device", READY)
def test_empty_batches(device, rng):
    for layout, (name, variant) in product(("NCHW", "NHWC"), EVERY):
        case = Case.of(rng, (0, 8, 6, 5), 12, (3, 3), layout, padding=1)
        got = case.got(name, variant, device)
        assert np.array_equal(got, case.want(name)) and (got.size == 0) == (name in NAMES[:2])


@pytest.mark.parametrize("device", READY)
def test_the_op_and_its_gradients(device, rng):
    case = Case.of(rng, (2, 8, 7, 6), 12, (3, 2), stride=(2, 1), padding=1)
    x, weight, bias = (tinynet.tensor(a, device=device, requires_grad=True) for a in (case.x, case.weight, case.bias))
    y = F.conv2d(x, weight, bias, stride=(2, 1), padding=1)
    y.backward(array_module(device).asarray(case.dy))
    assert y.device == device and np.array_equal(y.numpy(), case.want("conv2d"))
    for tensor, name in ((x, "conv2d_dx"), (weight, "conv2d_dw"), (bias, "conv2d_db")):
        assert np.array_equal(to_host(tensor.grad), case.want(name)), name


def test_the_gradient_of_x_meets_every_pair_of_a_tap_and_an_output_once():
    for size, kernel, stride, dilation, pad in product((1, 4, 7), (1, 2, 3, 5), (1, 2, 3, 4, 6), (1, 2, 3, 4), (0, 1, 3)):
        outputs = range((size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1)
        want = {(i * stride + u * dilation - pad, u, i) for i in outputs for u in range(kernel)}
        spread, found = dilation // np.gcd(stride, dilation), []
        for h0, top, taps in conv2d.remainders(size, kernel, stride, dilation, pad):
            for number, h in enumerate(range(h0, size, stride)):
                found += [(h, u, number + t * spread - top) for t, u in enumerate(range(kernel)[taps])]
        inside = [triple for triple in found if triple[2] in outputs]  # others meet zeros around dy
        assert len(set(inside)) == len(inside) and set(inside) == {triple for triple in want if 0 <= triple[0] < size}, (size, kernel, stride, dilation, pad)


def convolution(x, k, kernel, groups=1, layout="NCHW", dtype=np.float32):
    """One as it is launched, without numbers in it."""
    n, c, h, w = x
    x, y = np.empty(in_layout(n, c, h, w, layout), dtype), np.empty((1, *in_layout(n, k, h, w, layout)), dtype)
    pad = tuple((e // 2, e // 2) for e in kernel)
    return conv2d.forward(x, np.empty((k, c // groups, *kernel), dtype), None, (1, 1), pad, (1, 1), groups, layout, y)[0]


def test_who_computes_what():
    plan = lambda *arguments, **more: conv2d.plan("registers", convolution(*arguments, **more))
    assert plan((64, 32, 32, 32), 32, (3, 3)) == ("registers", (32, 128), 1, 288), "enough blocks"
    assert plan((1, 32, 16, 16), 64, (3, 3)) == ("registers", (64, 128), 4, 72), "few: the sum is split"
    assert plan((64, 32, 32, 32), 32, (3, 3), groups=32)[0] == plan((64, 32, 32, 32), 3, (3, 3))[0] == "direct", "a block would be empty"
    assert plan((64, 32, 32, 32), 32, (3, 3), dtype=np.float64)[0] == "tiles"


def test_four_at_a_time_where_they_lie_side_by_side():
    wide = lambda *arguments, **more: conv2d.form_of(convolution(*arguments, **more), 32)["WIDE"]
    assert wide((1, 8, 6, 6), 8, (3, 3)) == wide((1, 4, 5, 5), 8, (1, 1)) == 1 and wide((1, 3, 6, 6), 8, (3, 3)) == 0, "27 terms"
    assert wide((1, 8, 5, 5), 8, (1, 1), layout="NHWC") == 1 and wide((1, 6, 6, 6), 8, (2, 2), layout="NHWC") == 0, "6 channels of a place"
    a = np.empty((2, 3, 8), np.float32)
    assert conv2d.by_four(a, 2) and conv2d.by_four(a, 0, 1, 2) and not conv2d.by_four(a, 1) and not conv2d.by_four(a[:, :, ::2], 2)
    assert conv2d.by_four(a[:, :, 4:], 2) and not conv2d.by_four(a[:, :, 1:5], 2), "at a multiple of 16 bytes"
    assert not conv2d.by_four(np.empty((2, 6), np.float32), 1) and conv2d.by_four(np.empty((2, 6), np.float32), 0, 1)


def test_what_no_kernel_can_take_is_refused(monkeypatch, rng):
    half = np.ones((1, 2, 3, 3), np.float16)
    with pytest.raises(TypeError, match="conv2d: float16 has no CUDA kernel; use float32 or float64"):
        kernels("cuda-emulator").conv2d(half, half, None, **Window(half.shape, half.shape, 1, 0, 1, 1, "NCHW"))
    with pytest.raises(TypeError, match="conv2d_db: float16 has no CUDA kernel"):
        kernels("cuda-emulator").conv2d_db(half, layout="NCHW")
    monkeypatch.setattr(conv2d, "MOST", 50)
    with pytest.raises(ValueError, match="conv2d: threads count at most 50 places and terms of a sum; got 60 and 8; use a smaller batch"):
        Case.of(rng, (2, 2, 6, 7), 3, (2, 2), stride=(1, 1), bias=False).got("conv2d", "tiles", "cuda-emulator")


@pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")
@pytest.mark.parametrize("name, variant", EVERY)
def test_every_variant_is_clean_in_checked_mode(name, variant, rng, monkeypatch):
    """No race, nothing out of bounds, no barrier missed: in random orders of threads and blocks, and at every kind of edge."""
    monkeypatch.setattr(sums, "LEAST_PLACES", 64)
    seed = 0
    for geometry in (GEOMETRIES[2], GEOMETRIES[5], GEOMETRIES[6], GEOMETRIES[10]):
        for layout in ("NCHW", "NHWC"):
            case = Case.of(rng, layout=layout, **geometry)
            with checked(seed := seed + 1):
                got = case.got(name, variant, "cuda-emulator")
            assert np.array_equal(got, case.want(name)), (geometry, layout)

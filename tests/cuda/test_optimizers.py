"""sgd_step and adam_step on CUDA's devices: the oracle accepts every variant, in place or not, however arrays lie."""

from __future__ import annotations

import numpy as np
import pytest
from ready import READY

from tinynet import oracle
from tinynet.devices import array_module, to_host
from tinynet.dispatch import find, variants
from tinynet.kernels.cuda import optimizers
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked
from tinynet.oracle import check

VARIANTS = ["vectors", "simple"]  # the default first
PLAIN = dict(lr=0.5, momentum=0.0, nesterov=False, weight_decay=0.0)
SGD = {"plain": PLAIN, "momentum": {**PLAIN, "momentum": 0.25}, "all": dict(lr=0.5, momentum=0.25, nesterov=True, weight_decay=0.125)}
ADAM = dict(t=3, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, decoupled=False)
emulated = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")


def run(name: str, device: str, variant: str, *arrays, in_place: bool = False, **parameters) -> tuple[np.ndarray, ...]:
    """The outputs on the host. in_place: they are the inputs' own memory; else new arrays, full of NaN."""
    w, g, *state = arrays
    state = [a for a in state if a is not None]
    out = (w, *state) if in_place else tuple(array_module(device).full(w.shape, np.nan, w.dtype) for _ in (w, *state))
    find(name, f"{device}.{variant}").function(*arrays, **parameters, out=out if len(out) > 1 else out[0])
    return tuple(map(to_host, out))


def whole(rng, shape, device: str):
    return array_module(device).asarray(rng.integers(-8, 9, shape).astype(np.float32))


def reals(rng, shape, device: str, dtype=np.float32):
    """w, g, m and s."""
    return [array_module(device).asarray((rng.random(shape) if name == "s" else rng.standard_normal(shape)).astype(dtype)) for name in "wgms"]


def test_the_variants_are_those_of_the_story_on_both_devices():
    for name in ("sgd_step", "adam_step"):
        assert variants(name, "cuda") == variants(name, "cuda-emulator") == VARIANTS


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sgd_step", "adam_step", "adamw_step"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oracle_accepts_every_variant(variant, name, dtype, device):
    def step(*arrays, **parameters):
        xp = array_module(device)
        defaults = dict(momentum=0.0, nesterov=False, weight_decay=0.0) if name == "sgd_step" else dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01 if name == "adamw_step" else 0.0, decoupled=name == "adamw_step")
        found = run(name.replace("adamw", "adam"), device, variant, *(a if a is None else xp.asarray(a) for a in arrays), **{**defaults, **parameters})
        return found if len(found) > 1 else found[0]

    # In float64 the truth of many numbers takes the oracle long
    report = check(step, name, dtype=dtype, cases=lambda case: dtype == "float32" or "many" not in case.label, seed=1)
    assert report, report.explain()
    assert len(report) > 5


# Around where arrays are cut: four numbers, two of float64, 256 threads; with two blocks from 2048 numbers on threads go on.
SIZES = [1, 2, 3, 4, 5, 255, 1023, 1025, 2047, 2049, 4101]


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("how", SGD)
def test_sgd_of_any_size_is_exact_on_whole_numbers(how, device, rng, monkeypatch):
    monkeypatch.setattr(optimizers, "MOST_BLOCKS", 2)
    for size in SIZES:
        w, g, v = (whole(rng, size, device) for _ in "wgv")
        v = v if SGD[how]["momentum"] else None
        want = run("sgd_step", "reference", "numpy", *(a if a is None else to_host(a) for a in (w, g, v)), **SGD[how])
        for variant in VARIANTS:
            assert all(map(np.array_equal, run("sgd_step", device, variant, w, g, v, **SGD[how]), want)), f"{variant}, {size}"


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
def test_adam_of_any_size(dtype, device, rng, monkeypatch):
    monkeypatch.setattr(optimizers, "MOST_BLOCKS", 2)
    for size in SIZES if dtype == np.float32 else SIZES[:6]:
        arrays = reals(rng, size, device, dtype)
        want = oracle.reference.adam_step(*map(to_host, arrays), **ADAM)
        for variant in VARIANTS:
            for got, bounded in zip(run("adam_step", device, variant, *arrays, **ADAM), want, strict=True):
                oracle.assert_matches(got, bounded, name=f"{variant}, {size}")


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_place_gives_the_same_bits_and_leaves_the_gradient_alone(variant, device, rng):
    for shape in ((), (37,), (12, 25)):
        w, g, m, s = reals(rng, shape, device)
        before = to_host(g).copy()
        for name, arrays, options in (*(("sgd_step", (w, g, m if o["momentum"] else None), o) for o in SGD.values()), ("adam_step", (w, g, m, s), ADAM)):
            apart = run(name, device, variant, *arrays, **options)
            copies = [a if a is None or a is g else a.copy() for a in arrays]
            assert all(map(np.array_equal, run(name, device, variant, *copies, in_place=True, **options), apart)), f"{name}, {shape}"
        assert np.array_equal(to_host(g), before)


def layouts(a):
    """The same numbers in the ways they may lie."""
    xp = np if isinstance(a, np.ndarray) else __import__("cupy")
    shifted, wide = xp.zeros(a.size + 1, a.dtype), xp.zeros((a.shape[0] + 2, a.shape[1] + 3), a.dtype)
    shifted[1:], wide[1:-1, 2:-1] = a.reshape(-1), a
    found = {"by columns": xp.asarray(a.T.copy()).T, "every second, backwards": xp.repeat(a[:, ::-1], 2, 1)[:, ::-2], "a part": wide[1:-1, 2:-1], "at no multiple of 16 bytes": shifted[1:].reshape(a.shape)}
    if xp is np:  # no GPU reads numbers that don't lie at multiples of their size
        odd = np.zeros(a.nbytes + 1, np.uint8)
        odd[1:] = a.reshape(-1).view(np.uint8)
        found["at an odd address"] = odd[1:].view(a.dtype).reshape(a.shape)
    return found


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_may_lie_as_they_please(variant, device, rng):
    w, g, v = (whole(rng, (6, 11), device) for _ in "wgv")
    want = run("sgd_step", device, variant, w, g, v, **SGD["all"])
    arrays = reals(rng, (6, 11), device)
    wanted = oracle.reference.adam_step(*map(to_host, arrays), **ADAM)
    for how in layouts(w):
        for turn in range(4):  # each of the three in turn, then all of them
            lying = [layouts(a)[how] if turn in (place, 3) else a for place, a in enumerate((w, g, v))]
            assert all(map(np.array_equal, run("sgd_step", device, variant, *lying, **SGD["all"]), want)), f"{how}, {turn}"
        for got, bounded in zip(run("adam_step", device, variant, *(layouts(a)[how] for a in arrays), **ADAM), wanted, strict=True):
            oracle.assert_matches(got, bounded, name=how)


@pytest.mark.parametrize("device", READY)
def test_a_parameter_of_nothing(device):
    empty = array_module(device).empty((0, 3), np.float32)
    for variant in VARIANTS:
        assert [a.shape for a in run("sgd_step", device, variant, empty, empty, empty, **SGD["all"])] == [(0, 3)] * 2
        assert [a.shape for a in run("adam_step", device, variant, *[empty] * 4, **ADAM)] == [(0, 3)] * 3


@emulated
def test_four_at_a_time_where_memory_allows(rng):
    """An output or the state may be what does not start at a multiple of 16 bytes."""
    def kernel(*starts):
        w, g, v = (np.zeros(16, np.float32)[start : start + 9] for start in starts)
        with checked() as found:
            run("sgd_step", "cuda-emulator", "vectors", w, g, v, in_place=True, **SGD["momentum"])
        return found.launches[0].kernel

    assert kernel(0, 0, 0) == kernel(4, 0, 4) == "sgd_step_vectors"
    assert kernel(1, 0, 0) == kernel(0, 2, 0) == kernel(4, 4, 3) == "sgd_step_simple"


@emulated
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_clean_in_checked_mode(variant, rng, monkeypatch):
    """No race, nothing out of bounds: in random orders of threads and blocks, in place and not, at every kind of edge."""
    monkeypatch.setattr(optimizers, "MOST_BLOCKS", 2)
    for seed, size in enumerate((1, 3, 258, 2051)):
        arrays = reals(rng, size, "cuda-emulator")
        for in_place in (False, True):
            for name, inputs, options in (*(("sgd_step", (*arrays[:2], arrays[2] if o["momentum"] else None), o) for o in SGD.values()), ("adam_step", arrays, ADAM)):
                want = getattr(oracle.reference, name)(*inputs, **options)
                copies = [a if a is None else a.copy() for a in inputs]
                with checked(seed):
                    got = run(name, "cuda-emulator", variant, *copies, in_place=in_place, **options)
                for result, bounded in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
                    oracle.assert_matches(result, bounded, name=f"{name}, {size}")


def test_other_types_are_refused():
    half = np.ones(3, np.float16)
    for name, arrays, options in (("sgd_step", [half] * 3, SGD["all"]), ("adam_step", [half] * 4, ADAM)):
        with pytest.raises(TypeError, match=f"{name}: float16 has no CUDA kernel; use float32 or float64"):
            run(name, "cuda-emulator", "vectors", *arrays, **options)

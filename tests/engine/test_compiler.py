"""What the compiler makes of a kernel (kernels/cpu/compiler.py)."""

from __future__ import annotations

import platform
import re

import numpy as np
import pytest

from tinynet.kernels.cpu import compiler, tiles
from tinynet.kernels.cpu.target import TARGET


@pytest.mark.parametrize("factory, tile, loops", [(tiles.dots, (3, 3), 2), (tiles.gemm, (3, 2), 1), (tiles.conv_dw, (1, 3, 2), 1)], ids=lambda v: getattr(v, "name", str(v)))
def test_a_tile_is_in_the_code_as_often_as_it_is_written(factory, tile, loops):
    """Unrolled, a loop over terms would be there several times, and need registers several times. (dots has a part of a register left.)"""
    text = compiler.kernel_text(factory(*tile, TARGET.lanes(np.float32), np.float32))
    multiply_adds = re.findall(r"call .*@llvm\.fmuladd\.v\d+f32\(", text)
    assert len(multiply_adds) == loops * np.prod(tile)


def busiest_loop(assembly: str) -> tuple[str, list[str]]:
    """The label and the instructions of the loop with most multiply-adds."""
    pieces = re.split(r"^(\.LBB\w+):", assembly, flags=re.M)
    label, body = max(zip(pieces[1::2], pieces[2::2]), key=lambda block: block[1].count("vfmadd"))
    return label, [line.strip() for line in body.split("\n")]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_sums_that_fill_the_registers_stay_there(vectors):
    """Neither copied nor stored in the loop over terms: each of its moves is a load of weights."""
    pixels = min(28, TARGET.registers - 2 - vectors) // vectors
    _, lines = busiest_loop(compiler.kernel_assembly(tiles.conv(1, pixels, vectors, TARGET.lanes(np.float32), 64, 0, np.float32)))
    assert sum("vfmadd" in line for line in lines) == pixels * vectors
    moves = [line for line in lines if re.match(r"vmov[au]p", line)]
    assert len(moves) <= vectors and all(re.search(r"\(%r\w+.*\), %[xyz]mm\d+$", move) for move in moves), "\n".join(lines)


def waits_in_memory(factory, *constants) -> bool:
    """Whether a tile's loop goes to the stack, as it must where registers run out."""
    _, lines = busiest_loop(compiler.kernel_assembly(factory(*constants, np.float32)))
    return any("(%rsp" in line and "mm" in line for line in lines)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
def test_a_tile_of_dot_products_fits_into_the_registers():
    w = TARGET.lanes(np.float32)
    assert not any(waits_in_memory(tiles.dots, *tile, w) for tile in {tiles.best_dots(rows, 1024) for rows in (1, 2, 3, 6, 9, 24)})
    assert waits_in_memory(tiles.dots, TARGET.registers // 4, 4, w), "a register for each sum leaves none for their factors"


SIZES = [*range(1, 15), *range(15, 130, 3)]
AXIS = tiles.Axis(0, 1, 1, 3, 34, 32)
CHOSEN = {  # the tiles that are chosen for all sorts of sizes, and the constants behind them
    "gemm": (tiles.gemm, (), lambda: (tiles.best_gemm(rows, 4 * lanes, 256, np.float32) for rows in SIZES for lanes in SIZES)),
    "gemm_packed": (tiles.gemm_packed, (), lambda: (tiles.best_packed(rows, 4 * lanes, 512, np.float32, 2, packs, turned)[0] for rows in SIZES for lanes in SIZES for packs in (0, 1) for turned in (0, 1))),
    "conv, any step": (tiles.conv, (0, 0), lambda: (tiles.best(rows, columns, lanes, 288, 9, np.float32, step=0) for rows in (1, 2, 8) for columns in SIZES for lanes in (8, 16, 32, 48, 64))),
    "conv, any step, listed": (tiles.conv, (0, 1), lambda: (tiles.best(rows, columns, lanes, 144, 1, np.float32, step=0) for rows in (1, 2, 8) for columns in SIZES for lanes in (8, 16, 32, 48, 64))),
    "conv_dw": (tiles.conv_dw, (), lambda: (tiles.Weights((3, kw, c), (100, c, 1), lanes, 1, (AXIS, AXIS), np.float32).constants for kw in (1, 3, 5, 6, 7) for c in SIZES for lanes in (8, 16, 32, 48, 64))),
}  # fmt: skip


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
@pytest.mark.parametrize("kernel", CHOSEN)
def test_no_tile_is_chosen_whose_sums_do_not_stay_in_registers(kernel):
    """Of those with as many vectors side by side, the ones with most sums."""
    factory, constants, chosen = CHOSEN[kernel]
    found = {tile for tile in chosen() if tile[-1] == TARGET.lanes(np.float32)}
    most = {v: max(np.prod(tile) for tile in found if tile[-2] == v) for v in {tile[-2] for tile in found}}
    assert found and not [tile for tile in found if np.prod(tile) == most[tile[-2]] and waits_in_memory(factory, *tile, *constants)]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
def test_the_innermost_loop_begins_at_a_cache_line():
    assembly = compiler.kernel_assembly(tiles.conv_pool(1, 2, TARGET.lanes(np.float32), 32, 0, np.float32))
    label, _ = busiest_loop(assembly)
    assert re.search(rf"\.p2align\t6\b.*\n{re.escape(label)}:", assembly)

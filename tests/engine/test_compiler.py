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


def waits_in_memory(tile: tuple[int, int]) -> bool:
    """Whether the loop of such a tile of dot products goes to the stack, as it must where registers run out."""
    _, lines = busiest_loop(compiler.kernel_assembly(tiles.dots(*tile, TARGET.lanes(np.float32), np.float32)))
    return any("(%rsp" in line and "mm" in line for line in lines)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
def test_a_tile_of_dot_products_fits_into_the_registers():
    assert not any(waits_in_memory(tile) for tile in {tiles.best_dots(rows, 1024) for rows in (1, 2, 3, 6, 9, 24)})
    assert waits_in_memory((TARGET.registers // 4, 4)), "a register for each sum leaves none for their factors"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's assembly")
def test_the_innermost_loop_begins_at_a_cache_line():
    assembly = compiler.kernel_assembly(tiles.conv_pool(1, 2, TARGET.lanes(np.float32), 32, 0, np.float32))
    label, _ = busiest_loop(assembly)
    assert re.search(rf"\.p2align\t6\b.*\n{re.escape(label)}:", assembly)

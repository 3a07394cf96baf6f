"""What the compiler makes of a kernel (kernels/cpu/compiler.py)."""

from __future__ import annotations

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

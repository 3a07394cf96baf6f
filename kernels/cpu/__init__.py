"""The CPU backend: kernels that numba compiles for this machine's vector units and cores.

Compilations happen at the first call for a dtype or a tile, are announced on stderr while they run,
and are kept on disk (NUMBA_CACHE_DIR, or `__pycache__` beside the source).
"""

from tinynet.kernels.cpu import conv2d, conv2d_simd, conv2d_winograd, matmul, matmul_simd, pool2d, pool2d_simd

__all__ = ["conv2d", "conv2d_simd", "conv2d_winograd", "matmul", "matmul_simd", "pool2d", "pool2d_simd"]

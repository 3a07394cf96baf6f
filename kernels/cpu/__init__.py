"""The CPU backend: kernels that numba compiles for this machine's vector units and cores.

Compilations happen at the first call for a dtype or a tile, are announced on stderr while they run, and are kept on disk
(objects.py says where). When all that is called is there, numba is not imported: that takes longer than a training step. So
the variants `loops`, which it compiles and calls, wait for somebody to ask for them.
"""

from importlib.util import find_spec

from tinynet.kernels.contract import implemented_later

if find_spec("numba") is None:
    raise ModuleNotFoundError("No module named 'numba'", name="numba")

implemented_later(f"{__name__}.conv2d", "conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", device="cpu", variant="loops")
implemented_later(f"{__name__}.matmul", "matmul", device="cpu", variant="loops")
implemented_later(f"{__name__}.pool2d", "max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx", device="cpu", variant="loops")

from tinynet.kernels.cpu import conv2d_pool, conv2d_simd, conv2d_winograd, heap, loss, matmul_simd, optimizers, pool2d_simd, relu  # noqa: E402  (they come after `loops`)

heap.keep_what_is_freed()

__all__ = ["conv2d_pool", "conv2d_simd", "conv2d_winograd", "loss", "matmul_simd", "optimizers", "pool2d_simd", "relu"]

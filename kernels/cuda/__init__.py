"""The CUDA backend: kernels in .cu files, launched on a GPU through CuPy, or on the emulator where there is none.

Both devices, `cuda` and `cuda-emulator`, are registered here; which one a launch goes to, its arrays say (launch.py).
"""

from tinynet.kernels.cuda import conv2d, conv2d_pool, loss, matmul, optimizers, pool2d, relu, sums

FAMILIES = (matmul, conv2d, sums, pool2d, loss, optimizers, relu)  # each a launcher and its .cu file

__all__ = ["FAMILIES", "conv2d", "conv2d_pool", "loss", "matmul", "optimizers", "pool2d", "relu", "sums"]

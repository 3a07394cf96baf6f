"""The reference backend: numpy, any float dtype, the shortest correct body of each kernel.

It is the executable definition. In float64 it is the truth that all other kernels are held against.
"""

from tinynet.kernels.reference import conv2d, conv2d_pool, loss, matmul, optimizers, pool2d, relu

__all__ = ["conv2d", "conv2d_pool", "loss", "matmul", "optimizers", "pool2d", "relu"]

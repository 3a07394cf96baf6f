"""tinynet: a small autograd engine whose kernels are written in Python.

Read it in this order, one number from Python to register: tensor.py, op.py, ops/conv2d.py,
dispatch.py, then kernels/: contract.py, reference/conv2d.py, cpu/conv2d.py.
"""

from tinynet import functional, nn, ops, optim
from tinynet.devices import devices
from tinynet.dispatch import use
from tinynet.inputs import tensor
from tinynet.mode import no_grad
from tinynet.nn import Parameter
from tinynet.plan import compile
from tinynet.random import manual_seed
from tinynet.storage import load, save
from tinynet.tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "Parameter",
    "Tensor",
    "compile",
    "devices",
    "functional",
    "load",
    "manual_seed",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save",
    "tensor",
    "use",
]

"""Layers: modules that own parameters and call the ops of `functional`.

A Module finds its parameters and sub-modules among its own attributes, in the order in which
they were set; their names, joined by dots, are the keys of `state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import wraps
from math import sqrt

import numpy as np

from tinynet import functional as F
from tinynet import guard
from tinynet.devices import here, moved, to_host
from tinynet.geometry import check_layout, is_int, pads, pair
from tinynet.inputs import tensor
from tinynet.mode import no_grad, tracing, trainings
from tinynet.random import generator
from tinynet.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: it requires a gradient, and modules find it by its type.

    It copies its values, which may be all that `tinynet.tensor` takes.
    """

    __slots__ = ()

    def __init__(self, data, requires_grad: bool = True, device: str | None = None):
        values = tensor(data, device=device)  # memory of its own: optimisers edit it in place
        super().__init__(values.data, requires_grad, values.device)


class Module:
    """Base class of everything with parameters. Write `forward`; set layers as attributes in `__init__`."""

    training = True

    def __setattr__(self, name: str, value) -> None:
        if isinstance(value, Tensor) and not isinstance(value, Parameter) and isinstance(vars(self).get(name), Parameter):
            raise TypeError(f"{type(self).__name__}: {name} is a Parameter, and a Tensor would take its place untrained; assign a Parameter, or change it with optim or load_state_dict")
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if any(isinstance(v, (Parameter, Module)) for v in inside):
            raise TypeError(f"{type(self).__name__}: layers and parameters in a {type(value).__name__} ({name}) would not be found; use a Sequential, or an attribute for each")
        super().__setattr__(name, value)
        if name == "training":
            trainings.count += 1  # compiled functions choose their plan by it

    def forward(self, x):
        raise TypeError(f"{type(self).__name__} has no forward(); a Module must define one")

    def __call__(self, *args, **kwargs):
        trace = tracing()
        if trace is not None:
            trace.module(self)
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once, however many layers share it."""
        return iter({id(parameter): parameter for _, parameter in self.named_parameters()}.values())

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter, by name."""
        return {name: np.array(to_host(p.data)) for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copies values into the parameters: all of them or, if anything doesn't fit, none.

        Raises ValueError that lists every missing or unknown name, wrong shape and wrong dtype.
        """
        parameters = dict(self.named_parameters())
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: expected a mapping of names to arrays, as state_dict() gives; got {type(state).__name__}")
        values = {name: np.asarray(value) for name, value in state.items()}
        wrong = [f"{name} is missing" for name in parameters if name not in values]
        wrong += [f"{name} is not a parameter" for name in values if name not in parameters]
        for name in parameters.keys() & values.keys():
            have, got = parameters[name], values[name]
            if (have.shape, have.dtype) != (got.shape, got.dtype):
                wrong.append(f"{name} is {have.dtype} {have.shape}, the state holds {got.dtype} {got.shape}")
        if wrong:
            raise ValueError(f"load_state_dict: the state does not fit {type(self).__name__}: {'; '.join(sorted(wrong))}; its parameters are {', '.join(parameters)}")
        trace = tracing()
        if trace is not None:
            trace.refuse("it loads weights while it runs, which a replay would not do again; load them outside")
        for name, parameter in parameters.items():
            with here(parameter.device), guard.writable(parameter) as array:
                array[...] = moved(values[name], parameter.device)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> "Module":
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def to(self, device: str) -> "Module":
        """Moves the parameters to a device, in place; optimisers made before keep working."""
        with no_grad():
            for parameter in self.parameters():
                moved = Tensor(parameter.data, device=parameter.device).to(device)
                parameter.data, parameter.device, parameter.grad = moved.data, device, None
        return self

    def extra(self) -> str:
        """What `repr` shows between the parentheses of a layer."""
        return ""

    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        inside = "\n" + "\n".join(lines) + "\n" if lines else self.extra()
        return f"{type(self).__name__}({inside})"


class Sequential(Module):
    """Modules one after the other: `Sequential(Conv2d(3, 32, 3), ReLU(), ...)`; more with `add`."""

    def __init__(self, *modules: Module):
        for module in modules:
            self.add(module)

    def add(self, module: Module) -> "Sequential":
        if not isinstance(module, Module):
            raise TypeError(f"Sequential: expected a Module; got {type(module).__name__}; wrap a function in a Module, or use nn.ReLU(), nn.Flatten(), ...")
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return len(list(self.children()))

    def __getitem__(self, index: int | slice) -> Module:
        modules = [module for _, module in self.children()]
        return Sequential(*modules[index]) if isinstance(index, slice) else modules[index]

    def forward(self, x):
        for _, module in self.children():
            x = module(x)
        return x


def _uniform(shape: tuple[int, ...], fan_in: int) -> Parameter:
    """PyTorch's default for weights and biases: uniform in +-1/sqrt(fan_in)."""
    bound = 1.0 / sqrt(fan_in)
    return Parameter(generator().uniform(-bound, bound, shape).astype(np.float32))


def _check_positive(value: int, where: str, name: str) -> None:
    if not is_int(value, 1):
        raise ValueError(f"{where}: {name} must be an int >= 1; got {value!r}")


def _keywords(init):
    """A layer's `__init__`, which names what may be given by position, and the rest, where Python's own error counts them."""
    first, rest = init.__code__.co_varnames[1 : init.__code__.co_argcount], list(init.__kwdefaults__)

    @wraps(init)
    def checked(self, *args, **kwargs):
        if len(args) > len(first):
            raise TypeError(f"{type(self).__name__}: {len(args)} arguments were given by position; only {', '.join(first)} can be: give {', '.join(rest)} by keyword, {rest[0]}={args[len(first)]!r} for example")
        init(self, *args, **kwargs)

    return checked


class Conv2d(Module):
    """weight (out_channels, in_channels/groups, kh, kw), bias (out_channels,); see ops/conv2d.py."""

    @_keywords
    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1, groups=1, bias=True, layout="NCHW"):
        for name, value in dict(in_channels=in_channels, out_channels=out_channels, groups=groups).items():
            _check_positive(value, "Conv2d", name)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: {in_channels} input and {out_channels} output channels can't be split into {groups} groups; use multiples of groups")
        check_layout(layout, "Conv2d")
        rows, columns = kernel = pair(kernel_size, "Conv2d", "kernel_size")
        pads(padding, "Conv2d", kernel, kernel, pair(stride, "Conv2d", "stride"), pair(dilation, "Conv2d", "dilation"))
        fan_in = in_channels // groups * rows * columns
        self.weight = _uniform((out_channels, in_channels // groups, rows, columns), fan_in)
        self.bias = _uniform((out_channels,), fan_in) if bias else None
        self.options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, **self.options)

    def extra(self) -> str:
        out, within, rows, columns = self.weight.shape
        return f"{within * self.options['groups']}, {out}, ({rows}, {columns}), " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class Linear(Module):
    """weight (out_features, in_features), bias (out_features,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        _check_positive(in_features, "Linear", "in_features"), _check_positive(out_features, "Linear", "out_features")
        self.weight = _uniform((out_features, in_features), in_features)
        self.bias = _uniform((out_features,), in_features) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def extra(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


class _Pool2d(Module):
    def __init__(self, kernel_size, **options):
        name = type(self).__name__
        kernel, spread = pair(kernel_size, name, "kernel_size"), pair(options.get("dilation", 1), name, "dilation")
        stride = kernel if options["stride"] is None else pair(options["stride"], name, "stride")
        pads(options["padding"], name, kernel, kernel, stride, spread), check_layout(options["layout"], name)
        self.kernel_size = kernel_size
        self.options = options

    def extra(self) -> str:
        return f"{self.kernel_size}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class MaxPool2d(_Pool2d):
    @_keywords
    def __init__(self, kernel_size, *, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NCHW"):
        super().__init__(kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, layout=layout)

    def forward(self, x):
        return F.max_pool2d(x, self.kernel_size, **self.options)


class AvgPool2d(_Pool2d):
    @_keywords
    def __init__(self, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True, layout="NCHW"):
        super().__init__(kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad, layout=layout)

    def forward(self, x):
        return F.avg_pool2d(x, self.kernel_size, **self.options)


class ReLU(Module):
    def forward(self, x):
        return F.relu(x)


class Flatten(Module):
    """(N, ...) to (N, product of the rest)."""

    def forward(self, x):
        return F.flatten(x)


class Softmax(Module):
    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x):
        return F.softmax(x, axis=self.axis)


class LogSoftmax(Module):
    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x):
        return F.log_softmax(x, axis=self.axis)

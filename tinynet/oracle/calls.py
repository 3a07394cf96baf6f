"""A call of a kernel or op, written out in full: every array in its place, every parameter, geometry as the contract wants it.

Callers may leave out what has a default and write `padding="same"`; planted faults and hypotheses
need to know what that means.
"""

from __future__ import annotations

from inspect import Parameter, signature

from tinynet.geometry import PoolWindow, Window
from tinynet.oracle import reference


NUMBERS = ("axis", "exponent", "start")  # parameters that may come by position, and are no arrays


def input_names(name: str) -> list[str]:
    """The arrays of `name`, in order."""
    return [p.name for p in signature(reference.find(name)).parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD and p.name not in NUMBERS]


def completed(name: str, arrays: tuple, parameters: dict) -> tuple[tuple, dict]:
    """(arrays, parameters) of the same call with nothing left out. Raises TypeError for a call that `name` does not have."""
    function = reference.find(name)
    bound = signature(function).bind(*arrays, **parameters)
    bound.apply_defaults()
    names = input_names(name)
    given = tuple(bound.arguments[n] for n in names)
    rest = {n: v for n, v in bound.arguments.items() if n not in (*names, "dtype", "wrt", "ties", "window")}
    rest |= bound.arguments.get("window", {})  # avg_pool2d_grad takes its geometry as **window
    return given, _with_geometry(name, given, names, rest)


def _with_geometry(name: str, arrays, names, parameters: dict) -> dict:
    at = dict(zip(names, arrays))
    if name in ("conv2d", "conv2d_relu_max_pool2d", "conv2d_dx", "conv2d_dw", "conv2d_grad"):
        x_shape = tuple(parameters["x_shape"]) if "x_shape" in parameters else at["x"].shape
        weight_shape = tuple(parameters["weight_shape"]) if "weight_shape" in parameters else at["weight"].shape
        keys = ("stride", "padding", "dilation", "groups", "layout")
        return {**parameters, **Window(x_shape, weight_shape, *(parameters[k] for k in keys), where=name)}
    if name.startswith(("max_pool2d", "avg_pool2d")) and name != "max_pool2d_dx":
        parameters = {"stride": None, "padding": 0, "ceil_mode": False, "layout": "NCHW", **parameters}
        if name.startswith("max"):
            parameters.setdefault("dilation", 1)
        else:
            parameters.setdefault("count_include_pad", True)
        x_shape = tuple(parameters["x_shape"]) if "x_shape" in parameters else at["x"].shape
        keys = ("kernel_size", "stride", "padding", "ceil_mode", "layout")
        return {**parameters, **PoolWindow(x_shape, *(parameters[k] for k in keys), where=name, dilation=parameters.get("dilation"))}
    return parameters

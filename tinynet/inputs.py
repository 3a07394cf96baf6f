"""What users hand in, made into what ops compute on: `tensor(values)`, and the check of an op's inputs.

dtypes are never mixed or cast in silence, and a number never changes a tensor's dtype.
"""

from __future__ import annotations

import numpy as np

from tinynet.devices import here, moved
from tinynet.mode import tracing
from tinynet.tensor import FLOATS, Tensor

_NUMBERS = (bool, int, float)  # np.float64 is one of them, by inheritance
_INTEGERS = "iub"  # the kinds of integer dtypes, bool with them


def tensor(values, dtype=None, *, requires_grad: bool = False, device: str | None = None) -> Tensor:
    """A tensor with a copy of `values`: a number, nested lists, an array, or another tensor.

    An array keeps its dtype; Python floats become float32. The device is "cpu", or that of
    the other tensor. Raises TypeError for a dtype that tinynet has no kernels for (float16,
    complex, strings).
    """
    if isinstance(values, Tensor):
        device, values = device or values.device, values.data
    device = device or "cpu"
    was_array = hasattr(values, "dtype")
    try:
        with here(device) as xp:
            array = xp.array(moved(values, device) if was_array else values, dtype=dtype, order="C")
            if dtype is None and not was_array and array.dtype == np.float64:
                array = array.astype(np.float32)
    except ValueError as error:
        raise ValueError(f"tensor: these values make no array of numbers ({error}); give rows of equal length") from None
    check_supported(array.dtype, "tensor")
    made = Tensor(array, requires_grad, device)
    trace = tracing()
    if trace is not None:
        trace.copied(values, made)
    return made


def check_supported(dtype: np.dtype, where: str) -> None:
    if dtype not in FLOATS and dtype.kind not in _INTEGERS:
        raise TypeError(f"{where}: {dtype} is not supported; use float32 or float64 (or integers, for class indices): dtype=np.float32")


def prepare(op, values: tuple) -> tuple[list, list, str, bool]:
    """The inputs of an op as arrays (or numbers, or None), the tensors among them, their one device,
    and whether any requires a gradient.

    Raises TypeError for what an op can't take, ValueError where tensors live on two devices.
    """
    arrays, tensors = [], []
    device = dtype = None
    needed = False
    for name, value in zip(op.inputs, values):
        if isinstance(value, Tensor):
            if value.device != device:
                if device is not None:
                    raise ValueError(f"{op.name}: {name} is on {value.device!r}, the inputs before it on {device!r}; move one with .to(...)")
                device = value.device
            needed = needed or value._requires_grad
            tensors.append(value)
            value = value.data
        else:
            tensors.append(None)
            value = _plain(op, name, value)
        arrays.append(value)
        found = getattr(value, "dtype", dtype)
        if found is not dtype and (dtype is None or found != dtype) and name not in op.integer_inputs:
            _check_dtype(op, name, found, dtype)
            dtype = found
    if dtype is None or dtype not in FLOATS:
        _check_numbers(op, arrays, dtype)
    return arrays, tensors, device or "cpu", needed


def _plain(op, name: str, value):
    """An input that is no tensor: an array, a number where the op takes one, or None where it may be left out."""
    if isinstance(value, np.ndarray):
        return value
    if value is None and name in op.optional:
        return None
    if isinstance(value, np.generic):
        if not op.numbers:
            return np.asarray(value)
        value = value.item()  # numpy's scalars too: as plain numbers they never change a dtype
    if isinstance(value, _NUMBERS) and op.numbers:
        return value
    kind = type(value)
    came = "None" if value is None else kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    wanted = "a Tensor, an array or a number" if op.numbers else "a Tensor or an array"
    advice = f"{op.name} needs it" if value is None else "wrap it with tinynet.tensor(...)"
    raise TypeError(f"{op.name}: {name} must be {wanted}; got {came}; {advice}")


def _check_dtype(op, name: str, found, before) -> None:
    if found not in FLOATS and found.kind not in op.also:
        raise TypeError(f"{op.name}: {name} must be float32 or float64; got {found}; convert it with .astype(np.float32)")
    if before is not None:
        raise TypeError(f"{op.name}: {name} is {found}, the inputs before it are {before}; dtypes are never mixed or cast in silence: use .astype(...) on one")


def _check_numbers(op, arrays: list, dtype) -> None:
    if dtype is None:
        raise TypeError(f"{op.name}: one of {', '.join(op.inputs)} must be a Tensor or an array; got numbers alone; wrap one with tinynet.tensor(...)")
    if any(isinstance(a, float) for a in arrays):
        raise TypeError(f"{op.name}: a Python float never changes a tensor's dtype, and {dtype} can't hold one; use .astype(np.float32) first")

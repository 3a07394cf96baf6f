"""Weights on disk, as safetensors: `save(model, path)`, `model.load_state_dict(load(path))`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinynet.devices import to_host
from tinynet.tensor import Tensor


def _safetensors():
    try:
        import safetensors.numpy as library
    except ModuleNotFoundError:
        raise ModuleNotFoundError("save and load need safetensors, which is not installed; pip install safetensors", name="safetensors") from None
    return library


def save(source, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a module's parameters, or a mapping of names to tensors or arrays.

    metadata: strings that are kept beside the arrays. The file appears whole or not at all: it is
    written under another name and renamed.
    """
    state = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(state, Mapping):
        raise TypeError(f"save: expected a Module or a mapping of names to arrays; got {type(source).__name__}")
    for what, value in [("name", n) for n in state] + [("entry of metadata", v) for pair in (metadata or {}).items() for v in pair]:
        if not isinstance(value, str):
            raise TypeError(f"save: every {what} must be a string; got {value!r}")
    arrays = {name: np.asarray(to_host(value.data if isinstance(value, Tensor) else value), order="C") for name, value in state.items()}
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {path.parent}; create it first")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        _safetensors().save_file(arrays, unfinished, metadata=dict(metadata or {}) or None)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file that `save`, or any other writer of safetensors, has written."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"load: there is no file {path}")
    library = _safetensors()
    try:
        return library.load_file(path)
    except Exception as error:
        raise ValueError(f"load: {path} is not a whole safetensors file ({error}); was it written by tinynet.save?") from error

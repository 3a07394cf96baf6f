"""Weights on disk: whole or not at all, and readable by anybody's safetensors."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors
import safetensors.torch

import tinynet
from tinynet import nn


def test_a_module_is_saved_and_loaded_bit_for_bit(tmp_path):
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    path = tinynet.save(first, tmp_path / "w.safetensors")
    second.load_state_dict(tinynet.load(path))
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first.parameters(), second.parameters()))


def test_any_array_comes_back_as_it_was(tmp_path, rng):
    state = {"strided": rng.standard_normal((4, 6))[:, ::2], "fortran": np.asfortranarray(rng.standard_normal((3, 2))), "0-d": np.float64(2.5), "classes": np.arange(3), "tensor": tinynet.tensor([1.0]), "empty": np.zeros((0, 2), np.float32)}
    back = tinynet.load(tinynet.save(state, tmp_path / "a"))
    assert list(sorted(back)) == sorted(state)
    for name, value in state.items():
        want = np.asarray(value)
        assert back[name].dtype == want.dtype and back[name].shape == want.shape and np.array_equal(back[name], want), name


def test_other_libraries_read_the_file_and_its_metadata(tmp_path):
    layer = nn.Linear(2, 3)
    path = tinynet.save(layer, tmp_path / "w", {"epoch": "3"})
    assert np.array_equal(safetensors.torch.load_file(path)["weight"].numpy(), layer.weight.data)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"epoch": "3"}


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tinynet.save({"a": np.ones(3)}, tmp_path / "w")
    before = path.read_bytes()
    from tinynet import storage

    class Full:
        @staticmethod
        def save_file(arrays, name, metadata):
            name.write_bytes(b"half a fi")
            raise OSError("no space left on device")

    monkeypatch.setattr(storage, "_safetensors", lambda: Full)
    with pytest.raises(OSError, match="no space"):
        tinynet.save({"a": np.zeros(3)}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w"]


def test_a_broken_file_is_said_to_be_one(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(tinynet.save({"a": np.ones(100)}, path).read_bytes()[:200])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        tinynet.load(path)

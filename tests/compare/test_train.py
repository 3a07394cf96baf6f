"""`tinynet train`: any network on any device, repeatable, saved whole, stopped with a reason."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tinynet
from tinynet import nn
from tinynet.train import batches, fit


def run(*arguments):
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", "from tinynet.cli import main; main()", "train", *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("network, device", [("pytorch", "cpu"), ("keras", "reference")])
def test_an_epoch_learns_and_its_weights_are_saved(tmp_path, network, device):
    done = run("--network", network, "--device", device, "--epochs", "1", "--save", str(tmp_path / "w.safetensors"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"][0]["accuracy"] > 0.5
    state = tinynet.load(tmp_path / "w.safetensors")
    assert sum(a.size for a in state.values()) == 11_290
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--network", "lenet"], "there is no network 'lenet'"),
        (["--network", "keras,pytorch"], "one network is wanted"),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--save", "/no/such/folder/w"], "there is no folder /no/such/folder"),
        (["--save", "/"], "is a folder; give the name of a file"),
    ],
)
def test_wrong_arguments_are_refused(arguments, expected):
    done = run(*arguments)
    assert done.returncode == 2 and expected in done.stderr


def test_each_epoch_meets_every_image_once_in_an_order_of_its_own():
    first, second = (np.concatenate(list(batches(100, 32, seed=1, epoch=e))) for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first != second).any()
    assert (first == np.concatenate(list(batches(100, 32, seed=1, epoch=0)))).all()


def test_a_loss_that_is_not_finite_stops_with_what_to_do():
    model = nn.Linear(2, 2)
    data = (np.full((4, 2), np.inf, np.float32), np.zeros(4, np.int64))
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="smaller learning rate"):
        list(fit(model, tinynet.functional.cross_entropy, tinynet.optim.SGD(model.parameters(), 0.1), data, data, epochs=1))

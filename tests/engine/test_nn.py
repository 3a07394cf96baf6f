"""Modules: found in order, saved and loaded whole or not at all, initialised as PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

import tinynet
from tinynet import Parameter, Tensor, nn
from tinynet import functional as F


class Net(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(3, 4, (3, 2), padding="same")
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 5, 7), nn.LogSoftmax())
        self.scale = Parameter(np.ones(1, np.float32))

    def forward(self, x):
        return self.head(F.relu(self.conv(x)) * self.scale)


def images(rng):
    return rng.standard_normal((2, 3, 6, 5)).astype(np.float32)


def test_parameters_are_found_in_the_order_in_which_they_were_set():
    assert [name for name, _ in Net().named_parameters()] == ["conv.weight", "conv.bias", "head.1.weight", "head.1.bias", "scale"]
    assert list(Net().state_dict()) == [name for name, _ in Net().named_parameters()]


def test_a_shared_layer_is_one_parameter_with_two_names():
    class Tied(nn.Module):
        def __init__(self):
            self.first = self.second = nn.Linear(3, 3)

        def forward(self, x):
            return self.second(self.first(x))

    tied = Tied()
    assert len(list(tied.named_parameters())) == 4 and len(list(tied.parameters())) == 2
    tied(np.ones((2, 3), np.float32)).sum().backward()
    assert tied.first.weight.grad is not None


def test_a_state_dict_is_a_copy_and_loads_back_bit_for_bit(rng):
    first, second = Net(), Net()
    x = images(rng)
    state = first.state_dict()
    assert not np.array_equal(first(x).numpy(), second(x).numpy())
    second.load_state_dict(state)
    assert np.array_equal(first(x).numpy(), second(x).numpy())
    state["scale"][:] = 5
    assert first.scale.item() == second.scale.item() == 1


def test_a_state_that_does_not_fit_changes_nothing():
    net = Net()
    before = net.state_dict()
    with pytest.raises(ValueError, match="scale is missing"):
        net.load_state_dict({name: a + 1 for name, a in before.items() if name != "scale"})
    assert all(np.array_equal(a, before[name]) for name, a in net.state_dict().items())


def test_training_mode_reaches_every_module():
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 64, 3, groups=1), nn.Conv2d(8, 64, (2, 5), groups=4), nn.Linear(50, 400)], ids=repr)
def test_initial_weights_are_pytorchs_default(layer):
    """Uniform in +-1/sqrt(fan_in), weights and biases."""
    bound = 1 / np.sqrt(np.prod(layer.weight.shape[1:]))
    for p in layer.parameters():
        assert p.dtype == np.float32 and p.requires_grad
        assert 0.8 * bound < np.abs(p.data).max() <= bound and abs(p.data.mean()) < 0.3 * bound


def test_sequential_is_indexed_sliced_and_extended(rng):
    stack = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).add(nn.Linear(4, 2))
    x = rng.standard_normal((5, 3)).astype(np.float32)
    assert len(stack) == 3 and isinstance(stack[1], nn.ReLU) and len(stack[:2]) == 2
    assert np.array_equal(stack(x).numpy(), stack[2](stack[:2](x)).numpy())


def test_layers_are_their_ops(rng):
    x, rows = images(rng), rng.standard_normal((4, 6)).astype(np.float32)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    assert conv.bias is None and np.array_equal(conv(x).numpy(), F.conv2d(x, conv.weight, stride=2, padding=1).numpy())
    assert np.array_equal(nn.MaxPool2d(2, stride=1)(x).numpy(), F.max_pool2d(x, 2, stride=1).numpy())
    assert np.array_equal(nn.AvgPool2d(3, padding=1, count_include_pad=False)(x).numpy(), F.avg_pool2d(x, 3, padding=1, count_include_pad=False).numpy())
    assert np.array_equal(nn.Softmax()(rows).numpy(), F.softmax(rows).numpy())
    assert np.array_equal(nn.LogSoftmax(0)(rows).numpy(), F.log_softmax(rows, 0).numpy())
    assert nn.Flatten()(x).shape == (2, 90)


def test_to_moves_every_parameter_and_keeps_optimisers_working(rng):
    net = Net().to("reference")
    optimizer = tinynet.optim.SGD(net.parameters(), 0.1)
    assert {p.device for p in net.parameters()} == {"reference"}
    net(Tensor(images(rng), device="reference")).sum().backward()
    before = net.scale.data.copy()
    optimizer.step()
    assert (net.scale.data != before).all()


def test_repr_shows_the_tree_of_layers():
    text = repr(Net())
    assert "(conv): Conv2d(3, 4, (3, 2), stride=1, padding='same'" in text and "(1): Linear(120, 7, bias=True)" in text

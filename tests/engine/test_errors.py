"""Every wrong call gives a message that says where, what was expected, what came, and what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinynet
from tinynet import Parameter, Tensor, nn, optim, tensor
from tinynet import functional as F
from tinynet.op import op


def f32(*shape):
    return np.zeros(shape, np.float32)


def f64(*shape):
    return np.zeros(shape)


IMAGES = f32(2, 3, 32, 30)
ROWS = f32(4, 5)
CLASSES = np.array([0, 1, 2, 3])


class Unfinished(nn.Module):
    pass


def module_with(**attributes):
    module = nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(module, name, value)


def wrong_gradient():
    p = Parameter(f32(2, 3))
    p.grad = f32(3)
    optim.SGD([p]).step()


# error, a call, and what must stand in its message, in any order
TABLE = {
    # conv2d
    "conv2d: channels": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 4, 3, 3)), "conv2d: weight has 4 input channels, x has 3 (x is (2, 3, 32, 30), NCHW); pass x with that many channels, or a weight made for them"),
    "conv2d: layout swapped": (ValueError, lambda: F.conv2d(f32(2, 32, 30, 3), f32(8, 3, 3, 3)), 'x has 32 | x looks like NHWC: pass layout="NHWC" or transpose it'),
    "conv2d: layout swapped the other way": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), layout="NHWC"), 'x looks like NCHW: pass layout="NCHW" or transpose it'),
    "conv2d: groups": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), groups=2), "conv2d: weight has 6 input channels (2 groups of 3), x has 3"),
    "conv2d: filters and groups": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 1, 3, 3), groups=3), "conv2d: 8 output channels can't be split into 3 groups; use a multiple of groups"),
    "conv2d: groups are a number": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), groups=1.0), "conv2d: groups must be an int >= 1; got 1.0"),
    "conv2d: 3 axes": (ValueError, lambda: F.conv2d(f32(3, 32, 32), f32(8, 3, 3, 3)), "conv2d: x must have 4 axes, NCHW (images, channels, rows, columns); got shape (3, 32, 32) | a single image needs an axis of length 1 in front"),
    "conv2d: weight axes": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3)), "conv2d: weight must have 4 axes (out, in/groups, kernel rows, kernel columns); got shape (8, 3, 3)"),
    "conv2d: empty weight": (ValueError, lambda: F.conv2d(IMAGES, f32(0, 3, 3, 3)), "conv2d: no axis of weight may be empty; got shape (0, 3, 3, 3)"),
    "conv2d: empty images": (ValueError, lambda: F.conv2d(f32(2, 3, 0, 5), f32(1, 3, 1, 1), padding=1), "conv2d: the images of x have no pixels or no channels (its shape is (2, 3, 0, 5), NCHW); only the batch may be empty"),
    "conv2d: bias": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), f32(3)), "conv2d: bias must have shape (8,), one value for each filter; got (3,)"),
    "conv2d: layout": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), layout="nchw"), "conv2d: layout must be \"NCHW\" or \"NHWC\"; got 'nchw'"),
    "conv2d: stride 0": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), stride=0), "conv2d: stride must be an int >= 1 or a pair of them (rows, columns); got 0"),
    "conv2d: stride of three": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), stride=(1, 1, 1)), "conv2d: stride must be | got (1, 1, 1)"),
    "conv2d: stride of a float": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), stride=1.5), "conv2d: stride must be | got 1.5"),
    "conv2d: dilation": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), dilation=(0, 1)), "conv2d: dilation must be | got (0, 1)"),
    "conv2d: padding word": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), padding="SAME"), 'conv2d: padding must be an int >= 0, a pair (rows, columns), "same", "valid" or ((top, bottom), (left, right)); got \'SAME\''),
    "conv2d: negative padding": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), padding=-1), "conv2d: padding must be an int >= 0 | got -1"),
    "conv2d: flat padding": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), padding=(1, 1, 2, 2)), "((top, bottom), (left, right)); got (1, 1, 2, 2)"),
    "conv2d: negative side": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), padding=((0, -1), (0, 0))), "padding must be | got ((0, -1), (0, 0))"),
    "conv2d: no padding at all": (ValueError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), padding=None), "padding must be | got None"),
    "conv2d: does not fit": (ValueError, lambda: F.conv2d(f32(1, 1, 3, 9), f32(1, 1, 3, 3), dilation=2), "conv2d: a window of 5 rows (kernel 3, dilation 2) does not fit into 3 padded rows (3 + 0 + 0); use a smaller kernel or more padding"),
    "conv2d: a number": (TypeError, lambda: F.conv2d(3.0, f32(8, 3, 3, 3)), "conv2d: x must be a Tensor or an array; got float; wrap it with tinynet.tensor(...)"),
    "conv2d: a list": (TypeError, lambda: F.conv2d(IMAGES, [[1.0]]), "conv2d: weight must be a Tensor or an array; got list; wrap it with tinynet.tensor(...)"),
    "conv2d: None": (TypeError, lambda: F.conv2d(IMAGES, None), "conv2d: weight must be a Tensor or an array; got None"),
    "conv2d: no weight": (TypeError, lambda: F.conv2d(IMAGES), "conv2d: input 'weight' is missing; it takes (x, weight, bias)"),
    "conv2d: uint8 images": (TypeError, lambda: F.conv2d(np.zeros((1, 3, 8, 8), np.uint8), f32(8, 3, 3, 3)), "conv2d: x must be float32 or float64; got uint8; convert it with .astype(np.float32)"),
    "conv2d: float16": (TypeError, lambda: F.conv2d(IMAGES.astype(np.float16), f32(8, 3, 3, 3)), "conv2d: x must be float32 or float64; got float16"),
    "conv2d: dtypes": (TypeError, lambda: F.conv2d(IMAGES, f64(8, 3, 3, 3)), "conv2d: weight is float64, the inputs before it are float32; dtypes are never mixed or cast in silence: use .astype(...) on one"),
    "conv2d: devices": (ValueError, lambda: F.conv2d(Tensor(IMAGES), Tensor(f32(8, 3, 3, 3), device="reference")), "conv2d: weight is on 'reference', the inputs before it on 'cpu'; move one with .to(...)"),
    "conv2d: unknown parameter": (TypeError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), strides=2), "conv2d: there is no parameter 'strides'; it takes stride, padding, dilation, groups, layout"),
    "conv2d: parameter by position": (TypeError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), None, 2), "conv2d: 4 arguments were given by position; only x, weight, bias can be: give the rest by keyword"),
    "conv2d: input twice": (TypeError, lambda: F.conv2d(IMAGES, f32(8, 3, 3, 3), weight=1), "conv2d: weight was given twice, by position and by keyword"),
    # pooling
    "max_pool2d: kernel": (ValueError, lambda: F.max_pool2d(IMAGES, 0), "max_pool2d: kernel_size must be an int >= 1 or a pair of them (rows, columns); got 0"),
    "max_pool2d: no kernel": (TypeError, lambda: F.max_pool2d(IMAGES), "max_pool2d: parameter 'kernel_size' is missing; it takes kernel_size, stride, padding, dilation, ceil_mode, layout"),
    "max_pool2d: kernel twice": (TypeError, lambda: F.max_pool2d(IMAGES, 2, kernel_size=2), "max_pool2d: kernel_size was given twice, by position and by keyword"),
    "max_pool2d: axes": (ValueError, lambda: F.max_pool2d(ROWS, 2), "max_pool2d: x must have 4 axes, NCHW | got shape (4, 5)"),
    "max_pool2d: does not fit": (ValueError, lambda: F.max_pool2d(IMAGES, 40), "max_pool2d: a window of 40 rows (kernel 40, dilation 1) does not fit into 32 padded rows"),
    "avg_pool2d: stride": (ValueError, lambda: F.avg_pool2d(IMAGES, 2, stride=(2, 0)), "avg_pool2d: stride must be | got (2, 0)"),
    "avg_pool2d: dilation": (TypeError, lambda: F.avg_pool2d(IMAGES, 2, dilation=2), "avg_pool2d: there is no parameter 'dilation'; it takes kernel_size, stride, padding, ceil_mode, count_include_pad, layout"),
    "avg_pool2d: no channels": (ValueError, lambda: F.avg_pool2d(f32(2, 0, 4, 4), 2), "avg_pool2d: the images of x have no pixels or no channels"),
    # matrices
    "linear: features": (ValueError, lambda: F.linear(ROWS, f32(3, 4)), "linear: weight takes 4 features, x has 5 (x is (4, 5), weight is (3, 4): (out, in)); flatten x first?"),
    "linear: weight axes": (ValueError, lambda: F.linear(ROWS, f32(5)), "linear: weight must have 2 axes (out, in); got shape (5,)"),
    "linear: bias": (ValueError, lambda: F.linear(ROWS, f32(3, 5), f32(5)), "linear: bias must have shape (3,), one value for each output; got (5,)"),
    "linear: 0-d": (ValueError, lambda: F.linear(f32(), f32(3, 5)), "linear: weight takes 5 features, x has no axis"),
    "matmul: inner sizes": (ValueError, lambda: F.matmul(ROWS, f32(4, 3)), "matmul: a has 5 columns, b has 4 rows (a is (4, 5), b is (4, 3)); they must be equal: transpose one?"),
    "matmul: vectors": (ValueError, lambda: tensor([1.0]) @ tensor([1.0]), "matmul: needs two tensors of at least 2 axes; got (1,) and (1,); make a vector a row with reshape(1, -1) or a column with reshape(-1, 1)"),
    "matmul: batches": (ValueError, lambda: F.matmul(f32(2, 3, 4), f32(3, 4, 5)), "matmul: the batches (2,) and (3,) don't fit (a is (2, 3, 4), b is (3, 4, 5)); from the last axis on they must be equal or 1"),
    "matmul: a number": (TypeError, lambda: F.matmul(ROWS, 2.0), "matmul: b must be a Tensor or an array; got float"),
    "bias_add: bias": (ValueError, lambda: F.bias_add(IMAGES, f32(30)), "bias_add: bias must have shape (3,), one value for each channel of x (2, 3, 32, 30) (NCHW); got (30,)"),
    "bias_add: layout": (ValueError, lambda: F.bias_add(IMAGES, f32(3), layout="CHWN"), "bias_add: layout must be \"NCHW\" or \"NHWC\"; got 'CHWN'"),
    "bias_add: axes": (ValueError, lambda: F.bias_add(f32(3), f32(3)), "bias_add: x must have an axis of channels after the batch; got shape (3,)"),
    # losses
    "cross_entropy: classes": (ValueError, lambda: F.cross_entropy(ROWS, np.array([0, 1, 2, 5])), "cross_entropy: classes run from 0 to 4; target holds 0 to 5"),
    "cross_entropy: negative class": (ValueError, lambda: F.cross_entropy(ROWS, np.array([0, -1, 2, 3])), "cross_entropy: classes run from 0 to 4; target holds -1 to 3"),
    "cross_entropy: rows": (ValueError, lambda: F.cross_entropy(ROWS, CLASSES[:3]), "cross_entropy: target must be (4,) integers, one class for each row; got int64 of shape (3,)"),
    "cross_entropy: probabilities": (ValueError, lambda: F.cross_entropy(ROWS, f32(4, 4)), "cross_entropy: target must be (4,) class indices or float32 probabilities (4, 5); got float32 of shape (4, 4)"),
    "cross_entropy: dtype of the probabilities": (ValueError, lambda: F.cross_entropy(ROWS, f64(4, 5)), "or float32 probabilities (4, 5); got float64 of shape (4, 5)"),
    "cross_entropy: axes": (ValueError, lambda: F.cross_entropy(f32(5), CLASSES), "cross_entropy: expected (rows, classes) with at least one class; got shape (5,)"),
    "cross_entropy: reduction": (ValueError, lambda: F.cross_entropy(ROWS, CLASSES, reduction="avg"), "cross_entropy: reduction must be \"mean\", \"sum\" or \"none\"; got 'avg'"),
    "cross_entropy: a list": (TypeError, lambda: F.cross_entropy(ROWS, [0, 1, 2, 3]), "cross_entropy: target must be a Tensor or an array; got list; wrap it"),
    "nll_loss: float classes": (ValueError, lambda: F.nll_loss(ROWS, f32(4)), "nll_loss: target must be (4,) integers, one class for each row; got float32 of shape (4,)"),
    # axes and shapes
    "sum: axis": (ValueError, lambda: Tensor(ROWS).sum(axis=2), "sum: axis must be from -2 to 1, each named once (x is (4, 5)); got 2"),
    "mean: axis twice": (ValueError, lambda: Tensor(ROWS).mean(axis=(0, -2)), "mean: axis must be from -2 to 1, each named once (x is (4, 5)); got (0, -2)"),
    "sum: 0-d": (ValueError, lambda: tensor(1.0).sum(0), "sum: axis must be None: x has no axes | got 0"),
    "sum: an unknown parameter": (TypeError, lambda: Tensor(ROWS).sum(dim=1), "sum: there is no parameter 'dim'; it takes axis, keepdims"),
    "max: axes": (ValueError, lambda: Tensor(ROWS).max(axis=(0, 1)), "max: axis must be None or an int; got (0, 1); reshape the axes into one first"),
    "max: nothing": (ValueError, lambda: Tensor(f32(0, 3)).max(axis=0), "max: there is no largest of no elements (x is (0, 3), axis is 0)"),
    "softmax: axes": (ValueError, lambda: F.softmax(ROWS, axis=[0, 1]), "softmax: axis must be an int from -2 to 1 | got [0, 1]"),
    "softmax: axis": (ValueError, lambda: F.softmax(ROWS, axis=-3), "softmax: axis must be an int from -2 to 1 | got -3"),
    "log_softmax: axis": (ValueError, lambda: F.log_softmax(ROWS, axis="last"), "log_softmax: axis must be an int from -2 to 1 | got 'last'"),
    "reshape": (ValueError, lambda: Tensor(ROWS).reshape(3, 7), "reshape: x (4, 5) has 20 elements and can't become (3, 7); the lengths must multiply to as many, and one may be -1"),
    "permute": (ValueError, lambda: Tensor(ROWS).permute(0, 0), "permute: axis must be from -2 to 1, each named once (x is (4, 5)); got (0, 0)"),
    "permute: too few": (ValueError, lambda: Tensor(ROWS).permute(1), "permute: axes must name each of the 2 axes of x once (x is (4, 5)); got (1,)"),
    "transpose": (ValueError, lambda: Tensor(f32(3)).transpose(), "transpose: axis must be from -1 to 0 | got -2"),
    "flatten": (ValueError, lambda: F.flatten(ROWS, 2), "flatten: start must be an axis of x, from 0 to 1 (x is (4, 5)); got 2"),
    "getitem": (IndexError, lambda: Tensor(ROWS)[7], "index 7 is out of bounds for axis 0 with size 4 | in getitem on 'cpu': x is float32 (4, 5)"),
    "broadcasting": (ValueError, lambda: Tensor(ROWS) + f32(4), "add: x is float32 (4, 5), y is float32 (4,): these shapes don't fit; counted from the last axis, lengths must be equal or 1: reshape or permute one"),
    "power": (TypeError, lambda: tensor([1.0]) ** tensor([2.0]), "power: the exponent must be a number; got Tensor; use (y * x.log()).exp() for a tensor"),
    "add: a list": (TypeError, lambda: tensor([1.0]) + [1.0], "add: y must be a Tensor, an array or a number; got list; wrap it with tinynet.tensor(...)"),
    "add: text": (TypeError, lambda: "1" + tensor([1.0]), "add: y must be a Tensor, an array or a number; got str"),
    "add: a complex number": (TypeError, lambda: tensor([1.0]) + 1j, "add: y must be a Tensor, an array or a number; got complex"),
    "add: numbers alone": (TypeError, lambda: tinynet.ops.add.add(1.0, 2.0), "add: one of x, y must be a Tensor or an array; got numbers alone"),
    "bool arithmetic": (TypeError, lambda: tensor([True, False]) + 1, "add: x must be float32 or float64; got bool; convert it with .astype(np.float32)"),
    "counting a mask": (TypeError, lambda: tensor([True, False]).sum(), "sum: x must be float32 or float64; got bool"),
    "astype": (TypeError, lambda: tensor([1.0]).astype(np.float16), "astype: float16 is not supported; use float32 or float64"),
    # tensors
    "Tensor of a list": (TypeError, lambda: Tensor([1.0, 2.0]), "Tensor: data must be an array; got list; tinynet.tensor(values) makes one of numbers and lists"),
    "tensor of rows of different lengths": (ValueError, lambda: tensor([[1.0], [1.0, 2.0]]), "tensor: these values make no array of numbers | give rows of equal length"),
    "tensor of None": (TypeError, lambda: tensor(None), "tensor: object is not supported; use float32 or float64"),
    "item": (ValueError, lambda: Tensor(ROWS).item(), "item: only a tensor of one element is a number; this one has shape (4, 5); use .numpy() for all of them"),
    "integer gradient": (TypeError, lambda: tensor([1, 2], requires_grad=True), "only float32 and float64 tensors can require a gradient; this one is int64; make it with dtype=np.float32, or use .astype(np.float32)"),
    # modules
    "Module without forward": (TypeError, lambda: Unfinished()(ROWS), "Unfinished has no forward(); a Module must define one"),
    "Conv2d: groups": (ValueError, lambda: nn.Conv2d(3, 8, 3, groups=2), "Conv2d: 3 input and 8 output channels can't be split into 2 groups; use multiples of groups"),
    "Conv2d: channels": (ValueError, lambda: nn.Conv2d(0, 8, 3), "Conv2d: in_channels must be an int >= 1; got 0"),
    "Conv2d: kernel": (ValueError, lambda: nn.Conv2d(3, 8, "3"), "Conv2d: kernel_size must be an int >= 1 or a pair of them (rows, columns); got '3'"),
    "Conv2d: stride": (ValueError, lambda: nn.Conv2d(3, 8, 3, stride="a"), "Conv2d: stride must be an int >= 1 or a pair of them (rows, columns); got 'a'"),
    "Conv2d: padding": (ValueError, lambda: nn.Conv2d(3, 8, 3, padding=-1), "Conv2d: padding must be an int >= 0 | got -1"),
    "MaxPool2d: stride": (ValueError, lambda: nn.MaxPool2d(2, stride=0), "MaxPool2d: stride must be | got 0"),
    "load_state_dict: no mapping": (TypeError, lambda: nn.Linear(2, 3).load_state_dict(None), "load_state_dict: expected a mapping of names to arrays | got NoneType"),
    "Conv2d: layout": (ValueError, lambda: nn.Conv2d(3, 8, 3, layout="HWCN"), "Conv2d: layout must be"),
    "MaxPool2d: stride by position": (TypeError, lambda: nn.MaxPool2d(2, 2), "MaxPool2d: 2 arguments were given by position; only kernel_size can be: give stride, | by keyword, stride=2 for example"),
    "Conv2d: stride by position": (TypeError, lambda: nn.Conv2d(3, 8, 3, 1), "Conv2d: 4 arguments | only in_channels, out_channels, kernel_size can be | stride=1 for example"),
    "MaxPool2d: kernel": (ValueError, lambda: nn.MaxPool2d((2, 2, 2)), "MaxPool2d: kernel_size must be | got (2, 2, 2)"),
    "Linear: features": (ValueError, lambda: nn.Linear(2.0, 3), "Linear: in_features must be an int >= 1; got 2.0"),
    "Sequential of a function": (TypeError, lambda: nn.Sequential(F.relu), "Sequential: expected a Module; got Op; wrap a function in a Module, or use nn.ReLU(), nn.Flatten(), ..."),
    "layers in a list": (TypeError, lambda: module_with(layers=[nn.ReLU()]), "Linear: layers and parameters in a list (layers) would not be found; use a Sequential, or an attribute for each"),
    "parameters in a dict": (TypeError, lambda: module_with(all={"a": Parameter([1.0])}), "Linear: layers and parameters in a dict (all) would not be found"),
    "a parameter replaced": (TypeError, lambda: module_with(weight=tensor([1.0])), "Linear: weight is a Parameter, and a Tensor would take its place untrained; assign a Parameter, or change it with optim or load_state_dict"),
    "load_state_dict": (
        ValueError,
        lambda: nn.Linear(2, 3).load_state_dict({"weight": f64(3, 2), "gain": f32(1)}),
        "load_state_dict: the state does not fit Linear: bias is missing; gain is not a parameter; weight is float32 (3, 2), the state holds float64 (3, 2); its parameters are weight, bias",
    ),
    # optimisers
    "optimiser: nothing": (ValueError, lambda: optim.SGD([]), "SGD: no parameters were given; pass model.parameters()"),
    "optimiser: one tensor": (TypeError, lambda: optim.Adam(Parameter([1.0])), "Adam: expected a list of parameters; got one Parameter; pass model.parameters() or a list"),
    "optimiser: a module": (TypeError, lambda: optim.SGD(nn.Linear(2, 2)), "SGD: expected a list of parameters; got one Linear; pass model.parameters() or a list"),
    "optimiser: no gradient": (TypeError, lambda: optim.AdamW([tensor([1.0])]), "AdamW: every parameter must be a leaf Tensor that requires a gradient, like nn.Parameter; got tensor([1.]"),
    "optimiser: a result": (TypeError, lambda: optim.SGD([Parameter([1.0]) * 2]), "SGD: every parameter must be a leaf Tensor | made by multiply"),
    "optimiser: twice": (ValueError, lambda: optim.SGD([(p := Parameter([1.0])), p]), "SGD: a parameter is there twice and would be updated twice"),
    "optimiser: learning rate": (ValueError, lambda: optim.SGD([Parameter([1.0])], lr=-0.1), "SGD: lr must be >= 0; got -0.1"),
    "optimiser: NaN": (ValueError, lambda: optim.Adam([Parameter([1.0])], weight_decay=float("nan")), "Adam: weight_decay must be >= 0; got nan"),
    "optimiser: a text": (TypeError, lambda: optim.SGD([Parameter([1.0])], lr="0.1"), "SGD: lr must be a number; got '0.1'"),
    "optimiser: one beta": (ValueError, lambda: optim.Adam([Parameter([1.0])], betas=0.9), "Adam: betas must be two numbers in [0, 1); got 0.9"),
    "optimiser: a wrong gradient": (ValueError, wrong_gradient, "SGD: a gradient must be float32 of shape (2, 3), as its parameter is; got float32 of shape (3,)"),
    "optimiser: betas": (ValueError, lambda: optim.AdamW([Parameter([1.0])], betas=(0.9, 1.0)), "AdamW: betas must be two numbers in [0, 1); got (0.9, 1.0)"),
    "optimiser: nesterov": (ValueError, lambda: optim.SGD([Parameter([1.0])], nesterov=True), "SGD: nesterov needs momentum > 0"),
    # kernels and devices
    "use: kernel": (ValueError, lambda: tinynet.use(conv3d="cpu"), "there is no kernel 'conv3d'; the kernels are conv2d, conv2d_dx"),
    "use: device": (ValueError, lambda: tinynet.use(conv2d="gpu"), "there is no device 'gpu'; choose from 'cpu', 'reference'"),
    "use: variant": (ValueError, lambda: tinynet.use(conv2d="cpu.fastest"), "kernel conv2d has no variant 'cpu.fastest'; on cpu there are cpu."),
    "use: no path": (TypeError, lambda: tinynet.use(conv2d=None), "conv2d: a kernel is chosen by its path, reference or cpu.loops for example; got None"),
    "to": (ValueError, lambda: tensor([1.0]).to("cuda:01"), "there is no device 'cuda:01'; choose from"),
    # ops of one's own
    "gradient of no input": (TypeError, lambda: F.relu.gradient("y"), "relu has no input 'y'; its inputs are x"),
    # files
    "load: nothing there": (FileNotFoundError, lambda: tinynet.load("/nowhere/weights.safetensors"), "load: there is no file /nowhere/weights.safetensors"),
    "save: no folder": (FileNotFoundError, lambda: tinynet.save({"a": f32(1)}, "/nowhere/weights.safetensors"), "save: there is no folder /nowhere; create it first"),
    "save: no mapping": (TypeError, lambda: tinynet.save([f32(1)], "no such folder/weights"), "save: expected a Module or a mapping of names to arrays; got list"),
    "save: names": (TypeError, lambda: tinynet.save({1: f32(1)}, "no such folder/weights"), "save: every name must be a string; got 1"),
    "save: metadata": (TypeError, lambda: tinynet.save({"a": f32(1)}, "no such folder/weights", {"epoch": 3}), "save: every entry of metadata must be a string; got 3"),
}  # fmt: skip


@pytest.mark.parametrize("kind,call,wanted", TABLE.values(), ids=TABLE.keys())
def test_a_wrong_call_says_what_is_wrong(kind, call, wanted):
    with pytest.raises(kind) as caught:
        call()
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    for fragment in wanted.split(" | "):
        assert fragment in message
    assert caught.type is kind


def test_every_message_of_the_engine_names_its_place():
    """The first words of a message say which op, class or function it comes from."""
    for kind, call, wanted in TABLE.values():
        with pytest.raises(kind) as caught:
            call()
        assert re.match(r"[A-Za-z_0-9]+(:| )", str(caught.value)), str(caught.value)


def test_a_torch_tensor_is_told_apart_from_ours():
    import torch

    with pytest.raises(TypeError, match=r"relu: x must be a Tensor or an array; got torch.Tensor; wrap it with tinynet.tensor"):
        F.relu(torch.ones(2))
    assert tensor(torch.ones(2)).dtype == np.float32


def test_an_error_inside_an_op_tells_which_op_and_on_what():
    """What we did not foresee keeps its own words and gets a note."""

    @op
    def fragile(k, x, scale):
        raise KeyError("inside")

    try:
        with pytest.raises(KeyError, match="inside") as caught:
            fragile(Tensor(ROWS, device="reference"), f32(2))
        assert caught.value.__notes__ == ["in fragile on 'reference': x is float32 (4, 5), scale is float32 (2,)"]
    finally:
        from tinynet.op import OPS

        del OPS["fragile"]


def test_an_error_leaves_the_mode_and_the_kernels_as_they_were():
    with pytest.raises(ValueError), tinynet.no_grad(), tinynet.use(conv2d="reference"):
        F.conv2d(IMAGES, f32(1, 2, 1, 1))
    assert (Tensor(ROWS, True) * 2).requires_grad
    from tinynet.dispatch import implementation

    assert implementation("conv2d", "cpu").device == "cpu"


def test_what_was_checked_once_is_not_taken_for_what_only_looks_equal():
    """1 == True == 1.0: the geometry that is remembered for one must not answer for the others."""
    for wrong in (True, 1.0):
        assert F.conv2d(IMAGES, f32(8, 3, 3, 3), groups=1, stride=1).shape == (2, 8, 30, 28)
        with pytest.raises(ValueError, match="groups must be an int >= 1"):
            F.conv2d(IMAGES, f32(8, 3, 3, 3), groups=wrong)
        with pytest.raises(ValueError, match="stride must be an int >= 1"):
            F.conv2d(IMAGES, f32(8, 3, 3, 3), stride=(wrong, 1))

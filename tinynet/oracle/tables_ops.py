"""The built-in cases of functional's ops, of every op's gradients, and of the optimisers' steps.

A gradient's case is its op's case with a random dy of the result's shape in front.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinynet.oracle import inputs, reference
from tinynet.oracle.bounds import dtype_of
from tinynet.oracle.casebook import Case
from tinynet.oracle.tables_kernels import CONVS, EMPTY, NOTHING, POOLS, PRODUCTS, DILATED, make_avg_pool2d, make_conv2d, make_matmul, make_max_pool2d

# op -> [(label, kind, make(rng, dtype) -> (arrays, parameters))]; filled in below
OPS: dict[str, list[tuple[str, str, Callable]]] = {}


def _ops(name: str, *entries):
    OPS[name] = [*OPS.get(name, []), *entries]


def _numbers(kind: str, rng, shape, n: int, dtype: str):
    return inputs.ints(rng, shape, n=n, dtype=dtype) if kind == "ints" else getattr(inputs, kind)(rng, shape, dtype=dtype)


def _unary(label: str, kind: str, shape, n: int = 1, /, **parameters):
    return label, kind, lambda rng, dtype: ((_numbers(kind, rng, shape, n, dtype),), parameters)


# --- element by element ---

BROADCASTS = {"same shape": ((2, 3, 4), (2, 3, 4)), "one row": ((2, 3, 4), (3, 1)), "both ways": ((1, 4), (2, 3, 1)), "a number": ((), (3, 5)), "empty": ((0, 3), (1, 3))}


def _binary(label, kind, shapes, second=None):
    def make(rng, dtype):
        a, b = shapes
        return (_numbers(kind, rng, a, 64, dtype), (second or _numbers)(kind, rng, b, 64, dtype)), {}

    return label, kind, make


def _positive(kind, rng, shape, n, dtype):
    return inputs.positive(rng, shape, dtype=dtype)


for _name in ("add", "subtract", "multiply", "divide"):
    _second = _positive if _name == "divide" else None
    _ops(_name, *(_binary(label, kind, shapes, _second) for label, shapes in BROADCASTS.items() for kind in ("ints", "reals")))
_ops("negative", _unary("block", "ints", (3, 4, 5)), _unary("block", "reals", (3, 4, 5)), _unary("block", "special", (5, 9)))


def _positives(label, shape, /, **parameters):
    return label, "reals", lambda rng, dtype: ((inputs.positive(rng, shape, dtype=dtype),), parameters)


def _spanning(label, shape, low, high):
    """Positive numbers over many powers of two."""
    return label, "reals", lambda rng, dtype: ((np.exp2(rng.uniform(low, high, shape)).astype(dtype_of(dtype)),), {})


for _name in ("log", "sqrt"):
    _ops(_name, _positives("near 1", (3, 37)), _spanning("many magnitudes", (4, 25), -13, 13), _positives("a number", ()), _positives("empty", (0, 3)))
_ops("exp", _unary("block", "reals", (3, 37)), ("large and small", "reals", lambda rng, dtype: ((rng.uniform(-9, 9, (4, 25)).astype(dtype_of(dtype)),), {})), _unary("whole", "ints", (3, 5), 2**22))
_ops("power", *(_positives(f"exponent {e}", (3, 7), exponent=e) for e in (2, 3, 2.5, -1, 0.5)), ("negative base", "reals", lambda rng, dtype: ((inputs.reals(rng, (3, 7), dtype=dtype),), dict(exponent=3))))
_ops("relu", _unary("block", "reals", (3, 4, 5)), _unary("odd length", "reals", (37,)), _unary("special", "special", (6, 9)), _unary("empty", "reals", (0, 4)))
_ops("relu", ("zeros between", "ties", lambda rng, dtype: ((inputs.ties(rng, (5, 8), dtype=dtype),), {})))

# --- copies ---

for _kind in ("ints", "reals"):
    _ops("flatten", _unary("images", _kind, (2, 3, 4, 5)), _unary("from axis 2", _kind, (2, 3, 4, 5), start=2), _unary("rows already", _kind, (4, 3)))
    _ops("reshape", _unary("block", _kind, (2, 3, 4), shape=(4, 6)), _unary("to a row", _kind, (3, 5), shape=(1, 15)))
    _ops("permute", _unary("block", _kind, (2, 3, 4), axes=(2, 0, 1)), _unary("layout", _kind, (2, 3, 4, 5), axes=(0, 2, 3, 1)))
_ops("flatten", _unary("empty batch", "reals", (0, 3, 2, 2)))

# --- reductions ---

AXES = {"all": {}, "axis 1": dict(axis=1), "last, kept": dict(axis=-1, keepdims=True)}
for _label, _parameters in AXES.items():
    for _kind in ("ints", "reals"):
        _ops("sum", _unary(_label, _kind, (3, 4, 5), 60, **_parameters))
        _ops("mean", _unary(_label, _kind, (3, 4, 5), 60, **_parameters))
    for _kind in ("unique", "ties"):
        _ops("max", _unary(_label, _kind, (3, 4, 5), **_parameters))
for _name in ("sum", "mean"):
    _ops(_name, *(_unary("two axes", kind, (2, 3, 4), 8, axis=(0, 2)) for kind in ("ints", "reals")))
    _ops(_name, *(_unary("large reduction", kind, (3, 100_000), 100_000, axis=1) for kind in ("ints", "reals")), _unary("special", "special", (6, 9), axis=1))

# --- layers ---

LINEARS = {"with bias": ((5, 3), 4, True), "without bias": ((2, 3, 5), 4, False), "odd sizes": ((17, 33), 19, True), "one": ((1, 1), 1, True), "square": ((6, 6), 6, True), "large reduction": ((2, 20_000), 3, True), "empty batch": ((0, 4), 3, True)}  # fmt: skip


def _linear(kind, x_shape, k, has_bias):
    def make(rng, dtype):
        n = x_shape[-1] + 1
        if kind == "ints":
            x, weight = inputs.factors(rng, x_shape, (k, x_shape[-1]), n=n, dtype=dtype)
        else:
            x, weight = inputs.reals(rng, x_shape, dtype=dtype), inputs.reals(rng, (k, x_shape[-1]), dtype=dtype)
        return (x, weight, _numbers(kind, rng, (k,), n, dtype) if has_bias else None), {}

    return make


_ops("linear", *((label, kind, _linear(kind, *shapes)) for label, shapes in LINEARS.items() for kind in ("ints", "reals")))


def _bias_add(kind, x_shape, k, layout):
    return lambda rng, dtype: ((_numbers(kind, rng, x_shape, 64, dtype), _numbers(kind, rng, (k,), 64, dtype)), dict(layout=layout))


for _label, _arguments in {"images": ((2, 3, 4, 5), 3, "NCHW"), "images, NHWC": ((2, 4, 5, 3), 3, "NHWC"), "rows": ((4, 3), 3, "NCHW"), "empty batch": ((0, 3, 2, 2), 3, "NCHW")}.items():
    _ops("bias_add", *((_label, kind, _bias_add(kind, *_arguments)) for kind in ("ints", "reals")))

# --- softmax and losses ---


def _logits(scale: float, shape, axis: int = -1, offset: float = 0.0, masked: bool = False):
    def make(rng, dtype):
        # bfloat16 can't add up 1,000 numbers in any order: (1 + 2^-8)^1000 is 49
        sizes = tuple(min(s, 50) for s in shape) if dtype == "bfloat16" else shape
        x = (rng.standard_normal(sizes) * scale + offset).astype(dtype_of(dtype))
        if masked:
            x[..., 1] = -np.inf
        return (x,), dict(axis=axis)

    return make


LOGITS = {
    "small": (1.0, (3, 5)), "scale 10": (10.0, (4, 7)), "scale 60": (60.0, (4, 10)), "axis 1": (1.0, (2, 4, 3), 1), "many classes": (3.0, (3, 1000)),
    "far from 0": (1.0, (3, 6), -1, 200.0), "beyond exp": (300.0, (3, 8)), "one class": (1.0, (4, 1)), "equal": (0.0, (2, 6)), "empty batch": (1.0, (0, 5)),
}  # fmt: skip
for _name in ("softmax", "log_softmax"):
    _ops(_name, *((label, "reals", _logits(*arguments)) for label, arguments in LOGITS.items()))
_ops("softmax", ("masked with -inf", "reals", _logits(1.0, (3, 6), masked=True)))


def _loss(label, logits, reduction, soft=False, logs=False):
    def make(rng, dtype):
        (x,), _ = logits(rng, dtype)
        if logs:
            x = np.asarray(reference.log_softmax(x).value).astype(x.dtype)
        target = rng.integers(0, x.shape[1], x.shape[0])
        if soft:
            target = rng.dirichlet(np.ones(x.shape[1]), x.shape[0]).astype(x.dtype)
        return (x, target), dict(reduction=reduction)

    return f"{label}, {reduction}{', probabilities' if soft else ''}", "reals", make


for _label in ("small", "scale 10", "scale 60", "many classes", "far from 0", "beyond exp"):
    for _reduction in ("mean", "sum", "none"):
        _ops("cross_entropy", _loss(_label, _logits(*LOGITS[_label]), _reduction))
for _reduction in ("mean", "none"):
    _ops("cross_entropy", _loss("small", _logits(*LOGITS["small"]), _reduction, soft=True))
for _label in ("small", "scale 10", "many classes"):
    for _reduction in ("mean", "sum", "none"):
        _ops("nll_loss", _loss(_label, _logits(*LOGITS[_label]), _reduction, logs=True))
for _name in ("cross_entropy", "nll_loss"):
    _ops(_name, _loss("empty batch", _logits(*LOGITS["empty batch"]), "sum", logs=_name == "nll_loss"), _loss("large batch", _logits(2.0, (1500, 3)), "mean", logs=_name == "nll_loss"))

# --- gradients: the op's cases with dy in front ---


def _adapted(builder, g, kind):
    return lambda rng, dtype: builder(g, kind, dtype)(rng)


GRADIENT_ONLY = {
    "conv2d": [(g.label, kind, _adapted(make_conv2d, g, kind)) for g in (*CONVS, EMPTY) for kind in ("ints", "reals")],
    "max_pool2d": [(g.label, kind, _adapted(make_max_pool2d, g, kind)) for g in (*POOLS, *DILATED, NOTHING) for kind in ("unique", "ties")],
    "avg_pool2d": [(g.label, kind, _adapted(make_avg_pool2d, g, kind)) for g in (*POOLS, NOTHING) for kind in ("ints", "reals")],
    "matmul": [(label, kind, _adapted(make_matmul, shapes, kind)) for label, shapes in PRODUCTS.items() if "large" not in label for kind in ("ints", "reals")]
    + [("broadcast", kind, _adapted(make_matmul, ((2, 1, 3, 5), (4, 5, 2)), kind)) for kind in ("ints", "reals")],
}
ZEROS = {"relu", "max", "max_pool2d", "nll_loss"}  # gradients that are mostly zero by nature


def _gradient(op: str, kind: str, make: Callable):
    def with_dy(rng, dtype):
        arrays, parameters = make(rng, dtype)
        want = getattr(reference, op)(*arrays, **parameters)
        shape = (want[0] if isinstance(want, tuple) else want).shape
        dy = inputs.ints(rng, shape, n=1, dtype=dtype, most=2 if op in ("conv2d", "linear", "matmul") else 8) if kind in ("ints", "ties") else inputs.reals(rng, shape, dtype=dtype)
        return (dy, *arrays), parameters

    return with_dy


# --- the kernel of softmax and cross-entropy ---


def _rows_and_classes(logits):
    def make(rng, dtype):
        (x,), _ = logits(rng, dtype)
        return (x, rng.integers(0, x.shape[1], x.shape[0])), {}

    return make


LOSS_KERNEL = [(label, "reals", _rows_and_classes(_logits(*LOGITS[label]))) for label in ("small", "scale 10", "scale 60", "many classes", "far from 0", "beyond exp", "one class", "equal", "empty batch")]
LOSS_KERNEL.append(("large batch", "reals", _rows_and_classes(_logits(2.0, (1500, 3)))))

# --- optimisers ---


def _state(steps: int, adam: bool, shape=(5, 7), **parameters):
    def make(rng, dtype):
        w, g, v = (inputs.reals(rng, shape, dtype=dtype) for _ in range(3))
        if not adam:
            return (w, g, v) if parameters.get("momentum") else (w, g, None), parameters
        s = inputs.positive(rng, shape, dtype=dtype)
        if steps == 1:
            v, s = np.zeros_like(v), np.zeros_like(s)
        return (w, g, v, s), dict(parameters, t=steps)

    return make


STEPS = {
    "sgd_step": {"plain": dict(lr=0.1), "momentum": dict(lr=0.1, momentum=0.9), "Nesterov": dict(lr=0.03, momentum=0.9, nesterov=True), "decay": dict(lr=0.1, weight_decay=0.01), "all": dict(lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.05)},
    "adam_step": {"defaults": dict(lr=1e-3), "large steps": dict(lr=0.3, betas=(0.8, 0.95), eps=1e-3), "decay": dict(lr=0.01, weight_decay=0.1)},
    "adamw_step": {"defaults": dict(lr=1e-3), "large steps": dict(lr=0.1, weight_decay=0.3)},
}  # fmt: skip


def _steps(name: str):
    def table(dtype: str) -> list[Case]:
        found = []
        for label, parameters in STEPS[name].items():
            if dtype == "float16" and name != "sgd_step":
                parameters = {**parameters, "eps": 1e-3}  # 1e-8 is 0 in float16
            for step in (1, 2, 10) if name != "sgd_step" else (0,):
                make = _state(step, name != "sgd_step", **parameters)
                found.append(Case(name, f"{label}, step {step}" if step else label, "reals", lambda rng, make=make: make(rng, dtype), dtype))
        many = _state(3, name != "sgd_step", (203, 331), **parameters)
        return [*found, Case(name, f"{label}, many numbers", "reals", lambda rng: many(rng, dtype), dtype)]

    return table


def _table(entries, zeros=False):
    def table(dtype: str) -> list[Case]:
        # Whole numbers whose large sums fit into a half-precision format are mostly 0.
        half = dtype in ("float16", "bfloat16")
        found = []
        for label, kind, make in entries:
            few = zeros or "beyond exp" in label or "scale 60" in label or "empty" in label or kind == "ties" or half and "large" in label
            found.append(Case("", label, kind, lambda rng, make=make: make(rng, dtype), dtype, zeros=few))
        return found

    return table


TABLES = {name: _table(entries) for name, entries in OPS.items()}
for _name, _entries in {**OPS, **GRADIENT_ONLY}.items():
    _usable = [(label, kind, _gradient(_name, kind, make)) for label, kind, make in _entries if kind not in ("special", "subnormal")]
    TABLES[f"{_name}_grad"] = _table(_usable, _name in ZEROS)
TABLES["relu_dx"] = TABLES["relu_grad"]
TABLES |= {"softmax_cross_entropy": _table(LOSS_KERNEL)} | {name: _steps(name) for name in STEPS}

"""Optimisers: how a parameter follows its gradient. Updates are in place and ask for no memory but their state.

    SGD    v = momentum * v + g;  w -= lr * v          (Nesterov: w -= lr * (g + momentum * v))
    Adam   m = b1*m + (1-b1)*g;  s = b2*s + (1-b2)*g*g;  w -= lr * m/(1-b1^t) / (sqrt(s/(1-b2^t)) + eps)
    AdamW  Adam, and before it w -= lr * weight_decay * w

SGD and Adam add weight_decay * w to the gradient first. These are PyTorch's forms and defaults.
Sources: Sutskever et al. 2013 (momentum), Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (AdamW).
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

from tinynet import guard
from tinynet.devices import array_module, here
from tinynet.dispatch import kernels
from tinynet.mode import traced_by, tracing
from tinynet.tensor import Tensor


class Optimizer:
    def __init__(self, parameters: Iterable[Tensor], **options: float):
        name = type(self).__name__
        if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
            raise TypeError(f"{name}: expected a list of parameters; got one {type(parameters).__name__}; pass model.parameters() or a list")
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{name}: no parameters were given; pass model.parameters()")
        for p in self.parameters:
            if not isinstance(p, Tensor) or not p.requires_grad or p.node is not None:
                raise TypeError(f"{name}: every parameter must be a leaf Tensor that requires a gradient, like nn.Parameter; got {p!r}")
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError(f"{name}: a parameter is there twice and would be updated twice; pass model.parameters(), which names each once")
        for option, value in options.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name}: {option} must be a number; got {value!r}")
            if not value >= 0:
                raise ValueError(f"{name}: {option} must be >= 0; got {value}")
        self.state: list[dict] = [{} for _ in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        trace = tracing()
        if trace is not None and trace.step(self):
            return
        with traced_by(None):
            for place in range(len(self.parameters)):
                self.step_of(place)

    def step_of(self, place: int) -> None:
        """Updates the parameter at this place, if it has a gradient."""
        parameter = self.parameters[place]
        gradient = parameter.grad
        if gradient is None:
            return
        if gradient.shape != parameter.shape or gradient.dtype != parameter.dtype:
            raise ValueError(f"{type(self).__name__}: a gradient must be {parameter.dtype} of shape {parameter.shape}, as its parameter is; got {gradient.dtype} of shape {gradient.shape}")
        with here(parameter.device), guard.writable(parameter) as w:
            k, state = kernels(parameter.device), self.state_of(place)
            state["t"] += 1
            whole = w if w.flags.c_contiguous else w.copy()
            self.update(k, state["t"], whole, gradient, *[state[name] for name in self.arrays])
            if whole is not w:
                w[...] = whole

    def state_of(self, place: int) -> dict:
        """What is kept for the parameter at this place; zeros before its first step."""
        state, parameter = self.state[place], self.parameters[place]
        if not state:
            xp = array_module(parameter.device)
            state.update({name: xp.zeros(parameter.shape, parameter.dtype) for name in self.arrays}, t=0)
        return state

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of what is kept for each parameter, beside t, the number of its steps; they start at 0."""
        return ()

    def update(self, k, t: int, w, g, *kept) -> None:
        """Step number t of one parameter: w and what is kept are changed in place, g is not. k: the kernels of its device."""
        raise TypeError(f"{type(self).__name__} has no update(); an Optimizer must define one")


class SGD(Optimizer):
    def __init__(self, parameters, lr: float = 0.01, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs momentum > 0")
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay

    @property
    def arrays(self):
        return ("v",) if self.momentum else ()

    def update(self, k, t, w, g, v=None):
        options = dict(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)
        k.sgd_step(w, g, v, lr=self.lr, **options, out=w if v is None else (w, v))

    def numbers(self, t):
        """What kernels in a compiled program read at step t (kernels/cpu/loss_kernels.py, sgd; kernels/cuda/optimizers.cu)."""
        return self.lr, self.weight_decay, self.momentum, self.nesterov


class Adam(Optimizer):
    decoupled = False  # weight decay goes through the gradient

    def __init__(self, parameters, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(isinstance(b, Real) and 0 <= b < 1 for b in betas):
            raise ValueError(f"{type(self).__name__}: betas must be two numbers in [0, 1); got {betas}")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    @property
    def arrays(self):
        return "m", "s"

    def update(self, k, t, w, g, m, s):
        options = dict(betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, decoupled=self.decoupled)
        k.adam_step(w, g, m, s, t=t, lr=self.lr, **options, out=(w, m, s))

    def numbers(self, t):
        """What kernels in a compiled program read at step t (kernels/cpu/loss_kernels.py, adam; kernels/cuda/optimizers.cu)."""
        b1, b2 = self.betas
        decay, keeps = (0.0, 1 - self.lr * self.weight_decay) if self.decoupled else (self.weight_decay, 1.0)
        return self.lr / (1 - b1**t), 1 - b2**t, b1, b2, self.eps, decay, keeps, 1 - b1, 1 - b2


class AdamW(Adam):
    decoupled = True

    def __init__(self, parameters, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)

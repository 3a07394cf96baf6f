"""A stand-in for CuPy where there is no GPU: its arrays are numpy's, each on the GPU that was current when it was made, and
its kernels run on the emulator. It is stricter than CuPy: whoever computes on arrays of a GPU that is not current fails, and
so does who asks for a function, or a method's argument, that the installed CuPy has not.

    with standin.installed(monkeypatch) as gpus:        devices 'cuda' and 'cuda:1' are there
        gpus.waits                                      how often Python waited for a GPU: values that it asked for
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace

import cupy
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tinynet import dispatch
from tinynet.devices import here
from tinynet.kernels.cuda import gpu
from tinynet.kernels.cuda.emulator import run as emulator
from tinynet.kernels.cuda.launch import Source


class OutOfMemoryError(MemoryError):
    """As CuPy's."""

    def __init__(self, size: int, total: int):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class Event:
    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass  # whatever was launched has run


class CUDARuntimeError(RuntimeError):
    pass


class Stream:
    """One that writes down what it is given while it is capturing."""

    def __init__(self, gpus: Gpus, non_blocking: bool):
        self.gpus = gpus

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.gpus.written is None, "a capture has an end"

    def begin_capture(self) -> None:
        self.gpus.written = []

    def end_capture(self):
        work, self.gpus.written = self.gpus.written, None

        def launch() -> None:
            self.gpus.launches += 1
            for each in work:
                each()

        return SimpleNamespace(launch=launch)


@dataclass(frozen=True)
class Ufunc:
    gpus: Gpus
    ufunc: np.ufunc

    def __call__(self, *args, **options):
        return self.gpus.compute(self.ufunc, args, options)

    def at(self, *args):
        return self.gpus.compute(self.ufunc.at, args, {})


class Gpus(ModuleType):
    """The module `cupy`: numpy's functions on Arrays, and CuPy's own names."""

    def __init__(self, count: int):
        super().__init__("cupy")
        self.__version__ = "a stand-in"
        self.memory, self.used, self.waits = 2**30, 0, 0  # bytes of all GPUs together; nothing is ever given back
        self.current = [0]  # the stack of `with Device(...)`
        self.written: list | None = None  # what a stream writes down instead of running it
        self.launches = 0  # of graphs
        gpus = self

        class Device:
            attributes = {"MultiProcessorCount": 2}

            def __init__(self, number: int | None = None):
                self.id = gpus.current[-1] if number is None else number
                assert 0 <= self.id < count, f"there is no GPU {self.id}"

            def __enter__(self):
                gpus.current.append(self.id)

            def __exit__(self, *_):
                assert gpus.current.pop() == self.id

        class Array(NDArrayOperatorsMixin):
            """A numpy array that lies on a GPU."""

            def __init__(self, values: np.ndarray, number: int, base=None):
                self.values, self.number, self.base = values, number, base

            device = property(lambda self: Device(self.number))
            data = property(lambda self: SimpleNamespace(ptr=self.values.ctypes.data))
            __cuda_array_interface__ = property(lambda self: self.values.__array_interface__)
            __module__ = "cupy"

            def __dlpack_device__(self):
                return 2, self.number

            def __dlpack__(self, **_):
                return self  # a capsule, which from_dlpack opens

            def __array_ufunc__(self, ufunc, method, *inputs, **options):
                return gpus.compute(getattr(ufunc, method), inputs, options)

            def __array_function__(self, function, types, args, options):
                return gpus.compute(function, args, options)

            def __getattr__(self, name: str):
                found = getattr(self.values, name)  # shape, dtype, strides and so on, or a method
                if not callable(found):
                    return found

                def method(*args, **options):
                    takes = getattr(cupy.ndarray, name).__doc__.partition("\n")[0]  # its signature, in words
                    assert all(f"{option}=" in takes for option in options), f"CuPy's {takes}, and no {', '.join(options)}"
                    return gpus.compute(getattr(np.ndarray, name), (self, *args), options)

                return method

            def __getitem__(self, key):
                if any(isinstance(part, np.ndarray) for part in (key if isinstance(key, tuple) else (key,))):
                    raise IndexError("Unsupported type <class 'numpy.ndarray'>")
                return gpus.compute(np.ndarray.__getitem__, (self, self._within(key)), {})

            def __setitem__(self, key, value):
                gpus.compute(np.ndarray.__setitem__, (self, self._within(key), value), {})

            def _within(self, key):
                """CuPy looks at no place of an array of them, but takes what is too large from the start again."""
                if not isinstance(key, tuple) or not all(isinstance(part, Array) for part in key):
                    return key
                return tuple(part % n for part, n in zip(key, self.shape))

            def __len__(self):
                return len(self.values)

            def __array__(self, *_, **__):
                raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get()")

            def get(self):
                gpus.waited()
                return self.values.copy()

            def copy(self):
                values = self.values.copy()
                if gpus.written is not None:
                    gpus.written.append(lambda: np.copyto(values, self.values))
                return gpus.made(values)  # from any GPU to the current one

            def _asked(self, kind):
                gpus.waited()
                return kind(self.values)

            def __bool__(self):
                return self._asked(bool)

            def __int__(self):
                return self._asked(int)

            def __float__(self):
                return self._asked(float)

        self.ndarray = Array
        self.cuda = SimpleNamespace(
            Device=Device,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                memGetInfo=lambda: (self.memory - self.used, self.memory), CUDARuntimeError=CUDARuntimeError, driverGetVersion=lambda: 12040, runtimeGetVersion=lambda: 12090,
                getDeviceProperties=lambda number: {"name": b"a stand-in", "major": 8, "minor": 0, "multiProcessorCount": 2, "totalGlobalMem": self.memory, "l2CacheSize": 1 << 20},
            ),
            Event=Event,
            get_elapsed_time=lambda begin, end: (end.at - begin.at) * 1e3,
            MemoryPool=lambda: SimpleNamespace(malloc=None),
            using_allocator=lambda allocator: nullcontext(),
            Stream=partial(Stream, self),
            compiler=SimpleNamespace(CompileException=RuntimeError),
        )

    def waited(self) -> None:
        if self.written is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        self.waits += 1

    def do(self, work) -> None:
        """Runs it, or writes it down."""
        work() if self.written is None else self.written.append(work)

    # --- arrays ---------------------------------------------------------------------------------------------------

    def made(self, values: np.ndarray, base=None):
        """An array on the current GPU."""
        if base is None:
            if self.used + values.nbytes > self.memory:
                raise OutOfMemoryError(values.nbytes, self.used)
            self.used += values.nbytes
        return self.ndarray(values, self.current[-1], base)

    def compute(self, function, args, options):
        """numpy's function on the arrays' values. Raises ValueError as CuPy does where an array lies on another GPU."""
        given: list = []

        def opened(value):
            if isinstance(value, self.ndarray):
                if value.number != self.current[-1]:
                    raise ValueError(f"Array device must be same as the current device: array device = {value.number} while current = {self.current[-1]}")
                given.append(value)
                return value.values
            return type(value)(map(opened, value)) if isinstance(value, (tuple, list)) else value

        args, options = [opened(value) for value in args], {name: opened(value) for name, value in options.items()}
        edits = function is np.ndarray.__setitem__ or getattr(function, "__name__", "") == "at"
        out = args[0] if edits else options.get("out")
        if out is not None:
            self.do(lambda: function(*args, **options))
            return next(a for a in given if a.values is (out[0] if isinstance(out, tuple) else out))
        found = function(*args, **options)
        if not isinstance(found, (np.ndarray, np.generic)):
            return found
        values = np.asarray(found)
        base = next((a for a in given if values.size and np.shares_memory(a.values, values)), None)
        if base is None and self.written is not None:
            self.written.append(lambda: np.copyto(values, function(*args, **options)))
            if values.dtype.kind == "f":
                values[...] = np.nan  # nothing is computed while a stream is capturing
        return self.made(values, base)

    def asarray(self, values, dtype=None):
        return values if isinstance(values, self.ndarray) and dtype in (None, values.dtype) else self.array(values, dtype)

    def array(self, values, dtype=None, order="K"):
        if not isinstance(values, self.ndarray):
            assert self.written is None, "a graph would copy from the host's memory as it is when it is launched"
            return self.made(np.array(values, dtype=dtype, order=order))
        return self.made(np.array(values.values, dtype=dtype, order=order))

    def from_dlpack(self, array):
        theirs = array.__dlpack__()
        return self.ndarray(theirs.values, array.__dlpack_device__()[1])

    def get_default_memory_pool(self):
        return SimpleNamespace(used_bytes=lambda: self.used)

    def __getattr__(self, name: str):
        assert hasattr(cupy, name), f"CuPy has no {name}"
        found = getattr(np, name)
        if isinstance(found, np.ufunc):
            return Ufunc(self, found)
        return (lambda *args, **options: self.compute(found, args, options)) if callable(found) and not isinstance(found, type) else found

    # --- kernels ----------------------------------------------------------------------------------------------------

    def RawModule(self, code: str, options, backend: str):
        name, text = re.fullmatch(r'#line 1 "(.*?)"\n(.*)', code, re.S).groups()
        words = tuple(word for word in options if word.startswith("-D"))

        def function(kernel: str):
            def launch(grid, block, arguments, shared_mem: int = 0) -> None:
                assert all(a.number == self.current[-1] for a in arguments if isinstance(a, self.ndarray)), "a kernel reads its own GPU alone"
                opened = [a.values if isinstance(a, self.ndarray) else a for a in arguments]
                self.do(lambda: emulator.kernel(np.empty(0), Source(name, text), words, kernel)(grid, block, opened, shared_mem))

            return launch

        return SimpleNamespace(get_function=function)


@contextmanager
def installed(monkeypatch, count: int = 2):
    """Inside, this is the CuPy of a machine with so many GPUs."""
    gpus = Gpus(count)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", gpus)
        patch.setattr(gpu, "driver", lambda: (12, 4, count))
        patch.setattr(gpu, "find_spec", lambda name: object())
        patch.setattr(dispatch, "_kernels", {})
        _forget()
        yield gpus
    _forget()


def _forget() -> None:
    here.cache_clear()
    gpu._function.cache_clear()

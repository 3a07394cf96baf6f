"""Machine code on disk: what numba compiled once is loaded from then on without numba, in a millisecond.

Importing numba and rebuilding one of its functions from its own cache takes a second, more than all kernels of a network
take to load. But a kernel needs nothing of numba once it is compiled: it is called with a row's address and five numbers,
and asks nobody for anything. So its object code is written to a file, and LLVM alone (llvmlite) loads it.

What must not happen is that code is used for what it was not made for. A file is used only if these are what they were
when it was written: the source files that the code may come from, the processor and what it can do, the versions of
numba, llvmlite and numpy, and the settings of numba that change code (`_machine`). And only if it is whole: it carries
a checksum. Else it is compiled anew, and replaced. Files are written under another name and renamed, so that processes
which compile the same kernel at once each write a whole one.

Where: NUMBA_CACHE_DIR if it is set, else `__pycache__` beside this file, else, where that can't be written,
a folder `tinynet` in the user's cache. Where none can be written kernels are compiled at every start, which is said once.

Next on the walk: compiler.py, where numba is.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import llvmlite
import numpy as np
from llvmlite import binding

from tinynet.kernels.cpu.target import TARGET
from tinynet.kernels.kept import announced, folders, say

FOLDER = Path(__file__).parent
# Files that the code of any kernel may come from; its own file, if it is another one, counts too.
SOURCES = ("clock_kernels", "compiler", "congruence", "copies_kernels", "exponential", "jit", "layers", "layers_kernels", "loss_kernels", "objects", "pool_kernels", "product_kernels", "rows", "simd", "simd_memory", "target", "tiles", "tiles_kernels", "tiles_winograd", "vectors", "winograd_kernels", "winograd_transforms", "winograd_weights_kernels")
_FORMAT = b"tinynet object 1"

_mutex = threading.RLock()
_loaded: dict[str, int] = {}  # symbol -> address


def address(name: str, source: Path, make: Callable[[str], tuple[bytes, list[str]]]) -> int:
    """The address of the code called `name`, which stands for all that it is made of but the text of its source file.

    make(symbol): its object code, in which it is the one function of that name, and the names of functions that it calls. It
    is asked only if there is none on disk.
    """
    with _mutex:
        key = f"{name}\n{source}\n{_stamp(source)}\n{_machine()}".encode()
        symbol = f"tinynet_{sha256(key).hexdigest()[:32]}"
        if symbol in _loaded:
            return _loaded[symbol]
        file = f"{name}.{sha256(f'{source}{_machine()}'.encode()).hexdigest()[:12]}.o"
        found = next((code for folder in _folders() if (code := _read(folder / file, key))), None)
        if found is None:
            with announced(f"{name} for the CPU"):
                code, needs = make(symbol)
            found = " ".join(needs).encode() + b"\0" + code
            _write(file, key, found)
        needs, code = found.split(b"\0", 1)
        _loaded[symbol] = _load(name, symbol, needs.decode().split(), code)
        return _loaded[symbol]


# --- what code was made for -----------------------------------------------------------------------------------


@cache
def _stamp(source: Path) -> str:
    """Of the text of all files that the code may come from."""
    files = dict.fromkeys([*(FOLDER / f"{name}.py" for name in SOURCES), source])
    return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def numba_setting(name: str) -> str | None:
    """A setting of numba as numba would read it: from the environment, or from its file, which it alone understands."""
    if Path(".numba_config.yaml").is_file():
        import numba

        value = getattr(numba.config, f"NUMBA_{name}")
        return None if value is None else str(value)
    return os.environ.get(f"NUMBA_{name}")


@cache
def _machine() -> str:
    """The processor, the versions, and the settings: all of them but those that choose folders and threads."""
    unrelated = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER")
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("NUMBA_") and not k.startswith(unrelated))
    configured = Path(".numba_config.yaml")
    if configured.is_file():
        settings.append(configured.read_text("utf-8"))
    version = Path(find_spec("numba").origin).with_name("_version.py").read_bytes()  # its text: numba itself is not imported
    return "\n".join(
        [
            binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), TARGET.name,
            sys.implementation.cache_tag, sha256(version).hexdigest(), llvmlite.__version__, np.__version__, *settings,
        ]
    )  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------


@cache
def _folders() -> list[Path]:
    """Where objects may lie, the first choice first."""
    return folders(FOLDER)


def _read(path: Path, key: bytes) -> bytes | None:
    """What `_write` wrote for this key; None if there is nothing, or something for another key."""
    try:
        text = path.read_bytes()
    except OSError:
        return None  # there is none, or none that we may read: then one is made
    start, _, rest = text.partition(b"\n")
    checksum, _, body = rest.partition(b"\n")
    if start != _FORMAT or sha256(body).hexdigest().encode() != checksum:
        say(f"tinynet: {path} is damaged, and is made anew\n")
        return None
    length, _, rest = body.partition(b"\n")
    return rest[int(length) :] if rest[: int(length)] == key else None


def _write(file: str, key: bytes, code: bytes) -> None:
    body = b"%d\n%s%s" % (len(key), key, code)
    reasons = []
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / f"{file}.{os.getpid()}.{threading.get_ident()}"
            try:
                new.write_bytes(b"%s\n%s\n%s" % (_FORMAT, sha256(body).hexdigest().encode(), body))
                new.replace(folder / file)
            finally:
                new.unlink(missing_ok=True)  # a disk that is full, say
            return
        except OSError as error:
            reasons.append(str(error))
    _homeless(" and ".join(reasons))


@cache
def _homeless(reasons: str) -> None:
    say(f"tinynet: compiled kernels can't be kept, so each start compiles them again ({reasons}); set NUMBA_CACHE_DIR to a folder that can be written\n")


# --- into memory ------------------------------------------------------------------------------------------------


@cache
def _engine() -> binding.ExecutionEngine:
    """LLVM's loader. Code lives as long as the process."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _load(name: str, symbol: str, needs: list[str], code: bytes) -> int:
    engine = _engine()  # first: before there is one, LLVM knows no function of this process
    if missing := _missing(needs):
        import numba  # noqa: F401  (which brings libraries of its own, Intel's short vector mathematics for example)

        if missing := _missing(missing):
            raise RuntimeError(f"{name} calls {', '.join(missing)}, which this process does not have")  # LLVM would end the process
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(symbol)


def _missing(needs: list[str]) -> list[str]:
    return [name for name in needs if binding.address_of_symbol(name) is None]


class _Method(ctypes.Structure):
    """Python's PyMethodDef."""

    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


_FASTCALL = 0x80  # METH_FASTCALL: function(self, arguments, how many)
_methods: list[_Method] = []  # Python looks there whenever one is called


def python_function(name: str, address: int):
    """The code at an address, which compiler.for_python made, as a function of Python's: calling it takes 0.1 us, by ctypes 0.5."""
    method = _Method(name.encode(), address, _FASTCALL, None)
    _methods.append(method)
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    return new(ctypes.addressof(method), None, None)

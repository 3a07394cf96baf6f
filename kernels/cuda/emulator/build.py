"""From a .cu file to a library that this process can call: g++, once, and from then on from disk.

A library's name carries a stamp of all that it was made of: the kernel's text, the emulator's own files, the compiler's
version and its options. So what is found is used, whoever made it and whenever; and it carries a checksum, so that
half a file is not. Files are written under another name and renamed.

Next on the walk: device.h.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from hashlib import sha256
from pathlib import Path

from tinynet.kernels.cuda.launch import Source
from tinynet.kernels.kept import announced, folders, say

FOLDER = Path(__file__).parent
MOST_SHARED = 99 << 10  # bytes of shared memory that a block may have: as much as every GPU from sm_80 on gives
_ALWAYS = ("-fPIC", "-fno-exceptions", "-fno-strict-aliasing", "-fno-optimize-sibling-calls", "-fno-extern-tls-init", "-fno-gnu-unique", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-gdwarf-4", f"-I{FOLDER}")
_PLAIN = ("-O2", "-g1")
_CHECKED = ("-O1", "-g", "-fsanitize=thread,bounds")  # every access calls checker.cpp
_HOST = ("-std=c++20", "-O2", "-g1")

# As they read when device.h's macros are replaced
_KERNEL = re.compile(r'extern\s+"C"\s+__attribute__\(\(noinline\)\)\s+void\s+(\w+)\s*\(')
_DYNAMIC = re.compile(r"extern\s+thread_local\s+(?:__attribute__\(\(aligned\(\d+\)\)\)\s+)?[\w\s]*?(\w+)\s*\[\s*\]")


def reason() -> str | None:
    """Why nothing can be compiled here, and what to install; None if it can."""
    if sys.platform != "linux":
        return f"the emulator runs on Linux alone, not on {sys.platform}; install it in a Linux container or WSL"
    if shutil.which("g++") is None:
        return "g++ is not installed; Debian and Ubuntu: apt-get install g++, Fedora: dnf install gcc-c++"
    return None


@cache
def library(source: Source, words: tuple[str, ...], checked: bool) -> ctypes.CDLL:
    """The library of a .cu file, compiled with these -D macros; with every access watched in checked mode.

    Raises RuntimeError where there is no g++, or with its words where it doesn't compile.
    """
    if why := reason():
        raise RuntimeError(f"device 'cuda-emulator' can't compile {source.name}: {why}")
    options = (*_ALWAYS, "-std=c++17", *(_CHECKED if checked else _PLAIN + _vectors()), *words)
    parts = [_object("emulator.cpp")] + ([_object("checker.cpp")] if checked else [])

    def make(folder: Path, made: Path) -> None:
        (folder / "unit.cpp").write_text(f'#include "device.h"\n{source.code}', "utf-8")
        _compile(source.name, [*options, "-E", "unit.cpp", "-o", "unit.ii"], folder)
        with (folder / "unit.ii").open("a+", encoding="utf-8") as text:
            text.seek(0)
            text.write(_table(text.read()))
        _compile(source.name, [*options, "-c", "unit.ii", "-o", "unit.o"], folder)
        _compile(source.name, ["-shared", "unit.o", *map(str, parts), "-o", str(made)], folder)  # kernels first: emulator.cpp, fixed_shared

    how = " ".join((*words, "checked" if checked else ""))
    path = _kept(f"{source.name} for the emulator{', with checks' * checked}", Path(source.name).stem, how, (source.code, *options, *map(str, parts)), ".so", make)
    return ctypes.CDLL(str(path))


@cache
def _object(name: str) -> Path:
    """One of the emulator's own files, compiled without checks."""
    options = (*_ALWAYS, *_HOST)

    def make(folder: Path, made: Path) -> None:
        _compile(name, [*options, "-c", str(FOLDER / name), "-o", str(made)], folder)

    return _kept(f"the emulator's {name}", Path(name).stem, "", options, ".o", make)


def _table(text: str) -> str:
    """What follows the kernels: a table of them, and memory for the dynamic arrays, which all start at one place."""
    kernels = "".join(f'{{"{name}", Callable<decltype({name})>::signature, Callable<decltype({name})>::call<{name}>}}, ' for name in _KERNEL.findall(text))
    dynamic = dict.fromkeys(_DYNAMIC.findall(text))
    aliases = "".join(f'asm(".globl {name}\\n.hidden {name}\\n.set {name}, emulator_dynamic");\n' for name in dynamic)
    return f"""
# 1 "the end of the generated file"
alignas(128) __attribute__((used)) thread_local char emulator_dynamic[{MOST_SHARED if dynamic else 1}];
extern const size_t emulator_dynamic_bytes = {MOST_SHARED if dynamic else 0};
{aliases}extern "C" __attribute__((visibility("default"))) const Kernel emulator_kernels[] = {{{kernels}{{}}}};
"""


@cache
def _vectors() -> tuple[str, ...]:
    """What lets the emulator's own speed be had: instructions that this processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else None
    return ("-mavx2", "-mfma") if flags and {"avx2", "fma"} <= set(flags[1].split()) else ()


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "-v"], capture_output=True, text=True, check=True).stderr


def _compile(what: str, arguments: list[str], folder: Path) -> None:
    done = subprocess.run(["g++", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} does not compile for the emulator; g++ says:\n{done.stderr.strip()}")


# --- files --------------------------------------------------------------------------------------------------------------


@cache
def _own_files() -> bytes:
    return b"\0".join((FOLDER / name).read_bytes() for name in ("device.h", "emulator.h", "emulator.cpp", "checker.cpp"))


def _kept(what: str, stem: str, how: str, made_of: tuple[str, ...], suffix: str, make) -> Path:
    """The file that was made of this; made now, by make(folder to work in, path to write), if there is none on disk."""
    stamp = sha256("\0".join((*made_of, _compiler())).encode() + _own_files()).hexdigest()[:20]
    name, family = f"{stem}-{sha256(how.encode()).hexdigest()[:8]}-{stamp}{suffix}", f"{stem}-{sha256(how.encode()).hexdigest()[:8]}-*{suffix}"
    places = folders(FOLDER)
    for place in places:
        if _whole(place / name):
            return place / name
    with announced(what), tempfile.TemporaryDirectory(prefix="tinynet-") as folder:
        made = Path(folder) / name
        make(Path(folder), made)
        made.write_bytes((code := made.read_bytes()) + sha256(code).digest())  # what follows the code no loader reads
        return _stored(made, places, family)


def _whole(path: Path) -> bool:
    try:
        code = path.read_bytes()
    except OSError:
        return False  # there is none, or none that we may read: then one is made
    if sha256(code[:-32]).digest() == code[-32:]:
        return True
    say(f"tinynet: {path} is damaged, and is made anew\n")
    return False


def _stored(made: Path, places: list[Path], family: str) -> Path:
    reasons = []
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            new = place / f"{made.name}.{os.getpid()}.{threading.get_ident()}"
            try:
                shutil.copyfile(made, new)
                new.replace(place / made.name)
            finally:
                new.unlink(missing_ok=True)
        except OSError as error:
            reasons.append(str(error))
            continue
        for old in place.glob(family):  # of another text of the same file
            if old.name != made.name:
                old.unlink(missing_ok=True)
        return place / made.name
    raise RuntimeError(f"compiled kernels can't be kept ({' and '.join(reasons)}); set NUMBA_CACHE_DIR to a folder that can be written")

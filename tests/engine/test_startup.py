"""Kernels on disk: loaded without numba, and never in place of other code."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from tinynet.kernels.cpu import layers, objects, program, tiles, tiles_winograd
from tinynet.kernels.cpu.rows import Factory

# --- files: what is read back, and what is not ----------------------------------------------------------------


class Store:
    """objects.address on a folder of its own: `code` is what a compiler would return now, `asked` how often it was."""

    def __init__(self, folder: Path):
        self.folder, self.source, self.code, self.asked = folder, folder / "source.py", b"first", 0
        self.source.write_text("one")

    def get(self, name: str = "kernel") -> bytes:
        objects._loaded.clear()
        objects._stamp.cache_clear()
        return objects.address(name, self.source, self._make)

    def _make(self, symbol: str):
        self.asked += 1
        return self.code, []

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.o*"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Nothing is loaded: the code itself stands for its address."""
    monkeypatch.setattr(objects, "_loaded", {})
    monkeypatch.setattr(objects, "_folders", lambda: [tmp_path])
    monkeypatch.setattr(objects, "_load", lambda name, symbol, needs, code: code)
    yield Store(tmp_path)
    objects._stamp.cache_clear()
    objects._homeless.cache_clear()


def test_what_was_compiled_is_read_back(store):
    assert [store.get(), store.get()] == [b"first", b"first"]
    assert store.asked == 1 and len(store.files) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"x" + b])
def test_a_file_that_is_damaged_is_found_and_replaced_with_a_word(store, damage, capfd, monkeypatch):
    monkeypatch.delenv("TINYNET_QUIET", raising=False)
    store.get()
    (file,) = store.files
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert store.get() == b"first" and store.asked == 2
    assert f"{file} is damaged, and is made anew" in capfd.readouterr().err
    assert file.read_bytes() == whole


def test_other_text_in_its_source_is_other_code(store):
    store.get()
    store.source.write_text("two")
    store.code = b"second"
    assert [store.get(), store.get()] == [b"second", b"second"]
    assert store.asked == 2 and len(store.files) == 1, "the file of the old text is replaced"


def test_other_text_in_the_files_that_kernels_take_code_from_is_other_code(store, monkeypatch):
    before = objects._stamp(store.source)
    texts = {name: (objects.FOLDER / f"{name}.py").read_bytes() for name in objects.SOURCES}
    monkeypatch.setattr(objects, "FOLDER", store.folder)
    for name, text in texts.items():
        (store.folder / f"{name}.py").write_bytes(text)
    for name, text in texts.items():
        objects._stamp.cache_clear()
        assert objects._stamp(store.source) == before
        (store.folder / f"{name}.py").write_bytes(text + b"\n")
        objects._stamp.cache_clear()
        assert objects._stamp(store.source) != before, name
        (store.folder / f"{name}.py").write_bytes(text)


@pytest.mark.parametrize("what", ["cpu", "features", "llvmlite", "numpy", "setting", "numba", "target"])
def test_another_processor_another_version_or_setting_is_other_code(store, what, monkeypatch):
    store.get()
    if what == "cpu":
        monkeypatch.setattr(objects.binding, "get_host_cpu_name", lambda: "another")
    elif what == "features":
        features = objects.binding.get_host_cpu_features()
        features["avx2"] = not features.get("avx2")
        monkeypatch.setattr(objects.binding, "get_host_cpu_features", lambda: features)
    elif what in ("llvmlite", "numpy"):
        monkeypatch.setattr(objects.llvmlite if what == "llvmlite" else np, "__version__", "0.0")
    elif what == "setting":
        monkeypatch.setenv("NUMBA_OPT", "1")
    elif what == "numba":
        (store.folder / "_version.py").write_text("another")
        monkeypatch.setattr(objects, "find_spec", lambda name: type("Spec", (), {"origin": str(store.folder / "__init__.py")}))
    else:
        monkeypatch.setattr(objects, "TARGET", objects.TARGET.__class__("another", 128, 16))
    objects._machine.cache_clear()
    store.code = b"second"
    assert store.get() == b"second" and store.asked == 2
    monkeypatch.undo()
    objects._machine.cache_clear()


def test_settings_that_change_no_code_are_not_asked(monkeypatch):
    before = objects._machine()
    for name in ("CACHE_DIR", "NUM_THREADS", "THREADING_LAYER", "THREADING_LAYER_PRIORITY"):
        monkeypatch.setenv(f"NUMBA_{name}", "3")
    objects._machine.cache_clear()
    assert objects._machine() == before
    objects._machine.cache_clear()


def test_without_a_folder_that_can_be_written_it_works_and_says_so_once(store, monkeypatch, capfd):
    monkeypatch.delenv("TINYNET_QUIET", raising=False)
    occupied = store.folder / "occupied"
    occupied.write_text("a file where a folder is wanted: nobody can write there, not even root")
    monkeypatch.setattr(objects, "_folders", lambda: [occupied])
    assert store.get() == store.get("another") == store.get() == b"first"
    assert store.asked == 3
    assert capfd.readouterr().err.count("can't be kept") == 1


def test_the_next_folder_is_taken_where_the_first_can_not_be_written(store, monkeypatch):
    (store.folder / "occupied").write_text("")
    monkeypatch.setattr(objects, "_folders", lambda: [store.folder / "occupied" / "cache", store.folder / "home" / "cache"])
    assert store.get() == store.get() == b"first" and store.asked == 1
    assert len(list((store.folder / "home" / "cache").iterdir())) == 1


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    objects._folders.cache_clear()
    assert objects._folders() == [tmp_path / "tinynet"]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    objects._folders.cache_clear()
    assert objects._folders()[0] == objects.FOLDER / "__pycache__"
    objects._folders.cache_clear()


def test_code_that_calls_what_is_not_there_is_refused():
    with pytest.raises(RuntimeError, match="conv calls no_such_function, which this process does not have"):
        objects._load("conv", "symbol", ["no_such_function"], b"")


# --- which code is which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [tiles, layers, tiles_winograd], ids=lambda m: m.__name__.rpartition(".")[2])
def test_planners_know_kernels_by_their_names(module):
    found = {name: value for name, value in vars(module).items() if isinstance(value, Factory)}
    assert found
    for name, factory in found.items():
        assert factory.name == name and factory.source.is_file()
        assert name in {node.name for node in ast.parse(factory.source.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_files_that_kernels_take_code_from_are_known():
    """What a file of the list imports from its folder is in the list too; so are all files of kernels."""
    for name in (*objects.SOURCES, "players"):
        for node in ast.walk(ast.parse((objects.FOLDER / f"{name}.py").read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tinynet") and node.module != "tinynet.kernels.kept":  # no kernel's code
                assert node.module.startswith("tinynet.kernels.cpu."), f"{name} imports {node.module}"
                assert node.module.rpartition(".")[2] in objects.SOURCES, f"{name} imports {node.module}, which is not in objects.SOURCES"
    assert {path.stem for path in objects.FOLDER.glob("*_kernels.py")} <= set(objects.SOURCES)


@pytest.mark.parametrize("module", sorted(path.stem for path in [*objects.FOLDER.glob("*_kernels.py"), objects.FOLDER / "players.py"]))
def test_numba_keeps_nothing_of_what_is_compiled_into_kernels(module):
    """It would ask whether the function's own file has changed, and not the files that the function takes code and constants from."""
    found = import_module(f"tinynet.kernels.cpu.{module}")
    inlined = [value for value in vars(found).values() if isinstance(value, Dispatcher)]
    assert inlined and all(isinstance(function._cache, NullCache) for function in inlined)


def test_players_check_what_they_are_given():
    with pytest.raises(TypeError):
        program._players().alone()
    with pytest.raises(TypeError):
        program._players().alone("a table")
    with pytest.raises(OverflowError):
        program._players().alone(1 << 64)


def test_threads_that_ask_at_once_get_one_kernel():
    found = []
    asking = [threading.Thread(target=lambda: found.append(program.compiled.__wrapped__(layers.row_sums, np.float32))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1


# --- processes ----------------------------------------------------------------------------------------------------

STEP = """
import sys
import numpy as np
import tinynet
from tinynet import functional as F, nn
tinynet.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5))
optimizer = tinynet.optim.SGD(model.parameters(), lr=0.1)
@tinynet.compile
def step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss
x, y = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("f4"), np.arange(4)
print(*[step(x, y).item().hex() for _ in range(3)], "numba" in sys.modules)
"""


def test_a_training_step_whose_kernels_are_on_disk_imports_no_numba(python):
    first, second = python(STEP), python(STEP, TINYNET_QUIET="0")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout.split()[:3] == first.stdout.split()[:3]
    assert second.stdout.split()[3] == "False"
    assert second.stderr == "", "something was compiled, or said"


def test_players_are_loaded_before_any_kernel_and_without_numba(python):
    program._players()  # on disk from here on
    done = python("import sys; from tinynet.kernels.cpu import program; program._players(); print('numba' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


SUM = """
import numpy as np
from tinynet.kernels.cpu import layers
from tinynet.kernels.cpu.program import address_of, compiled, named, run
x, y = np.array([np.arange(100), -np.arange(100)], np.float32), np.ones(100, np.float32)
run([named(compiled(layers.row_sums, np.float32), layers.FEATURES, dict(count=100, images=2, dy=address_of(x), dy_row=100, y=address_of(y)))], 1, 1)
print(y.any())
"""


def test_processes_may_compile_at_once(tmp_path, python):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "TINYNET_QUIET": "0"}
    started = [subprocess.Popen([sys.executable, "-c", SUM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0 and out == "False\n", err
    files = sorted(path.name for path in (tmp_path / "tinynet").iterdir())
    assert all(name.endswith(".o") for name in files), f"left behind: {files}"
    assert {name.split(".")[1] for name in files} == {"row_sums_float32", "alone"} | {name for name in vars(program._players())}
    again = python(SUM, NUMBA_CACHE_DIR=str(tmp_path), TINYNET_QUIET="0")
    assert (again.returncode, again.stdout, again.stderr) == (0, "False\n", "")


@pytest.mark.parametrize("setting", ["", "1"])
def test_the_number_of_threads_is_numbas_before_it_is_imported(python, setting):
    code = """
import sys
from tinynet.kernels.cpu import threads
before = threads.count()
assert "numba" not in sys.modules
import numba
print(before == threads.count() == min(numba.get_num_threads(), threads._MOST), before)
numba.set_num_threads(1)
print(threads.count())
"""
    done = python(code, **({"NUMBA_NUM_THREADS": setting} if setting else {}))
    assert done.returncode == 0, done.stderr
    same, count, after = done.stdout.split()
    assert same == "True" and after == "1" and (not setting or count == setting)

"""The shape of the project: imports run one way, numpy alone is enough, files stay short, everything is installed."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"tinynet": "tinynet", "kernels": "tinynet.kernels", "compare": "tinynet.compare", "bench": "tinynet.bench"}  # folder -> package


PLUGIN = ROOT / "tinynet" / "oracle" / "plugin" / "__init__.py"  # loads without the package around it, so under a name of its own


def module_of(path: Path) -> str:
    if path == PLUGIN:
        return "tinynet_pytest"
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


SOURCES = {module_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}

# Who may import whom: a module may import from the layers that its own entry names, and from its own.
# The most specific entry counts; what no entry names is an error, so that a new file finds its place here.
MAY_IMPORT = {
    "tinynet.geometry": [],
    "tinynet.random": [],
    "tinynet.data": [],
    "tinynet.kernels.contract": ["tinynet.geometry"],
    "tinynet.kernels.graph": [],
    "tinynet.kernels.reference": ["tinynet.kernels.contract", "tinynet.geometry"],
    "tinynet.kernels.kept": [],
    "tinynet.kernels.gpu_arrays": [],
    "tinynet.kernels.cpu": ["tinynet.kernels.contract", "tinynet.kernels.graph", "tinynet.kernels.kept", "tinynet.geometry"],
    "tinynet.kernels.cuda": ["tinynet.kernels.contract", "tinynet.kernels.kept", "tinynet.geometry"],
    "tinynet.kernels": [],
    "tinynet.devices": ["tinynet.kernels.cuda", "tinynet.kernels.gpu_arrays"],
    "tinynet.dispatch": ["tinynet.devices", "tinynet.kernels.contract"],
    "tinynet.guard": [],
    "tinynet.mode": [],
    "tinynet.tape": ["tinynet.guard", "tinynet.devices"],
    "tinynet.tensor": ["tinynet.tape", "tinynet.mode", "tinynet.devices"],
    "tinynet.inputs": ["tinynet.mode", "tinynet.tensor", "tinynet.devices"],
    "tinynet.op": ["tinynet.mode", "tinynet.inputs", "tinynet.tape", "tinynet.tensor", "tinynet.dispatch"],
    "tinynet.ops": ["tinynet.op", "tinynet.tensor", "tinynet.inputs", "tinynet.devices", "tinynet.geometry"],
    "tinynet.functional": ["tinynet.ops"],
    "tinynet.storage": ["tinynet.tensor", "tinynet.devices"],
    "tinynet.optim": ["tinynet.mode", "tinynet.tensor", "tinynet.devices", "tinynet.dispatch", "tinynet.guard"],
    "tinynet.nn": ["tinynet.mode", "tinynet.functional", "tinynet.tensor", "tinynet.inputs", "tinynet.guard", "tinynet.devices", "tinynet.geometry", "tinynet.random"],
    "tinynet.deferred": ["tinynet.inputs", "tinynet.tensor", "tinynet.kernels.contract"],
    "tinynet.trace": ["tinynet.deferred", "tinynet.mode", "tinynet.op", "tinynet.tensor", "tinynet.dispatch", "tinynet.guard", "tinynet.random", "tinynet.kernels.graph"],
    "tinynet.fused": ["tinynet.tape", "tinynet.tensor", "tinynet.guard", "tinynet.optim", "tinynet.kernels.graph", "tinynet.kernels.cpu"],
    "tinynet.split": ["tinynet.trace", "tinynet.fused", "tinynet.op", "tinynet.tensor", "tinynet.kernels.graph", "tinynet.kernels.cpu"],
    "tinynet.returned": ["tinynet.trace", "tinynet.tensor"],
    "tinynet.runs": ["tinynet.split", "tinynet.deferred", "tinynet.dispatch", "tinynet.geometry", "tinynet.inputs", "tinynet.mode", "tinynet.op", "tinynet.tape", "tinynet.tensor", "tinynet.kernels.contract"],
    "tinynet.captured": ["tinynet.returned", "tinynet.runs", "tinynet.split", "tinynet.trace", "tinynet.inputs", "tinynet.optim", "tinynet.tensor", "tinynet.devices", "tinynet.guard", "tinynet.kernels.gpu_arrays", "tinynet.kernels.cuda"],
    "tinynet.plan": ["tinynet.captured", "tinynet.returned", "tinynet.mode", "tinynet.trace", "tinynet.split", "tinynet.fused", "tinynet.nn", "tinynet.tensor", "tinynet.dispatch", "tinynet.kernels.graph"],
    "tinynet.oracle": ["tinynet.kernels.reference", "tinynet.kernels.contract", "tinynet.geometry", "tinynet.tensor"],
    "tinynet.explain": ["tinynet.dispatch", "tinynet.kernels.contract", "tinynet.kernels.cuda"],
    "tinynet.train": ["tinynet.inputs", "tinynet.mode"],
    "tinynet": ["tinynet"],  # the package's own list of public names
    "tinynet.compare": ["tinynet"],
    "tinynet.bench": ["tinynet"],
    "tinynet.options": [],
    "tinynet.cli": ["tinynet"],
    "tinynet_pytest": ["tinynet.oracle"],
}  # fmt: skip
OUTSIDE = {"tinynet.cli", "tinynet.compare", "tinynet.bench"}  # nobody below may import these


def within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(layer + ".")


def layer_of(name: str) -> str:
    found = [layer for layer in MAY_IMPORT if within(name, layer) and (layer != "tinynet" or name == "tinynet")]
    assert found, f"{name} has no place in MAY_IMPORT: say which layers it may import from"
    return max(found, key=len)


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """The modules that a file imports: in functions too or, with everywhere=False, when it is loaded."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f) if n is not f}
    found = set()
    for node in ast.walk(tree):
        if not everywhere and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in SOURCES else node.module)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_one_way(name):
    own = layer_of(name)
    for wanted in imports(SOURCES[name]):
        if not within(wanted, "tinynet"):
            continue
        target = layer_of(wanted)
        allowed = target == own or any(within(target, layer) for layer in MAY_IMPORT[own] if layer != "tinynet")
        from_above = MAY_IMPORT[own] == ["tinynet"] and (target not in OUTSIDE or own in OUTSIDE and target != "tinynet.cli")
        assert allowed or from_above, f"{name} imports {wanted}: {own} may import from {', '.join(MAY_IMPORT[own]) or 'nothing of tinynet'}"


def test_the_rule_sees_an_import_in_the_wrong_direction(tmp_path):
    """The tester is tested: a kernel that knows tensors would be noticed."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from tinynet import tensor\n    import tinynet.nn\n")
    assert imports(wrong) == {"tinynet.tensor", "tinynet.nn"}
    assert imports(wrong, everywhere=False) == set()
    assert layer_of("tinynet.tensor") not in MAY_IMPORT["tinynet.kernels.cpu"]


HEAVY = {"tensorflow", "torch", "keras", "jax", "numba", "cupy", "matplotlib", "typer", "rich", "sklearn", "safetensors", "jinja2", "pygments"}


@pytest.mark.parametrize("name", [n for n in SOURCES if not within(n, "tinynet.kernels.cpu") and "listings" not in n and n != "tinynet.bench.roofline"])
def test_heavy_libraries_are_imported_where_they_are_used(name):
    heavy = {wanted.partition(".")[0] for wanted in imports(SOURCES[name], everywhere=False)} & HEAVY
    assert heavy <= ({"typer", "rich"} if name in ("tinynet.cli", "tinynet.options", "tinynet.bench.commands") else set()), f"{name} loads {heavy} when it is imported"


def test_a_tensor_names_no_op():
    for name in ("tensor", "tape"):
        assert not any(within(wanted, "tinynet.ops") for wanted in imports(SOURCES[f"tinynet.{name}"]))


def test_importing_tinynet_loads_numpy_alone_and_is_quick():
    """Under 0.2 s on an idle machine, numpy's own time apart; the least of several, since others compute beside us."""
    code = (
        "import sys, time, numpy; began = time.perf_counter(); import tinynet; print(time.perf_counter() - began); "
        "standard = set(sys.stdlib_module_names) | {'numpy', 'tinynet'}; "
        "print(*sorted({m.partition('.')[0] for m in sys.modules} - standard))"
    )
    runs = [subprocess.run([sys.executable, "-I", "-X", "frozen_modules=on", "-c", code], capture_output=True, text=True, check=True).stdout.split("\n") for _ in range(5)]
    loaded = {name for _, names, *_ in runs for name in names.split() if not name.startswith(("_", "sitecustomize"))}
    assert loaded <= {"cython_runtime", "distutils-precedence"}, loaded
    assert min(float(seconds) for seconds, *_ in runs) < 0.2


def code_lines(path: Path) -> int:
    """Lines that hold code: blank ones, comments and docstrings teach, they are no weight."""
    text = path.read_text("utf-8")
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({line for token in tokens if token.type not in layout for line in range(token.start[0], token.end[0] + 1)} - documented)


def test_the_engine_is_read_in_an_hour():
    for name in ("tensor", "op", "dispatch"):
        assert len(SOURCES[f"tinynet.{name}"].read_text("utf-8").splitlines()) < 200, name
    for name, path in SOURCES.items():
        if within(name, "tinynet.ops"):
            assert len(path.read_text("utf-8").splitlines()) < 80, name
    # `compile` is the second hour: nothing else in the engine needs to be understood for it, or needs it
    apart = ("tinynet.plan", "tinynet.captured", "tinynet.returned", "tinynet.runs", "tinynet.split", "tinynet.fused", "tinynet.trace", "tinynet.deferred", "tinynet.oracle", "tinynet_pytest", "tinynet.data", "tinynet.train", "tinynet.explain", "tinynet.options", "tinynet.cli", "tinynet.kernels", "tinynet.compare", "tinynet.bench")
    engine = {name: code_lines(path) for name, path in SOURCES.items() if not any(within(name, a) for a in apart)}
    assert sum(engine.values()) < 1_800, engine


def test_every_package_is_installed_and_none_at_the_top_level():
    """`kernels` and `compare` as import names would overwrite other distributions' files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(name for name, path in SOURCES.items() if path.name == "__init__.py")
    assert all(within(name, "tinynet") or name == "tinynet_pytest" for name in packages)
    mapping = project["tool"]["setuptools"]["package-dir"]
    assert all(mapping[package] == folder for folder, package in FOLDERS.items() if (ROOT / folder).is_dir())


def test_every_file_that_is_compiled_or_filled_in_is_installed():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    installed = {path for package, patterns in data.items() for pattern in patterns for path in (ROOT / package.removeprefix("tinynet.").replace(".", "/")).glob(pattern)}
    wanted = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix not in (".py", ".json", ".jsonl") and path.is_file() and "__pycache__" not in path.parts}
    assert wanted <= installed, wanted - installed


def test_the_lock_file_pins_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["compare"] + project["optional-dependencies"]["test"]
    lock = [line.split(";")[0].strip() for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lock)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lock}
    for requirement in wanted:
        name = requirement.split(";")[0].split(">")[0].strip().lower()
        assert name in pinned, f"{name} is not in requirements.lock; run `make lock`"

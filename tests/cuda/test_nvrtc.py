"""The real compiler takes every .cu file for every GPU: without spills, and as docs/cuda.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinynet.kernels.cuda import FAMILIES, occupancy
from tinynet.kernels.cuda.launch import FOLDER, Source

pytestmark = pytest.mark.skipif(occupancy.reason() is not None, reason=f"nothing compiled for a GPU: {occupancy.reason()}")
DOCS = Path(__file__).parents[2] / "docs" / "cuda.md"
UNITS = [pytest.param(family, defines, threads, id=f"{family.FILE.stem} {' '.join(f'{k}={v}' for k, v in defines.items())}") for family in FAMILIES for defines, threads in family.units()]
GPUS = (75, 80, 86, 90, 100)


def check(family, defines: dict, threads: dict, gpu: int) -> None:
    found = occupancy.compiled(Source.read(family.FILE), defines, gpu)
    assert set(found) == set(threads), "the kernels that the launcher knows"
    for name, needs in found.items():
        assert needs.spills == needs.stack == 0, f"{name} on sm_{gpu}: {needs.spills} bytes of registers spilled, {needs.stack} bytes of stack"
        assert needs.blocks(threads[name]) >= 1, f"{name} on sm_{gpu} can't be launched: {needs}"


@pytest.mark.parametrize("family, defines, threads", UNITS)
def test_every_form_compiles_without_spills(family, defines, threads):
    check(family, defines, threads, 80)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles_for_every_gpu_without_spills_and_as_the_docs_say(gpu):
    if gpu not in occupancy.gpus():
        pytest.skip(f"NVRTC {occupancy.version()} does not know sm_{gpu}")
    for family in FAMILIES:
        shown = [defines for _, _, defines, _ in family.occupancy_rows()]
        for defines, threads in family.units():
            if defines in shown:
                check(family, defines, threads, gpu)
    made = re.search(r"<!-- NVRTC (\d+)\.(\d+) -->\n(.*?)<!-- -->", DOCS.read_text("utf-8"), re.S)
    if tuple(map(int, made.groups()[:2])) != occupancy.version():
        pytest.skip(f"without spills; but the docs' table was made by NVRTC {made[1]}.{made[2]}, this is {occupancy.version()}")
    cells = [line.split("|") for line in made[3].splitlines()]
    mine = cells[0].index(f" sm_{gpu} ")
    assert ["|".join([*row[:4], row[mine], ""]) for row in cells] == occupancy.table([gpu]).splitlines(), "write it anew: tinynet explain --occupancy"


def test_every_cu_file_has_a_launcher():
    assert {family.FILE for family in FAMILIES} == set(FOLDER.glob("*.cu"))


def test_an_asynchronous_copy_is_the_instruction_from_sm_80_on():
    (family,) = [f for f in FAMILIES if f.FILE.name == "matmul.cu"]
    defines = family.occupancy_rows()[-1][2]
    assert "cp.async.ca.shared.global" in _ptx(family.FILE, defines, 80) and "cp.async.wait_group 1" in _ptx(family.FILE, defines, 80)
    assert "cp.async" not in _ptx(family.FILE, defines, 75)


def _ptx(file: Path, defines: dict, gpu: int) -> str:
    from cupy_backends.cuda.libs import nvrtc

    source = Source.read(file)
    program = nvrtc.createProgram(source.code, source.name, (), ())
    nvrtc.compileProgram(program, (*occupancy.OPTIONS, f"--gpu-architecture=compute_{gpu}", *(f"-D{k}={v}" for k, v in defines.items())))
    return nvrtc.getPTX(program).decode()


# --- the tester is tested -------------------------------------------------------------------------------------------------


def test_a_kernel_that_spills_is_seen():
    greedy = Source("greedy.cu", """
extern "C" __global__ void __launch_bounds__(1024, 2) greedy(float* x, int n) {
  __shared__ float tile[100];
  float held[64];
  for (int i = 0; i < 64; i++) held[i] = x[i * n];
  for (int k = 0; k < n; k++)
    for (int i = 0; i < 64; i++) held[i] = held[i] * held[(i + 1) % 64] + k;
  tile[threadIdx.x % 100] = held[3];
  __syncthreads();
  for (int i = 0; i < 64; i++) x[i * n] = held[i] + tile[i];
}
""")
    needs = occupancy.compiled(greedy, {}, 80)["greedy"]
    assert needs.spills > 0 and needs.registers <= 32 and needs.shared == 400


def test_what_does_not_compile_says_where():
    with pytest.raises(RuntimeError, match=r"(?s)broken.cu does not compile for sm_80; NVRTC says:.*broken.cu\(2\): error: .*missing"):
        occupancy.compiled(Source("broken.cu", 'extern "C" __global__ void f(float* x) {\n  x[0] = missing;\n}\n'), {}, 80)


@pytest.mark.parametrize(
    "gpu, threads, registers, shared, blocks",
    [
        (80, 256, 32, 0, 8),  # as many threads as there are places
        (80, 256, 64, 0, 4),  # half of that: the registers of 1024 threads
        (80, 256, 65, 0, 3),  # 72 registers a thread, by groups of 8
        (80, 64, 186, 0, 4),  # 10 warps by registers, 8 by fours
        (80, 32, 16, 0, 32),  # places for blocks
        (86, 32, 16, 0, 16),
        (80, 128, 16, 41 << 10, 3),  # 164 KiB, 42 of which a block takes
        (75, 128, 16, 32 << 10, 2),
        (75, 256, 32, 0, 4),
    ],
)
def test_blocks_of_a_multiprocessor(gpu, threads, registers, shared, blocks):
    needs = occupancy.Needs("k", gpu, registers, shared, 0, 0)
    assert needs.blocks(threads) == needs.blocks(threads, dynamic=0) == blocks
    assert needs.occupancy(threads) == blocks * threads / occupancy.GPUS[gpu].threads
    if shared:
        assert occupancy.Needs("k", gpu, registers, 0, 0, 0).blocks(threads, dynamic=shared) == blocks

"""What planners and kernels agree on: which numbers a kernel's row holds, and by which name a kernel is called for.

A kernel itself is code for numba; what surrounds it, the choice of its tile and the numbers of its row, is not. So
kernels live in files of their own, *_kernels.py, and planners know them by name (`kernels_in`): those files, and numba with
them, are imported only when a kernel must be compiled (objects.py). Importing numba takes longer than a training step.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROW = 64  # numbers in a row of a table: the kernel's address, then what it reads
MOST_ARRAYS = 5  # of an eager call; its scratch memory comes after them

# A table in memory: the number of phases, then HEAD numbers for each, then the rows of all.
HEAD = 8  # of a phase: the address of its first row, rows, images, chunks, shares; how many parts are taken, and done
FIRST, ROWS, IMAGES, CHUNKS, SHARES, TAKEN, DONE = range(7)

# The board on which callers offer programs to workers (threads.py); each number on a cache line of its own.
GENERATION, OPEN, INSIDE, JOB, ASLEEP = 0, 8, 16, 24, 32  # ASLEEP: one line a worker from here on


def row(address: int, *numbers: int) -> list[int]:
    return [address, *numbers, *[0] * (ROW - 1 - len(numbers))]


class Fields:
    """The places of a kernel's numbers in its row, by name. To numba it is a type of its own (simd_memory.py): it would make a named
    tuple again wherever one of its numbers is asked for, which was a fifth of a kernel's compilation."""

    def __init__(self, *names: str):
        assert len(names) < ROW and len(set(names)) == len(names), f"{len(names)} numbers, or one twice"
        self.__dict__.update({name: i for i, name in enumerate(names)})

    def __str__(self) -> str:
        return " ".join(vars(self))


def fields(names: str) -> Fields:
    """`F = fields("rows columns ...")`, and in the kernel `get(row, F.rows)`."""
    return Fields(*names.split())


def named(address: int, names: Fields, numbers: dict) -> list:
    """A row whose numbers are given by name; what is not given is 0.

    `numbers` may give a whole place in memory under one name: a tuple stands for that number and the ones that follow it.
    """
    found = [0] * (ROW - 1)
    for name, value in numbers.items():
        at = getattr(names, name)
        for i, number in enumerate(value if isinstance(value, tuple) else (value,)):
            found[at + i] = number
    return [address, *found]


@dataclass(frozen=True)
class Factory:
    """The function `name` of a file beside this one: called with a kernel's constants it makes the kernel."""

    file: str
    name: str

    @property
    def source(self) -> Path:
        return Path(__file__).with_name(f"{self.file}.py")

    def __call__(self, *constants):
        return getattr(import_module(f"{__package__}.{self.file}"), self.name)(*constants)


def kernels_in(file: str, names: str) -> list[Factory]:
    return [Factory(file, name) for name in names.split()]

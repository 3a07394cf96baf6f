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

# A table in memory, which begins with a cache line: what is written while it is played is apart from what is only read, and each number
# that another thread writes has a line of its own.
A_LINE = 8  # numbers in a cache line
PHASES, SHARED = 0, 1  # how many phases there are, and how many of them until the last that has more than one part
TURN = A_LINE  # how often it was played
HEADS, HEAD = 2 * A_LINE, A_LINE  # of each phase: where its rows begin, how many there are, images, chunks, shares, owners, where its marks are
FIRST, ROWS, IMAGES, CHUNKS, SHARES, OWNERS, MARKS = range(7)
# Then the rows of all phases, then their marks: a line for the parts that are done, in all turns, and one for each owner's parts that are
# taken: the turn, and in its lowest bits how many in that turn.
BITS = 20

# The board on which callers offer programs to workers (threads.py).
GENERATION, OPEN, JOB, JOB_TURN = 0, 1, 2, 3  # on one line, which a worker looks at: so it learns all at once
LED = A_LINE  # whether a caller has the workers: on a line of its own, at which only callers look
WORKER = 2 * A_LINE  # numbers for each worker, that of slot 1 after so many of the board's own
ASLEEP, BED, INSIDE = 0, 1, A_LINE  # of one; the last is written in every program, and has a line of its own


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

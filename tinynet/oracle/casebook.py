"""Cases: inputs on which a function under test is compared with the truth.

`cases(name)` is the built-in table of a kernel or op. Every geometry in it comes at least
twice, with whole numbers and with reals, so that a result which is left over from the call
before has the right shape and the wrong content. Arrays are made when they are asked for, from
the seed: the same seed, name and label give the same arrays everywhere.

Next on the walk: tables_kernels.py and tables_ops.py, the tables themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from tinynet.oracle import reference
from tinynet.oracle.bounds import format_of
from tinynet.oracle.verdict import to_numpy

# kind -> are sums of mean zero? (then the gate is 16)
KINDS = {"ints": True, "reals": True, "unique": True, "ties": True, "special": True, "subnormal": True, "user": False}


@dataclass(frozen=True)
class Case:
    """One set of inputs for `name`: `make(rng)` gives (arrays, parameters).

    kind: "ints" (sums must be exact), "reals", "unique", "ties", "special", "subnormal", or
    "user" (nothing is known about the data). zeros: a truth that is nearly all zeros is right.
    """

    name: str
    label: str
    kind: str
    make: Callable = field(repr=False, compare=False)
    dtype: str = "float32"
    seed: int = 0
    zeros: bool = False
    given: bool = False

    @classmethod
    def of(cls, name: str, *arrays, label: str = "given", kind: str = "user", zeros: bool = False, **parameters) -> "Case":
        """A case with given arrays, in the order of the signature of `name`."""
        reference.find(name)
        if kind not in KINDS:
            raise ValueError(f"oracle.Case: kind must be one of {', '.join(KINDS)}; got {kind!r}")
        arrays = tuple(None if a is None else np.array(to_numpy(a)) for a in arrays)
        dtypes = [a.dtype.name for a in arrays if a is not None and a.dtype.kind not in "iub"]
        if not dtypes:
            raise TypeError(f"oracle.Case: {name} needs at least one array of floats")
        return cls(name, label, kind, lambda rng: (arrays, parameters), format_of(dtypes[0], "oracle.Case").name, zeros=zeros, given=True)

    @property
    def id(self) -> str:
        return f"{self.label}/{self.kind}"

    @property
    def zero_mean(self) -> bool:
        return KINDS[self.kind]

    def inputs(self) -> tuple[tuple, dict]:
        """(arrays, parameters), fresh ones at each call."""
        rng = np.random.default_rng([self.seed, crc32(f"{self.name}:{self.label}:{self.kind}".encode())])
        arrays, parameters = self.make(rng)
        return tuple(None if a is None else np.array(a, order="C") for a in arrays), dict(parameters)

    def want(self, inputs=None):
        """The truth: a Bounded, or a tuple of them. With whole numbers whose sums all fit, to be met bit for bit."""
        arrays, parameters = inputs or self.inputs()
        found = reference.find(self.name)(*arrays, **parameters)
        if self.kind != "ints":
            return found
        return tuple(map(self._exact, found)) if isinstance(found, tuple) else self._exact(found)

    def _exact(self, want):
        fits = want.integral and want.gauge.max(initial=0.0) <= 2.0 ** format_of(self.dtype, "oracle.Case").p
        return want.exactly() if fits else want

    def repeat(self) -> str:
        """The line of Python that makes this case again; for given arrays, what it was made of."""
        if self.given:
            return f"oracle.Case.of({self.name!r}, ..., label={self.label!r}, kind={self.kind!r}) with the given arrays"
        return f"oracle.case({self.name!r}, {self.id!r}, seed={self.seed}, dtype={self.dtype!r})"

    def __str__(self) -> str:
        return f"{self.name} {self.id}"


def cases(name: str, *, seed: int = 0, dtype="float32", kinds: Iterable[str] | None = None) -> list[Case]:
    """The built-in table of `name`: all kinds, or those asked for."""
    reference.find(name)
    tables = _tables()
    if name not in tables:
        raise ValueError(f"oracle.cases: there is no table for {name!r}; there is one for {', '.join(tables)}")
    wanted = set(KINDS if kinds is None else kinds)
    if not wanted <= set(KINDS):
        raise ValueError(f"oracle.cases: kinds must be among {', '.join(KINDS)}; got {sorted(wanted - set(KINDS))}")
    dtype = format_of(dtype, "oracle.cases").name
    found = [replace(case, name=name, seed=seed) for case in tables[name](dtype) if case.kind in wanted]
    labels = [case.id for case in found]
    assert len(set(labels)) == len(labels), f"{name}: two cases have the same id"
    return found


def case(name: str, id: str, *, seed: int = 0, dtype="float32") -> Case:
    """One case of the built-in table, by its id as reports print it."""
    if found := re.match(r"random (\d+): ", id):
        from tinynet.oracle.random_geometry import random_cases

        table = random_cases(name, int(found[1]) + 1, seed=seed, dtype=dtype)
    else:
        table = cases(name, seed=seed, dtype=dtype)
    for found in table:
        if found.id == id:
            return found
    raise ValueError(f"oracle.case: {name} has no case {id!r}; it has {', '.join(c.id for c in table)}")


def names() -> tuple[str, ...]:
    """Every name that has a table, and so can be checked."""
    return tuple(_tables())


def _tables() -> dict:
    from tinynet.oracle.tables_kernels import TABLES as kernels
    from tinynet.oracle.tables_ops import TABLES as ops

    return {**kernels, **ops}

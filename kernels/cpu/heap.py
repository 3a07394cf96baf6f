"""What an op's result costs before its kernel begins: its memory, which should be some that this process has had before.

An array that Python frees goes back to the C library, and from there to the system, if it is large: by glibc's rules, if it was
128 KiB or more, or if more than that lies free at the heap's end. The next result of that size is new memory, of which the system
fills every page of 4 KiB with zeros when it is first touched, and that takes longer than to compute what is written there:
nine tenths of an eager forward pass of 8 or 32 images (`tinynet bench networks --contestants tinynet-eager`, with and without the
call below).

The C library learns: when a block is freed that it had asked the system for, blocks of that size stay with the process from
then on, and so does twice as much at the heap's end; of blocks of more than 32 MiB it learns nothing. Programs get there by and by,
whenever they free something large; we do it at once. Not to the end: what stays is added to what the largest results take, and with
32 MiB a training step of 512 images of network A needs a quarter more memory at most, with 24 no more than without.

It holds for the whole process, as any large array that is freed does. Who sets glibc's own variables (MALLOC_TRIM_THRESHOLD_ and the
like) has chosen already, and nothing changes; other C libraries have other rules.
"""

from __future__ import annotations

import numpy as np

BLOCK = 24 << 20  # bytes


def keep_what_is_freed() -> None:
    """Frees a block that nobody has touched: no memory is taken for it."""
    np.empty(BLOCK, np.uint8)

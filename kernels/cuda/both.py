"""A launcher is registered for two devices at once: arrays of either kind come, and launch.py sees which."""

from __future__ import annotations

from tinynet.kernels.contract import implements

DEVICES = ("cuda", "cuda-emulator")


def implements_on_both(name: str, *, variant: str):
    """contract.implements for `cuda` and `cuda-emulator`; the first variant is the default."""

    def register(function):
        for device in DEVICES:
            implements(name, device=device, variant=variant)(function)
        return function

    return register

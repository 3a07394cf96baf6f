"""A launcher is registered for two devices at once: arrays of either kind come, and launch.py sees which."""

from __future__ import annotations

from tinynet.kernels.contract import implements

DEVICES = ("cuda", "cuda-emulator")
STORIES: dict[str, list[str]] = {}  # kernel -> its variants in the order in which they are told, simplest first


def implements_on_both(name: str, *, variant: str, default: bool = False):
    """contract.implements for `cuda` and `cuda-emulator`."""

    def register(function):
        STORIES.setdefault(name, []).append(variant)
        for device in DEVICES:
            implements(name, device=device, variant=variant, default=default)(function)
        return function

    return register

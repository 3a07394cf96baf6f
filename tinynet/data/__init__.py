"""Real images to train on, in the networks' form: float32 in [0, 1], (N, 3, 32, 32), with int64 classes."""

from tinynet.data.digits import Split, load_digits

__all__ = ["Split", "load_digits"]

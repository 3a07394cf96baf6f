"""Benchmarks: correctness first, then times that can be trusted, beside what the machine can do at most."""

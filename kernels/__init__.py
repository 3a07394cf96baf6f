"""Kernels: plain functions on arrays, one folder a backend, all held to contract.py.

Installed as `tinynet.kernels`. Nothing here knows about tensors or gradients.
"""

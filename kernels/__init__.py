"""Triton kernels for NVIDIA and AMD GPUs, installed as ``mmfast.kernels``.

The algorithm is the CPU engine's, whose proofs hold here too: rows in class order, products of 8-bit digits that decide
which pairs can be active, and sums over those that are. The modules need Triton; :mod:`mmfast.ops` imports them at the
first use.
"""

"""Triton kernels for NVIDIA and AMD GPUs, installed as ``mmfast.kernels``.

The CPU engine lives in ``csrc/``; the same algorithms on a GPU are to live here, one file per operation.
"""

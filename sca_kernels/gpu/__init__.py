"""One plan for all GPU kernels: how activations are cut into tiles, which kernels run with which scratch memory, and
what is made of their sums. What remains for Triton (:mod:`sca_kernels.triton_kernels`) and CUDA C++
(:mod:`sca_kernels.cuda_kernels`) are the kernels themselves and a :class:`~sca_kernels.gpu.launcher.Launcher` each,
which starts them.

Everything here follows from shapes, strides and dtype alone, not from the device, so sums have the same order
everywhere.
"""

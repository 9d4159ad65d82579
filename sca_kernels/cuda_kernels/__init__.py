"""Starts the CUDA kernels in ``csrc/cuda``, for both ways to compile them, as :mod:`sca_kernels.gpu` plans.

All of it takes ``launch``, a :class:`~sca_kernels.cuda_kernels.parameters.Launch`, and depends on nothing else of CUDA;
:mod:`sca_kernels.backends.cuda` supplies it.
"""

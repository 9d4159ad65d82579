"""Host side of the CUDA kernels in ``csrc/cuda``: which kernel runs, on what grid, with which scratch buffers, for both
ways to compile them.

Each function takes ``launch``, a :class:`~sca_kernels.cuda_kernels.parameters.Launch`, and depends on nothing else of
CUDA; :mod:`sca_kernels.backends.cuda` supplies it.
"""

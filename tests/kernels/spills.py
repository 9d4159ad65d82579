"""What kernels of ``test_triton_versions.py`` may spill: those over activations accesses to local memory in their loop
over tiles, others bytes of a thread. The test wants exactly these, so a new spill fails, and so does one that is gone.
"""

PERMITTED = {
    ("3.5.1", 80, "38 channels_last fp32 T=16 alone"): {"backward_kernel 1": 2},
    ("3.5.1", 86, "small maps bf16 T=16"): {"forward_kernel 1": 1},
    ("3.5.1", 89, "77 channels_last bf16 T=16"): {"backward_kernel 1": 3},
    ("3.5.1", 89, "maps bf16 T=16"): {"backward_kernel 2": 3},
    ("3.5.1", 90, "38 channels_last bf16 T=16"): {"backward_kernel 2": 2},
    ("3.5.1", 90, "77 channels_last fp32 T=16"): {"backward_kernel 1": 3},
    ("3.5.1", 90, "maps fp32 T=16"): {"backward_kernel 1": 2},
    ("3.5.1", 120, "maps fp32 T=4"): {"backward_kernel 1": 1},
    ("3.6.0", 80, "64 channels_last fp32 T=64 alone"): {"backward_kernel 1": 2},
    ("3.6.0", 80, "maps bf16 T=8"): {"backward_kernel 1": 2},
    ("3.6.0", 80, "maps fp32 T=16"): {"backward_kernel 1": 1},
    ("3.6.0", 86, "64 channels_last bf16 T=16"): {"forward_kernel 1": 4},
    ("3.6.0", 89, "small maps bf16 T=16"): {"forward_kernel 1": 2},
    ("3.6.0", 90, "38 channels_last bf16 T=16"): {"backward_kernel 2": 2},
    ("3.6.0", 90, "64 channels_last bf16 T=8"): {"backward_kernel 2": 1},
    ("3.6.0", 90, "77 channels_last bf16 T=16"): {"backward_kernel 1": 3},
    ("3.6.0", 90, "77 channels_last fp32 T=16"): {"backward_kernel 1": 4},
    ("3.6.0", 100, "38 channels_last bf16 T=16"): {"backward_kernel 2": 2},
    ("3.6.0", 100, "38 channels_last bf16 T=16 alone"): {"backward_kernel 1": 2},
    ("3.6.0", 100, "77 channels_last fp32 T=16"): {"backward_kernel 1": 4},
    ("3.6.0", 100, "convolution bf16 8"): {"correlate_kernel 1": 8},
    ("3.6.0", 120, "38 channels_last fp32 T=16"): {"backward_kernel 1": 1},
    ("3.7.1", 86, "convolution bf16 8"): {"correlate_kernel 1": 8},
    ("3.7.1", 90, "38 channels_last bf16 T=16"): {"backward_kernel 2": 2},
    ("3.7.1", 90, "64 channels_last bf16 T=8"): {"backward_kernel 2": 1},
    ("3.7.1", 90, "77 channels_last bf16 T=16"): {"backward_kernel 1": 5},
    ("3.7.1", 90, "maps fp32 T=16"): {"forward_kernel 1": 1},
    ("3.9.0", 80, "convolution bf16 64"): {"correlate_kernel 1": 16, "correlate_kernel 2": 16},
    ("3.9.0", 80, "convolution fp32 40"): {"correlate_kernel 1": 8, "correlate_kernel 2": 16},
    ("3.9.0", 86, "convolution bf16 listed"): {"correlate_kernel 1": 8, "correlate_kernel 2": 8},
    ("3.9.0", 90, "convolution fp32 8"): {"weight_gradient_kernel 1": 16},
}
"""(Triton, compute capability, case) -> kernel and which of its name in the case -> bytes, or accesses."""

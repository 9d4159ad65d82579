#define SCA_ISA avx512
#include "kernels.inl"

#define SCA_ISA avx2
#include "kernels.inl"

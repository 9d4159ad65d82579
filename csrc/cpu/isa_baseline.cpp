#define SCA_ISA baseline
#include "kernels.inl"

// 3x3 convolutions of stride 1 with 4/9 of the multiplications: Winograd's minimal filtering F(2x2, 3x3).
//
// With d a 4x4 patch of the input, g a filter and y the 2x2 outputs below it,
//
//     y = A^T [sum over channels of (G g G^T) * (B^T d B)] A        (* elementwise)
//
// (Lavin & Gray, CVPR 2016, equations 8 and 12). The sum over channels is one matrix product for each of the 16
// elements. dL/dinput is such a convolution of dL/dy with the filters turned by half a turn; dL/dfilter is the adjoint
// of the equation, G^T [sum over patches of (A dL/dy A^T) * (B^T d B)] G.
//
// Activations are float32 [images, height, width, channels], filters float32 [out, in, 3, 3]; all are dense. Results
// depend neither on the number of threads nor on the run.
#pragma once

#include <cstdint>

namespace sca {

struct Convolution {
    int64_t images, height, width;  // of the input
    int64_t pad_rows, pad_columns;  // zeros on each side, 2 at most
    int64_t in, out;                // channels
    bool in_innermost;              // filters lie in memory as [out, 3, 3, in] (channels_last)

    int64_t out_height() const { return height + 2 * pad_rows - 2; }
    int64_t out_width() const { return width + 2 * pad_columns - 2; }
};

// y [images, out_height, out_width, out]; bias [out], or null.
void winograd_forward(const Convolution&, const float* x, const float* filters, const float* bias, float* y,
                      int threads);

// dL/dx from dL/dy.
void winograd_backward_input(const Convolution&, const float* g_y, const float* filters, float* g_x, int threads);

// dL/dfilters from dL/dy and the input: floats, or, where those are null, zeros and ones as bits (bit i of byte j is
// element 8 j + i).
void winograd_backward_filters(const Convolution&, const float* g_y, const float* x, const uint8_t* bits,
                               float* g_filters, int threads);

}  // namespace sca

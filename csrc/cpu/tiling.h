// How a [T, N, C, S] problem is cut into tiles that the kernels run over, and where a tile lies in each tensor.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace sca {

struct Shape {
    int64_t t, n, c, s;
};

// A tensor [T, N, C, S] with any strides (in elements); data may be null.
struct View {
    void* data = nullptr;
    DType dtype = DType::float32;
    int64_t t = 0, n = 0, c = 0, s = 0;
};

// A run of channels (whole ones, or a segment of one) whose elements are neighbours in memory: one row of a tile.
struct Span {
    int64_t channel, channels;  // first channel, number of channels
    int64_t begin, length;      // positions of each channel
    int64_t lanes() const { return channels * length; }
};

// The unit of parallel work: tiles [first, last) of spans [first_span, last_span), all spans of a tile before the next
// tile. Depends on the shape alone.
struct Task {
    int first_span, last_span;
    int64_t first, last;
};

// The order in which a problem is gone through.
enum class Order {
    channels,  // all of a channel before the next: for two passes over it
    memory,    // as it lies in memory, as far as that costs nothing: neighbouring pages, and their entries in the page
               // table, are visited together
};

// Tasks [first, last) that hold all elements of channels [channel, channel + channels): their sums are complete
// together.
struct Stripe {
    int64_t first, last;
    int64_t channel, channels;
};

// Some lanes of a tile, in one tensor.
struct LaneView {
    char* data;
    DType dtype;
    int64_t t, lane;  // strides, in elements
};

class Tiling {
  public:
    // Cuts the problem into tiles of at most max_lanes elements per time step, so that they suit the memory of all
    // views.
    Tiling(Shape shape, const std::vector<const View*>& views, int64_t max_lanes, Order order);

    const Shape shape;
    std::vector<Span> spans;
    std::vector<Task> tasks;
    std::vector<Stripe> stripes;

    int64_t most_lanes() const { return most_lanes_; }
    // Rows of a tile follow each other in memory: lane l belongs to lane l % span.lanes() of the span.
    int64_t most_rows() const { return stack_; }
    // Lanes a period apart, whole lines, belong to the same channel: parameters and sums need a slot for one period
    // only.
    int64_t period(const Span& span) const;
    // Channels [first, first + second) that a task has elements of.
    std::pair<int64_t, int64_t> channels(const Task& task) const;
    int64_t most_period() const { return most_period_; }
    int64_t rows(int64_t tile) const;
    LaneView at(const View& view, const Span& span, int64_t tile) const;

  private:
    bool channels_inner_;        // lanes run along channels (channels last), else along positions
    bool rows_are_samples_;      // inner rows run along samples, else along positions
    int64_t outer_ = 1, inner_;  // rows of a span: outer samples x inner rows
    int64_t stack_ = 1;          // a tile stacks up to stack_ inner rows
    int64_t most_lanes_ = 0, most_period_ = 0;
};

}  // namespace sca

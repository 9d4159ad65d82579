#include "tiling.h"

#include <algorithm>

namespace sca {
namespace {

// Elements of a task where there are enough: starting it costs nothing.
constexpr int64_t kTask = 1 << 17;
// Elements of a task at least, where its spans are those of one channel and where they have slots for many.
constexpr int64_t kLeastOfOne = 1 << 14, kLeastOfMany = 1 << 15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Tiling::Tiling(Shape given, const std::vector<const View*>& views, int64_t max_lanes, Order order) : shape(given) {
    const int64_t channels = shape.c, positions = shape.s;
    const auto all = [&](auto holds) {
        return std::all_of(views.begin(), views.end(), [&](const View* v) { return holds(*v); });
    };

    // The first view that tells the two dimensions apart decides; expanded ones (stride 0) don't.
    channels_inner_ = positions == 1;
    if (positions > 1 && channels > 1) {
        const auto tells = [](const View* v) { return v->data != nullptr && v->c != 0 && v->s != 0; };
        const auto v = std::find_if(views.begin(), views.end(), tells);
        channels_inner_ = v != views.end() && (*v)->c < (*v)->s;
    }

    const int64_t length = channels_inner_ ? 1 : positions;
    const bool adjoining =
        channels_inner_ || channels == 1 || all([&](const View& v) { return v.c == positions * v.s; });
    if (!adjoining || 2 * length > max_lanes) {
        const int64_t segments = ceil_div(length, max_lanes);
        const int64_t size = ceil_div(ceil_div(length, segments), kLine) * kLine;
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t begin = 0; begin < length; begin += size)
                spans.push_back({c, 1, begin, std::min(size, length - begin)});
    } else {
        const int64_t most = max_lanes / length;
        const int64_t size = ceil_div(channels, ceil_div(channels, most));
        for (int64_t c = 0; c < channels; c += size) spans.push_back({c, std::min(size, channels - c), 0, length});
    }

    rows_are_samples_ = !channels_inner_ || positions == 1;
    inner_ = rows_are_samples_ ? shape.n : positions;
    if (!rows_are_samples_) {
        const bool run_on = shape.n == 1 || all([&](const View& v) { return v.n == positions * v.s; });
        (run_on ? inner_ : outer_) *= shape.n;
    }
    const int64_t row = spans.front().lanes();
    const bool stackable =
        all([&](const View& v) { return (rows_are_samples_ ? v.n : v.s) == row * (channels_inner_ ? v.c : v.s); });
    if (spans.size() == 1 && stackable) stack_ = std::max<int64_t>(1, std::min(inner_, max_lanes / row));

    const int64_t tiles = outer_ * ceil_div(inner_, stack_);
    for (const Span& span : spans) {
        most_lanes_ = std::max(most_lanes_, span.lanes() * stack_);
        most_period_ = std::max(most_period_, period(span));
    }
    const int count = static_cast<int>(spans.size());
    // Few enough elements for an even share of the work.
    const int64_t elements = shape.t * shape.n * channels * positions;
    const int64_t most = spans.front().channels == 1 ? std::clamp(elements / 32, kLeastOfOne, kTask)
                                                     : std::clamp(elements / 4, kLeastOfMany, kTask);
    // Spans that take turns bring their parameters each time: next to nothing where that is one channel's.
    if (order == Order::memory && spans.front().channels == 1) {
        const int64_t tile_elements = most_lanes_ * shape.t;
        const int together = static_cast<int>(std::clamp<int64_t>(most / tile_elements, 1, count));
        const int64_t per_task = std::max<int64_t>(1, most / (tile_elements * together));
        for (int64_t tile = 0; tile < tiles; tile += per_task)
            for (int p = 0; p < count; p += together)
                tasks.push_back({p, std::min(count, p + together), tile, std::min(tiles, tile + per_task)});
        stripes.push_back({0, static_cast<int64_t>(tasks.size()), 0, channels});
        return;
    }
    for (int p = 0; p < count; ++p) {
        const Span& span = spans[p];
        const int64_t per_task = std::max<int64_t>(1, most / (span.lanes() * stack_ * shape.t));
        const int64_t first_task = static_cast<int64_t>(tasks.size());
        for (int64_t tile = 0; tile < tiles; tile += per_task)
            tasks.push_back({p, p + 1, tile, std::min(tiles, tile + per_task)});
        const int64_t last_task = static_cast<int64_t>(tasks.size());
        if (!stripes.empty() && stripes.back().channel == span.channel)
            stripes.back().last = last_task;
        else
            stripes.push_back({first_task, last_task, span.channel, span.channels});
    }
}

std::pair<int64_t, int64_t> Tiling::channels(const Task& task) const {
    const Span& last = spans[task.last_span - 1];
    const int64_t first = spans[task.first_span].channel;
    return {first, last.channel + last.channels - first};
}

int64_t Tiling::period(const Span& span) const {
    if (span.channels == 1) return kLine;
    return span.lanes() % kLine == 0 ? span.lanes() : padded(span.lanes() * stack_);
}

int64_t Tiling::rows(int64_t tile) const {
    const int64_t first = tile % ceil_div(inner_, stack_) * stack_;
    return std::min(stack_, inner_ - first);
}

LaneView Tiling::at(const View& v, const Span& span, int64_t tile) const {
    const int64_t per_outer = ceil_div(inner_, stack_);
    const int64_t outer = tile / per_outer, inner = tile % per_outer * stack_;
    const int64_t inner_stride = rows_are_samples_ ? v.n : v.s;
    const int64_t offset = outer * v.n + inner * inner_stride + span.channel * v.c + span.begin * v.s;
    return {static_cast<char*>(v.data) + offset * element_size(v.dtype), v.dtype, v.t, channels_inner_ ? v.c : v.s};
}

}  // namespace sca

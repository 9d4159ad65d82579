#include "layout.h"

#include <algorithm>

namespace sca {
namespace {

// Elements of a block where there are enough: starting it costs nothing.
constexpr int64_t kBlock = 1 << 17;
// Elements of a block at least, where its parts are those of one channel and where they have slots for many.
constexpr int64_t kLeastOfOne = 1 << 14, kLeastOfMany = 1 << 15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Layout::Layout(Shape given, const std::vector<const View*>& views, int64_t max_lanes, Order order) : shape(given) {
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
    const bool spans = channels_inner_ || channels == 1 || all([&](const View& v) { return v.c == positions * v.s; });
    if (!spans || 2 * length > max_lanes) {
        const int64_t segments = ceil_div(length, max_lanes);
        const int64_t size = ceil_div(ceil_div(length, segments), kLine) * kLine;
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t begin = 0; begin < length; begin += size)
                parts.push_back({c, 1, begin, std::min(size, length - begin)});
    } else {
        const int64_t most = max_lanes / length;
        const int64_t size = ceil_div(channels, ceil_div(channels, most));
        for (int64_t c = 0; c < channels; c += size) parts.push_back({c, std::min(size, channels - c), 0, length});
    }

    rows_are_samples_ = !channels_inner_ || positions == 1;
    inner_ = rows_are_samples_ ? shape.n : positions;
    if (!rows_are_samples_) {
        const bool run_on = shape.n == 1 || all([&](const View& v) { return v.n == positions * v.s; });
        (run_on ? inner_ : outer_) *= shape.n;
    }
    const int64_t row = parts.front().lanes();
    const bool stackable =
        all([&](const View& v) { return (rows_are_samples_ ? v.n : v.s) == row * (channels_inner_ ? v.c : v.s); });
    if (parts.size() == 1 && stackable) stack_ = std::max<int64_t>(1, std::min(inner_, max_lanes / row));

    const int64_t tiles = outer_ * ceil_div(inner_, stack_);
    for (const Part& part : parts) {
        most_lanes_ = std::max(most_lanes_, part.lanes() * stack_);
        most_period_ = std::max(most_period_, period(part));
    }
    const int count = static_cast<int>(parts.size());
    // Few enough elements for an even share of the work.
    const int64_t elements = shape.t * shape.n * channels * positions;
    const int64_t block = parts.front().channels == 1 ? std::clamp(elements / 32, kLeastOfOne, kBlock)
                                                      : std::clamp(elements / 4, kLeastOfMany, kBlock);
    // Parts that take turns bring their parameters each time: next to nothing where that is one channel's.
    if (order == Order::memory && parts.front().channels == 1) {
        const int64_t tile_elements = most_lanes_ * shape.t;
        const int together = static_cast<int>(std::clamp<int64_t>(block / tile_elements, 1, count));
        const int64_t per_block = std::max<int64_t>(1, block / (tile_elements * together));
        for (int64_t tile = 0; tile < tiles; tile += per_block)
            for (int p = 0; p < count; p += together)
                blocks.push_back({p, std::min(count, p + together), tile, std::min(tiles, tile + per_block)});
        groups.push_back({0, static_cast<int64_t>(blocks.size()), 0, channels});
        return;
    }
    for (int p = 0; p < count; ++p) {
        const Part& part = parts[p];
        const int64_t per_block = std::max<int64_t>(1, block / (part.lanes() * stack_ * shape.t));
        const int64_t first_block = static_cast<int64_t>(blocks.size());
        for (int64_t tile = 0; tile < tiles; tile += per_block)
            blocks.push_back({p, p + 1, tile, std::min(tiles, tile + per_block)});
        const int64_t last_block = static_cast<int64_t>(blocks.size());
        if (!groups.empty() && groups.back().channel == part.channel)
            groups.back().last = last_block;
        else
            groups.push_back({first_block, last_block, part.channel, part.channels});
    }
}

std::pair<int64_t, int64_t> Layout::channels(const Block& block) const {
    const Part& last = parts[block.last_part - 1];
    const int64_t first = parts[block.part].channel;
    return {first, last.channel + last.channels - first};
}

int64_t Layout::period(const Part& part) const {
    if (part.channels == 1) return kLine;
    return part.lanes() % kLine == 0 ? part.lanes() : padded(part.lanes() * stack_);
}

int64_t Layout::rows(int64_t tile) const {
    const int64_t first = tile % ceil_div(inner_, stack_) * stack_;
    return std::min(stack_, inner_ - first);
}

Place Layout::at(const View& v, const Part& part, int64_t tile) const {
    const int64_t per_outer = ceil_div(inner_, stack_);
    const int64_t outer = tile / per_outer, inner = tile % per_outer * stack_;
    const int64_t inner_stride = rows_are_samples_ ? v.n : v.s;
    const int64_t offset = outer * v.n + inner * inner_stride + part.channel * v.c + part.begin * v.s;
    return {static_cast<char*>(v.data) + offset * element_size(v.dtype), v.dtype, v.t, channels_inner_ ? v.c : v.s};
}

}  // namespace sca

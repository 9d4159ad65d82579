// Source of the kernels of kernels.h. Included by isa_*.cpp, each compiled for its own instruction set with SCA_ISA
// naming it. No function with external linkage but the one at the foot, and no std:: templates, so that nothing is
// shared between sets.

#include "kernels.h"
#include "simd.h"
#include "winograd.inl"

// So that an array over time steps stays in registers.
#define SCA_UNROLL _Pragma("GCC unroll 8")

namespace sca {
inline namespace SCA_ISA {
namespace {

// Lanes from those that are computed to those that are fetched: far enough for them to arrive, near enough not to push
// out, where steps lie a power of two apart, what shares its cache sets.
constexpr int64_t kAhead = 256;

// The slot of the next vector.
SCA_HOST_DEVICE int64_t next_slot(int64_t slot, int64_t period) {
    slot += kLanes;
    return slot < period ? slot : 0;
}

// Go through the time steps of one vector, up or down from step `first`. They copy what they need: as far as the
// compiler knows, a store through one of them could change the arguments.
//
// What the same steps will want soon is fetched. Where it `leaves` for good it must not push out of the caches what is
// still wanted; kernels that never read for the last time don't ask.
template <class T, bool leaves = false>
class Reader {
  public:
    SCA_HOST_DEVICE Reader(const Source& from, int64_t i, int64_t size, int64_t first = 0, int64_t direction = 1)
        : first_(static_cast<const T*>(from.data) + first * from.step + i),
          p_(first_),
          step_(direction * from.step),
          ahead_(i + kAhead < size ? kAhead : from.ahead + kAhead - size),
          last_(from.last) {}

    SCA_HOST_DEVICE Floats next() {
        last_&& leaves ? fetch<0>(p_ + ahead_) : fetch<3>(p_ + ahead_);
        const Floats x = load(p_);
        p_ += step_;
        return x;
    }
    // Step k from the first.
    SCA_HOST_DEVICE Floats at(int64_t k) const { return load(first_ + k * step_); }

  private:
    template <int locality>
    static SCA_HOST_DEVICE void fetch(const T* p) {
        for (int64_t line = 0; line < kLanes; line += 64 / static_cast<int64_t>(sizeof(T)))
            __builtin_prefetch(p + line, 0, locality);
    }
    const T *first_, *p_;
    int64_t step_, ahead_;
    bool last_;
};

template <class T>
class Writer {
  public:
    SCA_HOST_DEVICE Writer(const Sink& to, int64_t i, int64_t first = 0, int64_t direction = 1)
        : p_(static_cast<T*>(to.data) + first * to.step + i), step_(direction * to.step), streamed_(to.streamed) {}

    SCA_HOST_DEVICE void next(Floats x) {
        streamed_ ? stream(x, p_) : store(x, p_);
        p_ += step_;
    }

  private:
    T* p_;
    const int64_t step_;
    const bool streamed_;
};

// The affine prelude of a vector of lanes; without one, y = x.
struct Prelude {
    Floats scale = 1.0f, shift = 0.0f;
    bool affine;

    SCA_HOST_DEVICE Prelude(const Lanes& lanes, int64_t slot) : affine(lanes.scale != nullptr) {
        if (!affine) return;
        scale = load(lanes.scale + slot);
        shift = load(lanes.shift + slot);
    }
    SCA_HOST_DEVICE Floats operator()(Floats x) const { return affine ? x * scale + shift : x; }
};

// Where a vector of lanes fires, and what its reset does by: in general per slot, else the same for all.
template <class Reset, bool general>
struct Limits {
    Floats fires_at, by;

    SCA_HOST_DEVICE Limits(const Lanes& lanes, int64_t slot)
        : fires_at(general ? load(lanes.fire_at + slot) : Floats(lanes.fires_at)),
          by(Reset::by(general ? load(lanes.bys + slot) : Floats(lanes.by))) {}

    SCA_HOST_DEVICE Floats after(Floats h) const { return Reset::after(h, fires_at, by); }
};

// The potentials of a vector of lanes before each reset, computed again from x.
template <class Charge, class Reset, class T, bool general>
struct Recomputed {
    Limits<Reset, general> limits;
    Floats rest, rate, start, potential, h[kSteps]{};
    Prelude current;
    Reader<T, true> xs;

    SCA_HOST_DEVICE Recomputed(const Lanes& lanes, int64_t i, int64_t slot, const Source& x, const float* v)
        : limits(lanes, slot),
          rest(Reset::rest(Floats(lanes.rest))),
          rate(load(lanes.rate + slot)),
          start(v == nullptr ? Floats(lanes.rest) : load(v + i)),
          potential(start),
          current(lanes, slot),
          xs(x, i, lanes.size) {}

    SCA_HOST_DEVICE void step(int64_t k) {
        h[k] = Charge::charge(potential, current(xs.next()), rest, rate);
        potential = limits.after(h[k]);
    }
};

struct PreludeAdjoint {
    Floats g_y = 1.0f, slope = 0.0f, center = 0.0f, offset = 0.0f;
    const bool affine;

    SCA_HOST_DEVICE PreludeAdjoint(const Lanes& lanes, int64_t slot) : affine(lanes.g_y != nullptr) {
        if (lanes.center != nullptr) center = load(lanes.center + slot);
        if (!affine) return;
        g_y = load(lanes.g_y + slot);
        slope = load(lanes.slope + slot);
        offset = load(lanes.offset + slot);
    }
    SCA_HOST_DEVICE Floats operator()(Floats g, Floats x) const {
        return affine ? g_y * g + (slope * (x - center) + offset) : g;
    }
};

template <class Charge, class Reset, class T, bool general>
void fire(const Lanes& lanes, int64_t steps, const Source& x, const Sink& s, const Sink& to_h, float* v, int32_t* count,
          float* l1) {
    const Floats rest = Reset::rest(Floats(lanes.rest));
    const bool keeps_h = general && to_h.data != nullptr;
    for (int64_t i = 0, slot = lanes.first; i < lanes.size; i += kLanes, slot = next_slot(slot, lanes.period)) {
        const Floats rate = load(lanes.rate + slot), gate = load(lanes.gate + slot);
        const Limits<Reset, general> limits(lanes, slot);
        const Prelude current(lanes, slot);
        Floats potential = v == nullptr ? Floats(lanes.rest) : load(v + i), sum = 0.0f;
        Ints fired{};
        Reader<T> xs(x, i, lanes.size);
        Writer<T> spikes(s, i);
        Writer<float> potentials(to_h, i);
        for (int64_t k = 0; k < steps; ++k) {
            const Floats h = Charge::charge(potential, current(xs.next()), rest, rate);
            const Ints spike = h >= limits.fires_at;
            if (keeps_h) potentials.next(h);
            potential = limits.after(h);
            fired = count_up(fired, spike);
            sum = sum + absolute(potential - rest);
            spikes.next(select(spike, gate, Floats(0.0f)));
        }
        if (v != nullptr) store(potential, v + i);
        accumulate(fired, count + slot, lanes.size - i);
        accumulate(sum, l1 + slot, lanes.size - i);
    }
}

template <class Charge, class Reset, class T, bool general>
void advance(const Lanes& lanes, int64_t steps, const Source& x, float* v) {
    const Floats rest = Reset::rest(Floats(lanes.rest));
    for (int64_t i = 0, slot = lanes.first; i < lanes.size; i += kLanes, slot = next_slot(slot, lanes.period)) {
        const Floats rate = load(lanes.rate + slot);
        const Limits<Reset, general> limits(lanes, slot);
        const Prelude current(lanes, slot);
        Floats potential = load(v + i);
        Reader<T> xs(x, i, lanes.size);
        for (int64_t k = 0; k < steps; ++k)
            potential = limits.after(Charge::charge(potential, current(xs.next()), rest, rate));
        store(potential, v + i);
    }
}

// The surrogate of general kernels. Not in line: in loops that are unrolled all of them would stand in each step.
struct AnySurrogate {
    static __attribute__((noinline)) Floats slope(Floats u, float alpha, float beta, int row) {
        switch (row) {
#define SCA_ROW(index, Surrogate) \
    case index:                   \
        return Surrogate::slope(u, alpha, beta);
            SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
        }
        return u;
    }
};

template <class Surrogate>
struct Slope {
    static constexpr bool general = false;
    static SCA_HOST_DEVICE Floats of(Floats u, const Lanes& lanes) { return Surrogate::slope(u, lanes.alpha, lanes.beta); }
};
template <>
struct Slope<AnySurrogate> {
    static constexpr bool general = true;
    static SCA_HOST_DEVICE Floats of(Floats u, const Lanes& lanes) {
        return AnySurrogate::slope(u, lanes.alpha, lanes.beta, lanes.surrogate);
    }
};

// Vector by vector, every step of one in registers (the loops over kSteps are unrolled): so the little there is to
// compute hides behind the memory. A step waits for the one before, up in time and down again: the potentials of the
// next vector go up while the gradients of this one come down. What is the same for all lanes and doesn't change the
// equations is a run-time flag: a variant without them gained a tenth of what computing takes, a fiftieth of a call.
template <class Surrogate, class Charge, class Reset, class T>
void adjoint(const Lanes& lanes, int64_t steps, bool detach, const Source& x, const Source& g_s, const Source& of_h,
             const float* v, float* g_v, const Gradients& out) {
    const Floats rest = Reset::rest(Floats(lanes.rest));
    constexpr bool general = Slope<Surrogate>::general;
    const float gain = lanes.gain;
    const bool to_x = out.x.data != nullptr, sums = out.scale != nullptr;
    const bool over_time = out.over_time != nullptr, leak = out.rate != nullptr;
    const bool from_h = general && of_h.data != nullptr, learned = general && out.threshold != nullptr;
    const bool by_spikes = !general || lanes.surrogate != kNoSurrogate;
    Recomputed<Charge, Reset, T, general> now(lanes, 0, lanes.first, x, v);
    SCA_UNROLL for (int64_t k = 0; k < kSteps; ++k) {
        if (k < steps) now.step(k);
    }
    for (int64_t i = 0, slot = lanes.first; i < lanes.size; i += kLanes) {
        const int64_t following = next_slot(slot, lanes.period);
        const bool more = i + kLanes < lanes.size;
        Recomputed<Charge, Reset, T, general> next(lanes, more ? i + kLanes : i, more ? following : slot, x, v);
        const Floats rate = now.rate, by = now.limits.by, fires_at = now.limits.fires_at;
        const Floats threshold = general ? load(lanes.thresholds + slot) : Floats(lanes.threshold);
        const Floats by_v = Charge::by_v(rate), by_x = Charge::by_x(rate);
        const PreludeAdjoint to_input(lanes, slot);
        Floats carried = g_v == nullptr ? Floats(0.0f) : load(g_v + i);
        Floats g_scale = 0.0f, g_shift = 0.0f, g_rate = 0.0f, g_threshold = 0.0f, g_over_time = 0.0f;
        Reader<T, true> spike_grads(g_s, i, lanes.size, steps - 1, -1);
        Reader<float, true> potential_grads(of_h, i, lanes.size, steps - 1, -1);
        Writer<T> grads(out.x, i, steps - 1, -1);
        SCA_UNROLL for (int64_t n = 0; n < kSteps; ++n) {
            if (n < steps) next.step(n);
            const int64_t k = kSteps - 1 - n;
            if (k >= steps) continue;
            const Floats h = now.h[k];
            const Floats slope = by_spikes ? Slope<Surrogate>::of(h - threshold, lanes) * gain : Floats(0.0f);
            const Floats g_s_k = spike_grads.next();
            const Floats by_spike = detach ? Reset::template by_spike<true>(g_s_k, carried, h, slope, by)
                                           : Reset::template by_spike<false>(g_s_k, carried, h, slope, by);
            Floats g_h = by_spike + Reset::carried(carried, h, fires_at);
            if (from_h) g_h = g_h + potential_grads.next();
            if (learned) {
                g_threshold = g_threshold - by_spike;
                if (out.subtracted) g_threshold = g_threshold - Reset::subtracted(carried, h, fires_at);
            }
            const Floats g = g_h * by_x, x_k = now.current.affine || leak ? now.xs.at(k) : rest;
            carried = g_h * by_v;
            if (to_x) grads.next(to_input(g, x_k));
            if (sums) {
                g_scale = g_scale + g * (x_k - to_input.center);
                g_shift = g_shift + g;
            }
            if (over_time) g_over_time = g_over_time + g;
            if (leak) {
                const Floats before = k == 0 ? now.start : now.limits.after(now.h[k - (k > 0)]);
                g_rate = g_rate + g_h * Charge::by_leak(before, now.current(x_k), rest);
            }
        }
        if (g_v != nullptr) store(carried, g_v + i);
        if (sums) {
            store(load(out.scale + slot) + g_scale, out.scale + slot);
            store(load(out.shift + slot) + g_shift, out.shift + slot);
        }
        if (over_time) store(load(out.over_time + i) + g_over_time, out.over_time + i);
        if (leak) store(load(out.rate + slot) + g_rate, out.rate + slot);
        if (learned) store(load(out.threshold + slot) + g_threshold, out.threshold + slot);
        now = next;
        slot = following;
    }
}

template <class T>
void finish(const Lanes& lanes, const float* over_time, const Source& x, const Sink& g_x) {
    for (int64_t i = 0, slot = lanes.first; i < lanes.size; i += kLanes, slot = next_slot(slot, lanes.period))
        Writer<T>(g_x, i).next(PreludeAdjoint(lanes, slot)(load(over_time + i), Reader<T>(x, i, lanes.size).next()));
}

template <class T>
void moments(const Lanes& lanes, int64_t steps, const Source& x, double* sum, double* square) {
    for (int64_t i = 0, slot = lanes.first; i < lanes.size; i += kLanes, slot = next_slot(slot, lanes.period)) {
        Doubles first = load(sum + slot), second = load(square + slot);
        Reader<T> xs(x, i, lanes.size);
        for (int64_t k = 0; k < steps; ++k) {
            const Doubles z = widened(xs.next());
            first = first + z;
            second = plus_square(second, z);
        }
        store(first, sum + slot);
        store(second, square + slot);
    }
}

// `one` is the bit pattern of 1. Elements become bytes of 0 or 1 first; the product then moves bit 0 of byte i to bit i
// of the uppermost byte.
template <class Word, Word one>
bool pack(const void* spikes, uint8_t* to, int64_t bytes) {
    constexpr int64_t kStaged = 64;
    const Word* from = static_cast<const Word*>(spikes);
    Word other = 0;
    for (int64_t begin = 0; begin < bytes; begin += kStaged) {
        const int64_t size = bytes - begin < kStaged ? bytes - begin : kStaged;
        uint8_t flags[8 * kStaged];
        const Word* staged = from + 8 * begin;
#pragma omp simd reduction(| : other)
        for (int64_t i = 0; i < 8 * size; ++i) {
            const Word magnitude = staged[i] & static_cast<Word>(~(Word{1} << (8 * sizeof(Word) - 1)));  // -0 is 0
            flags[i] = magnitude != 0 ? 1 : 0;
            other |= magnitude != 0 ? static_cast<Word>(staged[i] ^ one) : Word{0};
        }
        for (int64_t j = 0; j < size; ++j) {
            uint64_t eight;
            __builtin_memcpy(&eight, flags + 8 * j, 8);
            to[begin + j] = static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
        }
    }
    return other == 0;
}

// One adjoint whether a reset's numbers are zeros or not: the operations that this costs are hidden, variants are not.
template <class Reset>
struct InAdjoint {
    using Kind = Reset;
};
template <>
struct InAdjoint<HardResetAtZero> {
    using Kind = HardReset;
};
template <>
struct InAdjoint<SoftResetAtZero> {
    using Kind = SoftReset;
};

template <class Charge, class Reset, class T>
void add_neuron(Kernels& k, int c, int r, DType dtype) {
    using Kind = typename InAdjoint<Reset>::Kind;
    const int d = static_cast<int>(dtype);
    k.fire[0][c][r][d] = fire<Charge, Reset, T, false>;
    k.fire[1][c][r][d] = fire<Charge, Kind, T, true>;
    k.advance[0][c][r][d] = advance<Charge, Kind, T, false>;
    k.advance[1][c][r][d] = advance<Charge, Kind, T, true>;
#define SCA_ROW(s, Surrogate) k.adjoint[s][c][r][d] = adjoint<Surrogate, Charge, Kind, T>;
    SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
    k.adjoint[kSurrogates][c][r][d] = adjoint<AnySurrogate, Charge, Kind, T>;
}

template <class Charge>
void add_charge(Kernels& k, int c) {
#define SCA_ROW(r, Reset)                                      \
    add_neuron<Charge, Reset, float>(k, c, r, DType::float32); \
    add_neuron<Charge, Reset, bfloat16>(k, c, r, DType::bfloat16);
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
}

}  // namespace

Kernels kernels(const char* name) {
    Kernels k{};
    k.name = name;
#define SCA_ROW(index, Charge) add_charge<Charge>(k, index);
    SCA_CHARGES(SCA_ROW)
#undef SCA_ROW
    k.finish[0] = finish<float>;
    k.finish[1] = finish<bfloat16>;
    k.moments[0] = moments<float>;
    k.moments[1] = moments<bfloat16>;
    k.pack[0] = pack<uint32_t, 0x3f800000u>;
    k.pack[1] = pack<uint16_t, 0x3f80u>;
    k.winograd = winograd::kKernels;
    return k;
}

}  // namespace SCA_ISA
}  // namespace sca

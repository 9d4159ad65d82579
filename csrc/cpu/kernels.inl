// Source of the kernels of kernels.h. Included by isa_*.cpp, each compiled for its own instruction set with SCA_ISA
// naming it. No function with external linkage but the one at the foot, and no std:: templates, so that nothing is
// shared between sets.

#include "kernels.h"
#include "simd.h"

namespace sca {
inline namespace SCA_ISA {
namespace {

// A whole line of memory, or the first elements of one.
struct Whole {
    static constexpr bool whole = true;

    template <class T>
    SCA_HOST_DEVICE auto get(const T* p) const {
        return load(p);
    }
    template <class T>
    SCA_HOST_DEVICE Doubles get_wide(const T* p) const {
        return load_wide(p);
    }
    template <class V, class T>
    SCA_HOST_DEVICE void put(V x, T* p) const {
        store(x, p);
    }
};

struct Partial {
    static constexpr bool whole = false;
    int64_t size;

    template <class T>
    SCA_HOST_DEVICE auto get(const T* p) const {
        return load(p, size);
    }
    template <class T>
    SCA_HOST_DEVICE Doubles get_wide(const T* p) const {
        return load_wide(p, size);
    }
    template <class V, class T>
    SCA_HOST_DEVICE void put(V x, T* p) const {
        store(x, p, size);
    }
};

// Runs body(first lane, line) for whole lines, then for what is left.
template <class Body>
SCA_HOST_DEVICE void for_lines(int64_t size, const Body& body) {
    int64_t i = 0;
    for (; i + kLine <= size; i += kLine) body(i, Whole{});
    if (i < size) body(i, Partial{size - i});
}

// Walk through the time steps of one line, up or down from step `first`. They copy what they need: as far as the
// compiler knows, a store through one of them could change the arguments.
template <class T>
class Reader {
  public:
    SCA_HOST_DEVICE Reader(const Source& from, int64_t i, int64_t first = 0, int64_t direction = 1)
        : p_(static_cast<const T*>(from.data) + first * from.step + i),
          step_(direction * from.step),
          ahead_(from.ahead) {}

    template <class Line>
    SCA_HOST_DEVICE Floats next(Line line) {
        __builtin_prefetch(p_ + ahead_);
        const Floats x = line.get(p_);
        p_ += step_;
        return x;
    }

  private:
    const T* p_;
    const int64_t step_, ahead_;
};

template <class T>
class Writer {
  public:
    SCA_HOST_DEVICE Writer(const Sink& to, int64_t i, int64_t first = 0, int64_t direction = 1)
        : p_(static_cast<T*>(to.data) + first * to.step + i), step_(direction * to.step), streamed_(to.streamed) {}

    template <class Line>
    SCA_HOST_DEVICE void next(Floats x, Line line) {
        if (Line::whole && streamed_)
            stream(x, p_);
        else
            line.put(x, p_);
        p_ += step_;
    }

  private:
    T* p_;
    const int64_t step_;
    const bool streamed_;
};

// The same for rows of float32. Rows of scratch are read and written in whole lines, those of dL/dy are not: they may
// lie in a tensor, whose end, or another thread's part, is next to them.
class Cursor {
  public:
    SCA_HOST_DEVICE Cursor(const Rows& rows, int64_t i, int64_t first = 0, int64_t direction = 1)
        : p_(rows.data + first * rows.step + i), step_(direction * rows.step) {}

    template <class Line>
    SCA_HOST_DEVICE Floats get(Line line) {
        return line.get(advance());
    }
    SCA_HOST_DEVICE void put(Floats x) { store(x, advance()); }

  private:
    SCA_HOST_DEVICE float* advance() {
        float* p = p_;
        p_ += step_;
        return p;
    }
    float* p_;
    const int64_t step_;
};

template <bool prelude>
SCA_HOST_DEVICE Floats current(Floats x, const Lanes& lanes, int64_t i) {
    if constexpr (prelude) return x * load(lanes.scale + i) + load(lanes.shift + i);
    return x;
}

template <class Charge, class Reset, bool prelude, class T>
void fire(const Lanes& lanes, int64_t steps, const Source& x, const Sink& s, float* v, int32_t* count, float* l1) {
    const Floats threshold = lanes.threshold, rest = Reset::rest(Floats(lanes.rest));
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats rate = load(lanes.rate + i), gate = load(lanes.gate + i);
        Floats potential = load(v + i), sum = 0.0f;
        Ints fired = line.get(count + i);
        Reader<T> xs(x, i);
        Writer<T> spikes(s, i);
        for (int64_t k = 0; k < steps; ++k) {
            const Floats h = Charge::charge(potential, current<prelude>(xs.next(line), lanes, i), rest, rate);
            const Ints spike = h >= threshold;
            potential = Reset::after(h, threshold, rest);
            fired = count_up(fired, spike);
            sum = sum + absolute(potential - rest);
            spikes.next(select(spike, gate, Floats(0.0f)), line);
        }
        store(potential, v + i);
        line.put(fired, count + i);
        line.put(line.get(l1 + i) + sum, l1 + i);
    });
}

template <class Charge, class Reset, bool prelude, class T>
void charge(const Lanes& lanes, int64_t steps, const Source& x, const Rows& h, float* v) {
    const Floats threshold = lanes.threshold, rest = Reset::rest(Floats(lanes.rest));
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats rate = load(lanes.rate + i);
        Floats potential = load(v + i);
        Reader<T> xs(x, i);
        Cursor hs(h, i);
        for (int64_t k = 0; k < steps; ++k) {
            const Floats charged = Charge::charge(potential, current<prelude>(xs.next(line), lanes, i), rest, rate);
            hs.put(charged);
            potential = Reset::after(charged, threshold, rest);
        }
        store(potential, v + i);
    });
}

template <class Surrogate, class Reset, bool detach, class T>
void adjoint(const Lanes& lanes, int64_t steps, const Rows& h, const Source& g_s, const Sink& g_y, float* g_v) {
    const Floats threshold = lanes.threshold, rest = Reset::rest(Floats(lanes.rest));
    const float alpha = lanes.alpha, beta = lanes.beta;
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats by_v = load(lanes.by_v + i), by_x = load(lanes.by_x + i);
        Floats carried = load(g_v + i);
        Cursor hs(h, i, steps - 1, -1);
        Reader<T> spike_grads(g_s, i, steps - 1, -1);
        Writer<float> grads(g_y, i, steps - 1, -1);
        for (int64_t k = 0; k < steps; ++k) {
            const Floats charged = hs.get(Whole{});
            const Floats slope = Surrogate::slope(charged - threshold, alpha, beta);
            const Floats g_h =
                Reset::template grad_h<detach>(spike_grads.next(line), carried, charged, slope, threshold, rest);
            carried = g_h * by_v;
            grads.next(g_h * by_x, line);
        }
        store(carried, g_v + i);
    });
}

template <class Charge, bool prelude, class T>
void leak_adjoint(const Lanes& lanes, const void* x, const float* v_before, const float* by_x, float* g,
                  float* g_rate) {
    const Floats rest = lanes.rest;
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats y = current<prelude>(line.get(static_cast<const T*>(x) + i), lanes, i), g_h = line.get(g + i);
        line.put(line.get(g_rate + i) + g_h * Charge::by_leak(load(v_before + i), y, rest), g_rate + i);
        line.put(g_h * load(by_x + i), g + i);
    });
}

template <class Charge>
void derivatives(const float* rate, float* by_v, float* by_x, int64_t size) {
    for (int64_t i = 0; i < size; i += kLine) {
        store(Charge::by_v(load(rate + i)), by_v + i);
        store(Charge::by_x(load(rate + i)), by_x + i);
    }
}

template <class Reset>
void reset(const Lanes& lanes, const float* h, float* v) {
    const Floats threshold = lanes.threshold, rest = Reset::rest(Floats(lanes.rest));
    for (int64_t i = 0; i < lanes.size; i += kLine) store(Reset::after(load(h + i), threshold, rest), v + i);
}

template <class T>
void prelude_sums(const Lanes& lanes, int64_t steps, const Rows& g, const Source& x, float* g_scale, float* g_shift) {
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats center = load(lanes.center + i);
        Floats scaled = line.get(g_scale + i), shifted = line.get(g_shift + i);
        Cursor gs(g, i);
        Reader<T> xs(x, i);
        for (int64_t k = 0; k < steps; ++k) {
            const Floats g_k = gs.get(line);
            scaled = scaled + g_k * (xs.next(line) - center);
            shifted = shifted + g_k;
        }
        line.put(scaled, g_scale + i);
        line.put(shifted, g_shift + i);
    });
}

template <class T>
void prelude_adjoint(const Lanes& lanes, int64_t steps, const Rows& g, const Source& x, const Sink& g_x) {
    for_lines(lanes.size, [&](int64_t i, auto line) {
        const Floats center = load(lanes.center + i), g_y = load(lanes.g_y + i);
        const Floats slope = load(lanes.slope + i), bias = load(lanes.bias + i);
        Cursor gs(g, i);
        Reader<T> xs(x, i);
        Writer<T> grads(g_x, i);
        for (int64_t k = 0; k < steps; ++k)
            grads.next(g_y * gs.get(line) + (slope * (xs.next(line) - center) + bias), line);
    });
}

template <class T>
void put(int64_t size, int64_t steps, const Rows& from, const Sink& to) {
    for_lines(size, [&](int64_t i, auto line) {
        Cursor rows(from, i);
        Writer<T> out(to, i);
        for (int64_t k = 0; k < steps; ++k) out.next(rows.get(Whole{}), line);
    });
}

void add(int64_t size, int64_t steps, const Rows& from, float* total) {
    for (int64_t i = 0; i < size; i += kLine) {
        Floats sum = load(total + i);
        Cursor rows(from, i);
        for (int64_t k = 0; k < steps; ++k) sum = sum + rows.get(Whole{});
        store(sum, total + i);
    }
}

template <class T>
void moments(int64_t size, int64_t steps, const Source& x, double* sum, double* square) {
    for_lines(size, [&](int64_t i, auto line) {
        Doubles first = load(sum + i), second = load(square + i);
        const T* p = static_cast<const T*>(x.data) + i;
        for (int64_t k = 0; k < steps; ++k, p += x.step) {
            __builtin_prefetch(p + x.ahead);
            const Doubles z = line.get_wide(p);
            first = first + z;
            second = second + z * z;
        }
        store(first, sum + i);
        store(second, square + i);
    });
}

// `one` is the bit pattern of 1. Elements become bytes of 0 or 1 first; the product then moves bit 0 of byte i to bit i
// of the uppermost byte.
template <class Word, Word one>
bool pack(const void* spikes, uint8_t* to, int64_t bytes) {
    constexpr int64_t kBlock = 64;
    const Word* from = static_cast<const Word*>(spikes);
    Word other = 0;
    for (int64_t begin = 0; begin < bytes; begin += kBlock) {
        const int64_t size = bytes - begin < kBlock ? bytes - begin : kBlock;
        uint8_t flags[8 * kBlock];
        const Word* block = from + 8 * begin;
#pragma omp simd reduction(| : other)
        for (int64_t i = 0; i < 8 * size; ++i) {
            const Word magnitude = block[i] & static_cast<Word>(~(Word{1} << (8 * sizeof(Word) - 1)));  // -0 is 0
            flags[i] = magnitude != 0 ? 1 : 0;
            other |= magnitude != 0 ? static_cast<Word>(block[i] ^ one) : Word{0};
        }
        for (int64_t j = 0; j < size; ++j) {
            uint64_t eight;
            __builtin_memcpy(&eight, flags + 8 * j, 8);
            to[begin + j] = static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
        }
    }
    return other == 0;
}

template <class Charge, class Reset>
void add_reset(Kernels& k, int c, int r) {
    k.fire[c][r][0][0] = fire<Charge, Reset, false, float>;
    k.fire[c][r][0][1] = fire<Charge, Reset, false, bfloat16>;
    k.fire[c][r][1][0] = fire<Charge, Reset, true, float>;
    k.fire[c][r][1][1] = fire<Charge, Reset, true, bfloat16>;
    k.charge[c][r][0][0] = charge<Charge, Reset, false, float>;
    k.charge[c][r][0][1] = charge<Charge, Reset, false, bfloat16>;
    k.charge[c][r][1][0] = charge<Charge, Reset, true, float>;
    k.charge[c][r][1][1] = charge<Charge, Reset, true, bfloat16>;
}

template <class Charge>
void add_charge(Kernels& k, int c) {
#define SCA_ROW(r, Reset) add_reset<Charge, Reset>(k, c, r);
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
    k.leak_adjoint[c][0][0] = leak_adjoint<Charge, false, float>;
    k.leak_adjoint[c][0][1] = leak_adjoint<Charge, false, bfloat16>;
    k.leak_adjoint[c][1][0] = leak_adjoint<Charge, true, float>;
    k.leak_adjoint[c][1][1] = leak_adjoint<Charge, true, bfloat16>;
    k.derivatives[c] = derivatives<Charge>;
}

template <class Surrogate>
void add_surrogate(Kernels& k, int s) {
#define SCA_ROW(r, Reset)                                               \
    k.adjoint[s][r][0][0] = adjoint<Surrogate, Reset, false, float>;    \
    k.adjoint[s][r][0][1] = adjoint<Surrogate, Reset, false, bfloat16>; \
    k.adjoint[s][r][1][0] = adjoint<Surrogate, Reset, true, float>;     \
    k.adjoint[s][r][1][1] = adjoint<Surrogate, Reset, true, bfloat16>;
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
#define SCA_ROW(index, Surrogate, name) add_surrogate<Surrogate>(k, index);
    SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
#define SCA_ROW(index, Reset) k.reset[index] = reset<Reset>;
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
    k.prelude_sums[0] = prelude_sums<float>;
    k.prelude_sums[1] = prelude_sums<bfloat16>;
    k.prelude_adjoint[0] = prelude_adjoint<float>;
    k.prelude_adjoint[1] = prelude_adjoint<bfloat16>;
    k.put[0] = put<float>;
    k.put[1] = put<bfloat16>;
    k.moments[0] = moments<float>;
    k.moments[1] = moments<bfloat16>;
    k.pack[0] = pack<uint32_t, 0x3f800000u>;
    k.pack[1] = pack<uint16_t, 0x3f80u>;
    k.add = add;
    return k;
}

}  // namespace SCA_ISA
}  // namespace sca

// CUDA as far as the kernels of csrc/cuda use it, on a host: a block's threads
// are coroutines of one thread, run in turn from barrier to barrier. Included
// in front of the kernels; test only.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define SCA_EMULATED
#define __device__
#define __global__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct Dim {
    unsigned x;
};
inline Dim threadIdx, blockIdx;

namespace emulation {

inline std::vector<unsigned char> shared;

// One block at a time.
class Block {
  public:
    explicit Block(int threads) : threads_(threads), stacks_(threads) {
        for (auto& stack : stacks_) stack.reset(new unsigned char[kStack]);
    }

    void run(const std::function<void()>& body) {
        body_ = &body;
        current_ = this;
        std::vector<State> states(threads_.size());
        states_ = &states;
        // Poison: what a block finds in shared memory is not what another left
        // there.
        std::fill(shared.begin(), shared.end(), 0xff);
        int running = static_cast<int>(threads_.size());
        for (size_t i = 0; i < threads_.size(); ++i) start(i);
        while (running > 0) {
            int waiting = 0;
            for (size_t i = 0; i < threads_.size(); ++i) {
                if (states[i] == State::done) continue;
                resume(i);
                if (states[i] == State::done)
                    --running;
                else
                    ++waiting;
            }
            // CUDA asks that all threads of a block meet at a barrier.
            if (waiting > 0 && waiting != static_cast<int>(threads_.size()))
                throw std::logic_error("a barrier that only some threads reach");
        }
    }

    static void barrier() { current_->pause(); }

  private:
    enum class State { ready, started, done };
    static constexpr size_t kStack = 1 << 16;

    struct Thread {
        ucontext_t context;
        jmp_buf jump;
    };

    void start(size_t i) {
        getcontext(&threads_[i].context);
        threads_[i].context.uc_stack.ss_sp = stacks_[i].get();
        threads_[i].context.uc_stack.ss_size = kStack;
        threads_[i].context.uc_link = nullptr;
        makecontext(&threads_[i].context, &Block::enter, 0);
    }

    // The first entry needs the new stack; after that, jumps (which save no
    // signal mask) are enough.
    void resume(size_t i) {
        threadIdx.x = static_cast<unsigned>(i);
        at_ = i;
        if (_setjmp(scheduler_) != 0) return;
        if ((*states_)[i] == State::ready) {
            (*states_)[i] = State::started;
            setcontext(&threads_[i].context);
        } else {
            _longjmp(threads_[i].jump, 1);
        }
    }

    void pause() {
        if (_setjmp(threads_[at_].jump) == 0) _longjmp(scheduler_, 1);
    }

    static void enter() {
        (*current_->body_)();
        (*current_->states_)[current_->at_] = State::done;
        _longjmp(current_->scheduler_, 1);
    }

    std::vector<Thread> threads_;
    std::vector<std::unique_ptr<unsigned char[]>> stacks_;
    std::vector<State>* states_ = nullptr;
    const std::function<void()>* body_ = nullptr;
    jmp_buf scheduler_;
    size_t at_ = 0;
    static inline Block* current_ = nullptr;
};

// Blocks run one after another, in the order that a seed shuffles them to; 0: in their own.
template <class Parameters>
void launch(void (*kernel)(const Parameters), const void* bytes, unsigned grid, int threads, size_t shared_bytes,
            unsigned seed) {
    Parameters p;
    std::memcpy(&p, bytes, sizeof p);
    shared.assign(shared_bytes, 0xff);
    std::vector<unsigned> order(grid);
    std::iota(order.begin(), order.end(), 0u);
    if (seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    Block block(threads);
    for (unsigned b : order) {
        blockIdx.x = b;
        block.run([&] { kernel(p); });
    }
}

}  // namespace emulation

inline void __syncthreads() { emulation::Block::barrier(); }
inline void __threadfence() {}
template <class N>
N __ldcg(const N* p) {
    return *p;
}
inline int atomicAdd(int* p, int x) {
    const int old = *p;
    *p += x;
    return old;
}
// All threads of the block take part, not only those of a warp.
template <class N>
N __shfl_xor_sync(unsigned, N x, int apart) {
    static N exchanged[1024];
    const unsigned thread = threadIdx.x;
    exchanged[thread] = x;
    __syncthreads();
    const N other = exchanged[thread ^ static_cast<unsigned>(apart)];
    __syncthreads();
    return other;
}

namespace sca {

struct float16;
struct Sixteen;
float widened(float16 x);
void round_to(float16& to, float x);
void store_sixteen(void* p, const Sixteen& x);
inline unsigned char* shared_memory() { return emulation::shared.data(); }

}  // namespace sca

// The part of CUDA's language that csrc/cuda is written in, on the CPU: the threads of a block are fibers, which take
// turns where they wait for each other. It shows what a kernel computes, on a machine without a GPU; what only a GPU
// can show (speed, memory that lies elsewhere, races within a warp) it does not.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

using std::isnan;

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;

// Threads that wait for each other.
struct Barrier {
  unsigned waiting = 0;
  unsigned passed = 0;
};

struct Fiber {
  static constexpr size_t kStack = 1 << 16;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
};

// The block that is running.
struct Block {
  std::function<void()> body;
  std::vector<Fiber> fibers;
  std::vector<double> exchanged;  // by the threads of a warp
  std::vector<Barrier> warps;
  Barrier all;
  jmp_buf scheduler;
  bool progress = false;
  size_t turn = 0, left = 0;  // members, because a jump may forget what a function's own variables are

  // In the other order, a value that is read before it must be there is another one.
  static bool reversed() { return std::getenv("CUDA_ON_CPU_REVERSED") != nullptr; }

  void wait(Barrier& barrier, unsigned count) {
    progress = true;
    const unsigned now = barrier.passed;
    if (++barrier.waiting == count) {
      barrier.waiting = 0;
      ++barrier.passed;
      return;
    }
    Fiber& self = fibers[threadIdx.x];
    while (barrier.passed == now) {
      if (_setjmp(self.state) == 0) _longjmp(scheduler, 1);
    }
    progress = true;
  }

  void run();
};

inline Block* running = nullptr;

inline void enter() {
  running->body();
  running->fibers[threadIdx.x].done = true;
  running->progress = true;
  _longjmp(running->scheduler, 1);
}

inline void Block::run() {
  left = fibers.size();
  while (left > 0) {
    progress = false;
    for (turn = 0; turn < fibers.size(); ++turn) {
      threadIdx.x = static_cast<unsigned>(reversed() ? fibers.size() - 1 - turn : turn);
      Fiber& fiber = fibers[threadIdx.x];
      if (fiber.done) continue;
      if (_setjmp(scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.state, 1);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = Fiber::kStack;
        makecontext(&fiber.start, enter, 0);
        setcontext(&fiber.start);
      }
      if (fibers[threadIdx.x].done) --left;
    }
    if (!progress) {
      std::fputs("cuda_on_cpu: some threads of a block wait for others that never come\n", stderr);
      std::abort();
    }
  }
}

template <typename Body>
void launch(int64_t blocks, int threads, const Body& body) {
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  static Block block;
  block.body = body;
  block.fibers.resize(static_cast<size_t>(threads));
  block.exchanged.resize(static_cast<size_t>(threads));
  block.warps.assign((static_cast<size_t>(threads) + kWarp - 1) / kWarp, {});
  running = &block;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (Fiber& fiber : block.fibers) fiber.started = fiber.done = false;
    block.run();
  }
}

// What the thread `from` of this warp's part of `width` threads gave; a thread's own where there is none.
template <typename T>
T exchange(T value, int from, int width) {
  const unsigned thread = threadIdx.x, lane = thread % static_cast<unsigned>(width);
  Barrier& warp = running->warps[thread / kWarp];
  const unsigned threads = std::min(kWarp, blockDim.x - thread / kWarp * kWarp);
  running->exchanged[thread] = static_cast<double>(value);
  running->wait(warp, threads);
  const bool there = from >= 0 && from < width;
  const T found = there ? static_cast<T>(running->exchanged[thread - lane + static_cast<unsigned>(from)]) : value;
  running->wait(warp, threads);
  return found;
}

inline int lane_of(int width) { return static_cast<int>(threadIdx.x) % width; }

}  // namespace cuda_on_cpu

inline float __fdividef(float a, float b) { return a / b; }
inline void __syncthreads() { cuda_on_cpu::running->wait(cuda_on_cpu::running->all, blockDim.x); }

template <typename T>
T __shfl_sync(unsigned, T value, int from, int width = 32) {
  return cuda_on_cpu::exchange(value, from % width, width);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int step, int width = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane_of(width) + step, width);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int step, int width = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane_of(width) - step, width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int bits, int width = 32) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::lane_of(width) ^ bits, width);
}

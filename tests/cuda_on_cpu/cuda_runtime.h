// The part of CUDA's language that csrc/cuda is written in, on the CPU: the threads of a block, or of a cluster of
// blocks, are fibers, which take turns where they wait for each other. It shows what a kernel computes, on a machine without a GPU; what only a GPU
// can show (speed, memory that lies elsewhere, races within a warp) it does not.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other; clusters' kernels have none but what launch.h gives

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

// A copy to shared memory that is under way.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  static constexpr size_t kStack = 1 << 16;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
  unsigned arrived = 0;                  // at the cluster's barrier, when it had been passed so often
  std::vector<Copy> copies;              // not yet committed
  std::deque<std::vector<Copy>> groups;  // committed, and not there before they are waited for
};

// The shared memory of a block whose size the launch says. At first it is full of NaN.
class SharedMemory {
 public:
  void clear(size_t bytes) {
    bytes_ = bytes;
    memory_.resize(bytes + kMargin);
    std::fill(memory_.begin(), memory_.end(), static_cast<unsigned char>(0xff));
  }
  unsigned char* data() { return memory_.data(); }
  bool holds(const void* pointer) {
    return pointer >= memory_.data() && pointer < memory_.data() + bytes_;
  }
  bool overrun() const {
    return std::any_of(memory_.end() - kMargin, memory_.end(), [](unsigned char byte) { return byte != 0xff; });
  }

 private:
  static constexpr size_t kMargin = 1024;
  size_t bytes_ = 0;
  std::vector<unsigned char> memory_;
};

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", message);
  std::abort();
}

// The cluster of blocks that is running; mostly of one.
struct Cluster {
  std::function<void()> body;
  std::vector<Fiber> fibers;      // of all blocks
  std::vector<double> exchanged;  // by the threads of a warp
  std::vector<Barrier> warps, blocks;
  std::vector<SharedMemory> shared;
  Barrier all;
  jmp_buf scheduler;
  bool progress = false;
  unsigned first_block = 0;
  size_t current = 0;
  // In the other order, a value that is read before it must be there is another one.
  bool reversed = false;

  unsigned rank() const { return static_cast<unsigned>(current / blockDim.x); }
  Fiber& self() { return fibers[current]; }

  unsigned arrive(Barrier& barrier, unsigned count) {
    progress = true;
    const unsigned now = barrier.passed;
    if (++barrier.waiting == count) {
      barrier.waiting = 0;
      ++barrier.passed;
    }
    return now;
  }

  void await(Barrier& barrier, unsigned arrived) {
    Fiber& fiber = self();
    while (barrier.passed == arrived) {
      if (_setjmp(fiber.state) == 0) _longjmp(scheduler, 1);
    }
    progress = true;
  }

  void wait(Barrier& barrier, unsigned count) { await(barrier, arrive(barrier, count)); }

  bool ended(unsigned block) const {
    const auto first = fibers.begin() + block * blockDim.x;
    return std::all_of(first, first + blockDim.x, [](const Fiber& fiber) { return fiber.done; });
  }

  // Each warp, and each block, gets as far ahead of the others as it can: what one reads that another has not written
  // yet is then missing.
  void run();

 private:
  // Goes on with the current thread until it waits or ends.
  void resume();

  // Calls body(i) for all i again and again, as long as one says that it got on; whether one did.
  template <typename Body>
  bool exhaust(size_t count, const Body& body) const;
};

inline Cluster* running = nullptr;

inline void enter() {
  running->body();
  running->self().done = true;
  running->progress = true;
  _longjmp(running->scheduler, 1);
}

inline void Cluster::resume() {
  Fiber& fiber = self();
  threadIdx.x = static_cast<unsigned>(current % blockDim.x);
  blockIdx.x = first_block + rank();
  if (fiber.done) return;
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = Fiber::kStack;
    makecontext(&fiber.start, enter, 0);
    setcontext(&fiber.start);
  }
}

template <typename Body>
bool Cluster::exhaust(size_t count, const Body& body) const {
  bool progressed = false;
  for (bool again = true; again;) {
    again = false;
    for (size_t i = 0; i < count; ++i) again |= body(reversed ? count - 1 - i : i);
    progressed |= again;
  }
  return progressed;
}

inline void Cluster::run() {
  const size_t warp_count = (blockDim.x + kWarp - 1) / kWarp;
  exhaust(blocks.size(), [&](size_t block) {
    return exhaust(warp_count, [&](size_t warp) {
      const size_t first = warp * kWarp;
      return exhaust(std::min<size_t>(kWarp, blockDim.x - first), [&](size_t lane) {
        current = block * blockDim.x + first + lane;
        progress = false;
        resume();
        return progress;
      });
    });
  });
  for (const Fiber& fiber : fibers) {
    if (!fiber.done) fail("some threads wait for others that never come");
    if (!fiber.copies.empty() || !fiber.groups.empty()) fail("a thread ended while its copies were under way");
  }
}

// By clusters of `size` blocks, one after the other.
template <typename Body>
void launch(int64_t blocks, unsigned size, int threads, size_t shared_bytes, const Body& body) {
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  const size_t all = size * static_cast<size_t>(threads);
  static Cluster cluster;
  cluster.body = body;
  cluster.fibers.resize(all);
  cluster.exchanged.resize(all);
  cluster.warps.assign(size * ((blockDim.x + kWarp - 1) / kWarp), {});
  cluster.blocks.assign(size, {});
  cluster.all = {};
  cluster.shared.resize(size);
  cluster.reversed = std::getenv("CUDA_ON_CPU_REVERSED") != nullptr;
  running = &cluster;
  for (cluster.first_block = 0; cluster.first_block < gridDim.x; cluster.first_block += size) {
    for (Fiber& fiber : cluster.fibers) fiber.started = fiber.done = false;
    for (SharedMemory& memory : cluster.shared) memory.clear(shared_bytes);
    cluster.run();
    for (const SharedMemory& memory : cluster.shared) {
      if (memory.overrun()) fail("a block wrote beyond its shared memory");
    }
  }
}

// What the thread `from` of this warp's part of `width` threads gave; a thread's own where there is none.
template <typename T>
T exchange(T value, int from, int width) {
  const unsigned thread = threadIdx.x, lane = thread % static_cast<unsigned>(width);
  const unsigned warps = (blockDim.x + kWarp - 1) / kWarp;
  Barrier& warp = running->warps[running->rank() * warps + thread / kWarp];
  const unsigned threads = std::min(kWarp, blockDim.x - thread / kWarp * kWarp);
  double* of_block = running->exchanged.data() + running->current - thread;
  of_block[thread] = static_cast<double>(value);
  running->wait(warp, threads);
  const bool there = from >= 0 && from < width;
  const T found = there ? static_cast<T>(of_block[thread - lane + static_cast<unsigned>(from)]) : value;
  running->wait(warp, threads);
  return found;
}

inline int lane_of(int width) { return static_cast<int>(threadIdx.x) % width; }

}  // namespace cuda_on_cpu

inline float __fdividef(float a, float b) { return a / b; }
inline void __syncthreads() {
  auto& cluster = *cuda_on_cpu::running;
  cluster.wait(cluster.blocks[cluster.rank()], blockDim.x);
}

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

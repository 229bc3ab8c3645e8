#include "../simd/capability.h"

#include <algorithm>
#include <cstdlib>
#include <string>

namespace sod_ops {

namespace {

Capability best() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512) return Capability::AVX512;
  if (avx2) return Capability::AVX2;
#endif
  return Capability::DEFAULT;
}

Capability choose() {
  const Capability there = best();
  const char* wanted = std::getenv("SOD_OPS_CPU_CAPABILITY");
  if (wanted == nullptr) return there;
  for (Capability c : {Capability::DEFAULT, Capability::AVX2, Capability::AVX512}) {
    if (capability_name(c) == wanted) return std::min(c, there);
  }
  return there;
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

std::string capability_name(Capability capability) {
  switch (capability) {
    case Capability::AVX512: return "avx512";
    case Capability::AVX2: return "avx2";
    default: return "default";
  }
}

std::vector<std::string> built_capabilities() {
#if defined(__x86_64__)
  return {"default", "avx2", "avx512"};
#else
  return {"default"};
#endif
}

}  // namespace sod_ops

// Which instruction set the CPU kernels run with. Every file csrc/simd/<op>.cpp is compiled once for each, into objects
// that share no symbol; its kernel table is picked at run time.
#pragma once

#include <string>
#include <vector>

namespace sod_ops {

enum class Capability { DEFAULT, AVX2, AVX512 };

// The best that this machine has; the environment variable SOD_OPS_CPU_CAPABILITY (default, avx2, avx512) lowers it.
Capability capability();

std::string capability_name(Capability capability);

// The instruction sets that the kernels were compiled for, by name.
std::vector<std::string> built_capabilities();

}  // namespace sod_ops

// SOD_OPS_KERNEL_TABLE(type, name) declares the tables name_DEFAULT, name_AVX2 and name_AVX512, one of which each
// object of csrc/simd/<op>.cpp defines, and the function name() that returns the one for this machine.
#if defined(__x86_64__)
#define SOD_OPS_KERNEL_TABLE(type, name)             \
  extern const type name##_DEFAULT;                  \
  extern const type name##_AVX2;                     \
  extern const type name##_AVX512;                   \
  inline const type& name() {                        \
    switch (capability()) {                          \
      case Capability::AVX512: return name##_AVX512; \
      case Capability::AVX2: return name##_AVX2;     \
      default: return name##_DEFAULT;                \
    }                                                \
  }
#else
#define SOD_OPS_KERNEL_TABLE(type, name) \
  extern const type name##_DEFAULT;      \
  inline const type& name() { return name##_DEFAULT; }
#endif

// In csrc/simd/<op>.cpp: the name of the table that this compilation defines.
#define SOD_OPS_JOIN_(a, b) a##_##b
#define SOD_OPS_JOIN(a, b) SOD_OPS_JOIN_(a, b)
#define SOD_OPS_THIS_TABLE(name) SOD_OPS_JOIN(name, CPU_CAPABILITY)

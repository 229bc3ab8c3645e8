// From a tensor's dtype to a template's type.
#pragma once

#include <type_traits>

#include "stable.h"

namespace sod_ops {

// The entry for T of a kernel table (simd/<op>.h) that has one for each floating dtype, by these names.
template <typename T, typename Table>
const auto& kernels_of(const Table& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.float32;
  } else if constexpr (std::is_same_v<T, double>) {
    return table.float64;
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    return table.bfloat16;
  } else {
    static_assert(std::is_same_v<T, c10::Half>);
    return table.float16;
  }
}

// Calls body with a null pointer of the type that `dtype` names; `op` and `argument` are for the message.
template <typename Body>
void for_floating(const char* op, const char* argument, torch::headeronly::ScalarType dtype, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return body(static_cast<float*>(nullptr));
    case ScalarType::Double: return body(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return body(static_cast<c10::BFloat16*>(nullptr));
    case ScalarType::Half: return body(static_cast<c10::Half*>(nullptr));
    default: STD_TORCH_CHECK(false, op, ": ", argument, " must be float32, float64, bfloat16 or float16");
  }
}

// The dtype that sums and transcendental functions are taken in.
inline torch::headeronly::ScalarType accumulator_of(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? dtype : ScalarType::Float;
}

// Calls body with a null pointer of the type that tensors of this dtype are computed in.
template <typename Body>
void for_accumulator(torch::headeronly::ScalarType dtype, const Body& body) {
  accumulator_of(dtype) == torch::headeronly::ScalarType::Double ? body(static_cast<double*>(nullptr))
                                                                 : body(static_cast<float*>(nullptr));
}

}  // namespace sod_ops

// What the losses share on every device: reductions, and the dtype and shape of their results.
#pragma once

#include <array>
#include <string>

#include "dtype.h"
#include "rows.h"
#include "stable.h"

namespace sod_ops {

// In the order of REDUCTIONS in sod_ops/reference/sigmoid_focal_loss.py.
enum class Reduction : int64_t { none, mean, sum };

inline Reduction check_reduction(const char* op, int64_t reduction) {
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, op, ": unknown reduction ", reduction);
  return static_cast<Reduction>(reduction);
}

inline bool is_floating(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

// Whether the losses read targets of this dtype.
inline bool is_readable(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return is_floating(dtype) || dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char ||
         dtype == ScalarType::Short || dtype == ScalarType::Int || dtype == ScalarType::Long;
}

// torch.promote_types for a floating dtype and one that is floating, integer or bool.
inline torch::headeronly::ScalarType promote(torch::headeronly::ScalarType floating,
                                             torch::headeronly::ScalarType any) {
  using torch::headeronly::ScalarType;
  if (!is_floating(any) || any == floating) return floating;
  return floating == ScalarType::Double || any == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool same_shape(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  const auto left = a.sizes(), right = b.sizes();
  return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
}

inline bool same_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// A call of an operator whose loss is a number for every sample of a batch, reduced.
struct SamplesCall {
  std::string op;
  const torch::stable::Tensor& like;  // of the result's device
  Reduction reduction;
  torch::headeronly::ScalarType dtype;  // of the result
  int64_t samples;

  void check_grad_output(const torch::stable::Tensor& grad_output) const {
    STD_TORCH_CHECK(same_device(like, grad_output) && grad_output.scalar_type() == dtype &&
                        (reduces() ? grad_output.dim() == 0 : grad_output.dim() == 1 && grad_output.size(0) == samples),
                    op, "_backward: grad_output must have the shape, dtype and device of the loss");
  }

  bool reduces() const { return reduction != Reduction::none; }

  // What every sample's loss is multiplied with before it is added up. The mean of nothing is infinity times 0: NaN.
  double factor() const { return reduction == Reduction::mean ? 1.0 / static_cast<double>(samples) : 1.0; }

  torch::stable::Tensor empty_loss() const {
    return reduces() ? torch::stable::new_empty(like, {}, dtype) : torch::stable::new_empty(like, {samples}, dtype);
  }
};

// How tensors of one shape are walked together, in the memory order of the first.
template <typename... Tensors>
auto rows_of(const char* op, const torch::stable::Tensor& first, const Tensors&... others) {
  const decltype(first.strides()) strides[] = {first.strides(), others.strides()...};
  const auto rows = as_rows(first.sizes(), strides);
  STD_TORCH_CHECK(rows.has_value(), op, ": the tensors must lie in memory as rows and columns at fixed steps");
  return *rows;
}

// torch.empty_like(self, dtype=dtype), which torch/csrc/stable/ops.h has without the dtype only.
inline torch::stable::Tensor empty_like(const torch::stable::Tensor& self, torch::headeronly::ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(self),         from(std::optional(dtype)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt),         from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace sod_ops

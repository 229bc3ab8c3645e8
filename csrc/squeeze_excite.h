// What squeeze-and-excitation on the CPU and on the GPU has in common: checks and results.
#pragma once

#include <algorithm>
#include <optional>

#include "dtype.h"
#include "empty.h"
#include "loss.h"
#include "maps.h"
#include "math/activation.h"

namespace sod_ops {

struct SqueezeExciteShape {
  int64_t samples;
  MapShape map;
  bool reduces;
  int64_t reduced;  // R; 0 without a reduction

  // m [C], z1 [R], z2 [C]
  int64_t statistics_width() const { return map.channels + reduced + map.channels; }
  // What the last matrix maps to the channels.
  int64_t hidden() const { return reduces ? reduced : map.channels; }
};

// Checks. They are complete: sod_ops.squeeze_excite looks for the argument at fault only after a refusal from here.

namespace squeeze_excite_checks {

using torch::stable::Tensor;

inline void check_weight(const char* name, const Tensor& weight, int64_t rows, int64_t columns) {
  const bool pointwise = weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1;
  STD_TORCH_CHECK(weight.dim() == 2 || pointwise, "squeeze_excite: ", name, " must be [", rows, ", ", columns,
                  "] or 1x1, got ", weight.dim(), " dimensions");
  STD_TORCH_CHECK(weight.size(0) == rows && weight.size(1) == columns && weight.is_contiguous(),
                  "squeeze_excite: ", name, " must be contiguous, [", rows, ", ", columns, "], got [", weight.size(0),
                  ", ", weight.size(1), "]");
}

inline void check_parameter(const char* name, const std::optional<Tensor>& parameter, const Tensor& x,
                            const Tensor& expand_weight) {
  if (!parameter.has_value()) return;
  STD_TORCH_CHECK(same_device(*parameter, x), "squeeze_excite: ", name, " must be on the device of x");
  STD_TORCH_CHECK(parameter->scalar_type() == expand_weight.scalar_type(), "squeeze_excite: ", name,
                  " must have the dtype of expand_weight");
}

inline void check_bias(const char* name, const std::optional<Tensor>& bias, int64_t length) {
  if (!bias.has_value()) return;
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == length && bias->is_contiguous(), "squeeze_excite: ", name,
                  " must be contiguous, [", length, "]");
}

inline SqueezeExciteShape check(const Tensor& x, const std::optional<Tensor>& reduce_weight,
                                const Tensor& expand_weight, int64_t activation, int64_t gate) {
  STD_TORCH_CHECK(x.dim() == 4, "squeeze_excite: x must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(is_floating(x.scalar_type()), "squeeze_excite: x must be float32, float64, bfloat16 or float16");
  STD_TORCH_CHECK(expand_weight.dim() >= 2, "squeeze_excite: expand_weight must have 2 or 4 dimensions");
  const bool planar = is_planar(x);
  STD_TORCH_CHECK(readable(x, planar), "squeeze_excite: x must be contiguous or channels_last, or a slice of such");
  STD_TORCH_CHECK(activation >= 0 && activation < math::kActivations, "squeeze_excite: unknown activation ",
                  activation);
  STD_TORCH_CHECK(gate >= 0 && gate < math::kGates, "squeeze_excite: unknown gate ", gate);
  const auto dtype = expand_weight.scalar_type();
  STD_TORCH_CHECK(dtype == x.scalar_type() || dtype == accumulator_of(x.scalar_type()),
                  "squeeze_excite: parameters must have the dtype of x, or float32 where that has two bytes");
  check_parameter("expand_weight", expand_weight, x, expand_weight);
  check_parameter("reduce_weight", reduce_weight, x, expand_weight);
  const int64_t channels = x.size(1);
  const bool reduces = reduce_weight.has_value();
  STD_TORCH_CHECK(!reduces || reduce_weight->dim() >= 2, "squeeze_excite: reduce_weight must have 2 or 4 dimensions");
  const int64_t reduced = reduces ? reduce_weight->size(0) : 0;
  if (reduces) check_weight("reduce_weight", *reduce_weight, reduced, channels);
  check_weight("expand_weight", expand_weight, channels, reduces ? reduced : channels);
  return {x.size(0), {channels, x.size(2) * x.size(3), planar}, reduces, reduced};
}

}  // namespace squeeze_excite_checks

inline SqueezeExciteShape check_squeeze_excite(const torch::stable::Tensor& x,
                                               const std::optional<torch::stable::Tensor>& reduce_weight,
                                               const std::optional<torch::stable::Tensor>& reduce_bias,
                                               const torch::stable::Tensor& expand_weight,
                                               const std::optional<torch::stable::Tensor>& expand_bias,
                                               int64_t activation, int64_t gate) {
  using namespace squeeze_excite_checks;
  const SqueezeExciteShape shape = check(x, reduce_weight, expand_weight, activation, gate);
  STD_TORCH_CHECK(shape.reduces || !reduce_bias.has_value(), "squeeze_excite: reduce_bias without reduce_weight");
  check_parameter("reduce_bias", reduce_bias, x, expand_weight);
  check_parameter("expand_bias", expand_bias, x, expand_weight);
  check_bias("reduce_bias", reduce_bias, shape.reduced);
  check_bias("expand_bias", expand_bias, shape.map.channels);
  return shape;
}

inline SqueezeExciteShape check_squeeze_excite_backward(const torch::stable::Tensor& grad_output,
                                                        const torch::stable::Tensor& x,
                                                        const std::optional<torch::stable::Tensor>& reduce_weight,
                                                        const torch::stable::Tensor& expand_weight,
                                                        const torch::stable::Tensor& statistics, int64_t activation,
                                                        int64_t gate) {
  const auto shape = squeeze_excite_checks::check(x, reduce_weight, expand_weight, activation, gate);
  STD_TORCH_CHECK(same_shape(grad_output, x) && grad_output.scalar_type() == x.scalar_type() &&
                      same_device(grad_output, x) && readable(grad_output, shape.map.planar),
                  "squeeze_excite_backward: grad_output must have the shape, dtype, device and memory format of x");
  STD_TORCH_CHECK(statistics.dim() == 2 && statistics.size(0) == shape.samples &&
                      statistics.size(1) == shape.statistics_width() && statistics.is_contiguous() &&
                      statistics.scalar_type() == accumulator_of(x.scalar_type()) && same_device(statistics, x),
                  "squeeze_excite_backward: statistics must be what squeeze_excite returned");
  return shape;
}

// The forward's results, not yet computed.
struct SqueezeExciteResults {
  torch::stable::Tensor y, statistics;

  SqueezeExciteResults(const SqueezeExciteShape& shape, const torch::stable::Tensor& x)
      : y(new_like(x)),
        statistics(new_empty(x, {shape.samples, shape.statistics_width()}, accumulator_of(x.scalar_type()))) {
    STD_TORCH_CHECK(readable(y, shape.map.planar), "squeeze_excite: the result for x has another memory format");
  }
};

// The backward's. Those of a reduction that is not there are empty.
struct SqueezeExciteGradients {
  torch::stable::Tensor x, reduce_weight, reduce_bias, expand_weight, expand_bias;

  SqueezeExciteGradients(const SqueezeExciteShape& shape, const torch::stable::Tensor& like_x,
                         const std::optional<torch::stable::Tensor>& like_reduce,
                         const torch::stable::Tensor& like_expand)
      : x(new_like(like_x)),
        reduce_weight(shape.reduces ? new_like(*like_reduce) : new_empty(like_expand, {0}, like_expand.scalar_type())),
        reduce_bias(new_empty(like_expand, {shape.reduced}, like_expand.scalar_type())),
        expand_weight(new_like(like_expand)),
        expand_bias(new_empty(like_expand, {shape.map.channels}, like_expand.scalar_type())) {}
};

}  // namespace sod_ops

// The gradient that a map has from those who read it beside an op that passed it on: the op's backward adds it to its
// own, in the pass that writes that.
#pragma once

#include <algorithm>
#include <optional>

#include "dense_map.h"

namespace sod_ops {

// Raises unless `other` is missing, or the kernels can add it to a map of these sizes and memory format that has the
// dtype of `like`.
inline void check_other_gradient(const char* op, const std::optional<torch::stable::Tensor>& other,
                                 const MapSizes& sizes, bool planar, const torch::stable::Tensor& like) {
  if (!other.has_value()) return;
  const auto given = other->sizes();
  STD_TORCH_CHECK(given.size() == 4 && std::equal(sizes.begin(), sizes.end(), given.begin()) && other->is_cpu() &&
                      other->scalar_type() == like.scalar_type() && readable(*other, planar),
                  op, ": the other gradient must have the shape, dtype and memory format of x, or be a slice of such");
}

// The other gradient's samples; their data is null where there is none.
template <typename T>
struct OtherGradient : Samples<const T> {
  OtherGradient(const std::optional<torch::stable::Tensor>& other, bool planar)
      : Samples<const T>(other.has_value() ? samples_of<const T>(*other, planar) : Samples<const T>{}) {}

  const T* at(const MapShape& shape, int64_t n, int64_t channel, int64_t pixel) const {
    return this->data == nullptr ? nullptr : Samples<const T>::at(shape, n, channel, pixel);
  }
};

}  // namespace sod_ops

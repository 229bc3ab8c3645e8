// Tensors [..., H, W] of any dtype and strides, a row of a plane at a time: as float or double, for kernels that work
// along rows.
#pragma once

#include <memory>
#include <vector>

#include "elements.h"

namespace sod_ops {

// Where the planes of a tensor lie.
class PlaneLayout {
 public:
  explicit PlaneLayout(const torch::stable::Tensor& tensor)
      : data_(static_cast<char*>(tensor.data_ptr())),
        item_size_(static_cast<int64_t>(tensor.element_size())),
        sizes_(tensor.sizes().begin(), tensor.sizes().end()),
        strides_(tensor.strides().begin(), tensor.strides().end()) {}

  int64_t width() const { return sizes_.back(); }
  Steps steps() const { return {strides_[strides_.size() - 2], strides_.back()}; }

  // The first element of plane number `plane`, counted through all leading dimensions.
  char* plane(int64_t plane) const {
    int64_t offset = 0;
    for (size_t d = sizes_.size() - 2; d-- > 0;) {
      offset += plane % sizes_[d] * strides_[d];
      plane /= sizes_[d];
    }
    return data_ + offset * item_size_;
  }
  int64_t item_size() const { return item_size_; }

 private:
  char* data_;
  int64_t item_size_;
  std::vector<int64_t> sizes_, strides_;
};

// Planes that are read.
template <typename Acc>
class SourcePlanes {
 public:
  explicit SourcePlanes(const torch::stable::Tensor& tensor)
      : layout_(tensor),
        in_place_(tensor.scalar_type() == torch::headeronly::CppTypeToScalarType<Acc>::value &&
                  layout_.steps().column == 1),
        read_(converters<Acc>().read[static_cast<int>(tensor.scalar_type())]) {}

  // A plane's row: where it lies, if it lies there as it is wanted, otherwise in `buffer`.
  const Acc* row(int64_t plane, int64_t y, Acc* buffer) const {
    const char* data = layout_.plane(plane) + y * layout_.steps().row * layout_.item_size();
    if (in_place_) return reinterpret_cast<const Acc*>(data);
    read_(data, layout_.steps(), layout_.width(), 0, layout_.width(), buffer);
    return buffer;
  }

 private:
  PlaneLayout layout_;
  bool in_place_;
  typename ConvertKernels<Acc>::Read read_;
};

// Planes that are written; default-constructed, none.
template <typename Acc>
class SinkPlanes {
 public:
  explicit SinkPlanes(const torch::stable::Tensor& tensor)
      : layout_(tensor),
        in_place_(layout_.steps().column == 1 &&
                  tensor.scalar_type() == torch::headeronly::CppTypeToScalarType<Acc>::value),
        write_(converters<Acc>().write[static_cast<int>(tensor.scalar_type())]) {}

  // Where a kernel shall put a plane's row, before write() is called for it.
  Acc* at(int64_t plane, int64_t y, Acc* buffer) const {
    return in_place_ ? reinterpret_cast<Acc*>(row(plane, y)) : buffer;
  }

  void write(int64_t plane, int64_t y, const Acc* buffer) const {
    if (!in_place_) write_(buffer, layout_.width(), row(plane, y), 0, layout_.steps().column, false);
  }

 private:
  char* row(int64_t plane, int64_t y) const {
    return layout_.plane(plane) + y * layout_.steps().row * layout_.item_size();
  }

  PlaneLayout layout_;
  bool in_place_;
  typename ConvertKernels<Acc>::Write write_;
};

}  // namespace sod_ops

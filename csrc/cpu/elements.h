// Tensors of any dtype as runs of float or double, for kernels that work element by element.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../dtype.h"
#include "../rows.h"
#include "../simd/convert.h"
#include "../stable.h"

namespace sod_ops {

// Elements that are converted and computed at a time: a handful of such runs fits into the first-level cache.
constexpr int64_t kRun = 1024;

template <typename Acc>
const ConvertKernels<Acc>& converters() {
  if constexpr (std::is_same_v<Acc, float>) return convert_kernels().to_float;
  if constexpr (std::is_same_v<Acc, double>) return convert_kernels().to_double;
}

// A tensor that is read; a default-constructed one stands for none: it gives null.
template <typename Acc>
class Source {
 public:
  Source() = default;
  Source(const torch::stable::Tensor& tensor, Steps steps = {0, 1}, int64_t columns = 1)
      : data_(tensor.data_ptr()),
        steps_(steps),
        columns_(columns),
        in_place_(tensor.scalar_type() == torch::headeronly::CppTypeToScalarType<Acc>::value && steps.column == 1),
        read_(converters<Acc>().read[static_cast<int>(tensor.scalar_type())]) {}

  // Elements [begin, begin + n), n <= kRun: where they lie, if they lie there as they are wanted, otherwise in
  // `buffer`.
  const Acc* read(int64_t begin, int64_t n, Acc* buffer) const {
    if (data_ == nullptr) return nullptr;
    const int64_t row = begin / columns_, column = begin % columns_;
    if (in_place_ && column + n <= columns_) return static_cast<const Acc*>(data_) + row * steps_.row + column;
    read_(data_, steps_, columns_, begin, n, buffer);
    return buffer;
  }

  // The first element.
  Acc get() const {
    Acc buffer;
    return *read(0, 1, &buffer);
  }

 private:
  const void* data_ = nullptr;
  Steps steps_{};
  int64_t columns_ = 1;
  bool in_place_ = false;
  typename ConvertKernels<Acc>::Read read_ = nullptr;
};

// A dense tensor that is written; a default-constructed one stands for none: it gives null.
template <typename Acc>
class Sink {
 public:
  Sink() = default;
  explicit Sink(const torch::stable::Tensor& tensor)
      : data_(tensor.data_ptr()),
        in_place_(tensor.scalar_type() == torch::headeronly::CppTypeToScalarType<Acc>::value),
        write_(converters<Acc>().write[static_cast<int>(tensor.scalar_type())]) {}

  // Where a kernel shall put the elements from `begin` on, before write() is called for them.
  Acc* at(int64_t begin, Acc* buffer) const {
    return data_ == nullptr ? nullptr : in_place_ ? static_cast<Acc*>(data_) + begin : buffer;
  }

  void write(int64_t begin, int64_t n, const Acc* buffer) const {
    if (data_ != nullptr && !in_place_) write_(buffer, n, data_, begin, 1, false);
  }

  // Writes the first element.
  void put(Acc value) const { write_(&value, 1, data_, 0, 1, false); }

 private:
  void* data_ = nullptr;
  bool in_place_ = false;
  typename ConvertKernels<Acc>::Write write_ = nullptr;
};

}  // namespace sod_ops

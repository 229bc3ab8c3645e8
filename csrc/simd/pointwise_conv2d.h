// 1x1 convolutions of few pixels: products of a weight, read once, with a matrix that stays in the caches.
// cpu/pointwise_conv2d.cpp calls them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"
#include "matrix.h"

namespace sod_ops {

// A dense tensor [N, C, H, W] as a matrix of pixels and channels; where not planar, in channels_last.
template <typename T>
struct PixelMatrix {
  T* data;
  int64_t samples;
  int64_t pixels;  // of a sample
  int64_t channels;
  bool planar;

  int64_t all_pixels() const { return samples * pixels; }
  T& at(int64_t sample, int64_t pixel, int64_t channel) const {
    return data[sample * pixels * channels + (planar ? channel * pixels + pixel : pixel * channels + channel)];
  }
};

struct ChannelRange {
  int64_t first;
  int64_t count;
};

// Rows of a weight that are taken at once: forward, where each pixel's sums are in registers, and backward.
// `kMostLanes` is the number of lanes of the longest vector.
constexpr int64_t kForwardRows = 4, kBackwardRows = 6, kMostLanes = 16;

// Channels of a weight's row that are taken at once, in its accumulation type: in the forward four rows of them are
// half of a first-level cache of 32 KB.
template <typename Acc>
constexpr int64_t kForwardTile = 4096 / sizeof(Acc);

inline int64_t packed_channels(int64_t channels) { return (channels + kMostLanes - 1) / kMostLanes * kMostLanes; }

// Numbers of scratch memory of a call.
template <typename Acc>
int64_t pointwise_forward_scratch(int64_t pixels) {
  return kForwardRows * (pixels + kForwardTile<Acc>);
}
inline int64_t pointwise_backward_scratch(int64_t pixels, int64_t tile) {
  return 2 * (pixels + kBackwardRows) * packed_channels(tile);
}

template <typename T>
struct PointwiseConv2dKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // Channels of all pixels as [channels / lanes][pixels][lanes]; lanes beyond the channels are 0.
  void (*pack)(PixelMatrix<const T> from, ChannelRange channels, Acc* to);
  // Channels [first, first + count) of out: their weights' rows times x, which is packed, plus bias if it is not null.
  void (*forward)(PixelMatrix<T> out, ChannelRange rows, const Acc* x, Matrix<const T> weight, int64_t channels,
                  const T* bias, Acc* scratch);
  // Rows of a gradient, in blocks of kBackwardRows, as [pixels][rows]; and, if it is not null, their sums over pixels.
  void (*pack_rows)(PixelMatrix<const T> grad, ChannelRange rows, Acc* to, T* sums);
  // Channels of the gradients of x and of the weight, of which one's data may be null, from that of the result, which
  // pack_rows has packed, `rows` of them; the weight's past the caches where `stream`.
  void (*backward)(PixelMatrix<const T> x, PixelMatrix<T> grad_x, ChannelRange channels, int64_t tile, const Acc* grad,
                   int64_t rows, Matrix<const T> weight, Matrix<T> grad_weight, bool stream, Acc* scratch);
};

struct PointwiseConv2dTable {
  PointwiseConv2dKernels<float> float32;
  PointwiseConv2dKernels<double> float64;
  PointwiseConv2dKernels<c10::BFloat16> bfloat16;
  PointwiseConv2dKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(PointwiseConv2dTable, pointwise_conv2d_kernels)

}  // namespace sod_ops

// Copy-Paste's work on whole rows of one sample: on its masks a mask at a time, and on its images.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "capability.h"

namespace sod_ops {

// Some rows of a plane, one after the other.
struct RowRun {
  int64_t top, rows, width;

  int64_t pixels() const { return rows * width; }
};

// What some rows of a mask hold.
struct MaskPart {
  int64_t before;                    // pixels of the mask
  int64_t after;                     // pixels of it that were written
  int64_t left, top, right, bottom;  // of those, the last included; not set where there is none
};

// Masks are bytes, of which any but 0 is true; what is written is 0 or 1.
struct CopyPasteMaskKernels {
  // A mask that is pasted: to `to`, and into `pasted`, the union of all that are. `scratch` is for a run and a row
  // more.
  MaskPart (*arrive)(const uint8_t* mask, RowRun run, uint8_t* pasted, uint8_t* scratch, uint8_t* to, bool past_caches);

  // A mask on which `pasted` is pasted: what is left of it to `to`.
  MaskPart (*trim)(const uint8_t* mask, RowRun run, uint8_t* pasted, uint8_t* scratch, uint8_t* to, bool past_caches);

  // n bytes are made 0.
  void (*clear)(uint8_t* to, int64_t n, bool past_caches);

  // The row after a filter along it: it is 1 where pasted, and to both sides of each edge the filter's response to a
  // step from 0 to 1, less the step, is added: 2 reach numbers, of which the first `reach` lie before the step.
  void (*filter_row)(const uint8_t* pasted, int64_t width, const float* response, int64_t reach, float* to);
};

// A run of pixels that are dealt with alike, up to `end`.
struct PasteSegment {
  enum Kind : int64_t { own, other, mixed };

  int64_t end;
  Kind kind;
};

constexpr int64_t kSegment = 32;  // the pixels of a segment are a multiple of it

// Runs of pixels with `column` elements each; `weights` has one number for each pixel, in [0, 1].
template <typename T>
struct CopyPasteKernels {
  // (1 - a) own + a other.
  void (*compose)(const T* own, const T* other, const float* weights, int64_t column, const PasteSegment* segments,
                  int64_t count, T* to, bool past_caches);
};

template <typename T>
struct CopyPasteBackwardKernels {
  // (1 - a) own + b other: the gradient of a sample from its own and its receiver's.
  void (*backward)(const T* own, const T* other, const float* weights, const float* weights_of_other, int64_t column,
                   const PasteSegment* segments, int64_t count, T* to, bool past_caches);
};

template <typename T>
struct CopyPasteFloatingKernels : CopyPasteKernels<T>, CopyPasteBackwardKernels<T> {};

struct AllCopyPasteKernels {
  CopyPasteMaskKernels masks;

  // Cuts n pixels into segments, at most one for each kSegment: own where both weights are 0, other where both are 1.
  int64_t (*segments)(const float* weights, const float* weights_of_other, int64_t n, PasteSegment* to);

  CopyPasteKernels<uint8_t> bytes;
  CopyPasteFloatingKernels<float> float32;
  CopyPasteFloatingKernels<double> float64;
  CopyPasteFloatingKernels<c10::BFloat16> bfloat16;
  CopyPasteFloatingKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(AllCopyPasteKernels, copy_paste_kernels)

}  // namespace sod_ops

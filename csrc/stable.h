// The only way to torch's stable ABI here: it fixes the oldest torch that the operators run in, 2.11. The macro stands
// in this header and not on the command line because at::vec, which csrc/simd uses, refuses to compile where it is
// defined.
#pragma once

#define TORCH_TARGET_VERSION ((2ULL << 56) | (11ULL << 48))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

// The complete IoU of one pair of boxes, and its gradient by both. The formula stands in
// sod_ops/reference/complete_box_iou.py.
#pragma once

#include <cfloat>
#include <type_traits>

#include "boxes.h"

namespace sod_ops::math {

// The complete IoU of boxes a and b. With kGradient, `g` gets its gradient, times `grad`, by what it is computed from.
template <bool kGradient, typename T>
SOD_OPS_HD T complete_box_iou(const Box<T>& a, const Box<T>& b, T eps, T grad = T(1), PairGradient<T>* g = nullptr) {
  using Number = typename Scalar<T>::type;
  constexpr Number kSmallest = std::is_same_v<Number, float> ? FLT_MIN : static_cast<Number>(DBL_MIN);
  const auto pair = make_pair<true>(a, b);
  const auto covers = greater(math::abs(pair.union_), T(kSmallest));
  const T iou = where(covers, pair.intersection / pair.union_, T(0));
  const T diagonal = squared_diagonal(pair) + eps;
  const T penalty = squared_distance(pair) / diagonal;
  const auto aspect = make_aspect(a, b, iou, eps);
  if constexpr (kGradient) {
    const T by_iou = where(covers, grad / pair.union_, T(0));
    g->area = -(by_iou * iou);
    add_distance_gradient(pair, diagonal, penalty, -grad, g);
    g->angle = -(grad * aspect.by_angle);
    add_overlap_gradient(pair, by_iou, g);
  }
  return iou - penalty - aspect.penalty;
}

}  // namespace sod_ops::math

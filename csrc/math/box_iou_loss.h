// The losses of generalized, distance and complete IoU for one pair of boxes, and their gradients by both boxes. The
// formulas stand in sod_ops/reference/box_iou_loss.py, whose table LOSSES has the numbering.
#pragma once

#include "boxes.h"

namespace sod_ops::math {

enum class BoxLoss { generalized, distance, complete };

constexpr int kBoxLosses = 3;

// The loss of boxes a and b. With kGradient, `g` gets its gradient, times `grad`, by what the loss is computed from.
template <BoxLoss kLoss, bool kGradient, typename T>
SOD_OPS_HD T box_iou_loss(const Box<T>& a, const Box<T>& b, T eps, T grad = T(1), PairGradient<T>* g = nullptr) {
  const auto pair = make_pair<false>(a, b);
  // The caller's eps reaches only the alpha of complete.
  const T own_eps = kLoss == BoxLoss::complete ? T(1e-7) : eps;
  const T padded_union = pair.union_ + own_eps;
  const T iou = pair.intersection / padded_union;
  const T by_iou = kGradient ? -grad / padded_union : T(0);
  if constexpr (kGradient) g->area = -(by_iou * iou);
  T loss = T(1) - iou;
  if constexpr (kLoss == BoxLoss::generalized) {
    const T enclosing = product(pair.enclosing_width, pair.enclosing_height);
    const T padded = enclosing + eps;
    const T empty = (enclosing - pair.union_) / padded;
    loss = T(1) - (iou - empty);
    if constexpr (kGradient) {
      const T by_empty = grad / padded;
      const T by_enclosing = by_empty * (T(1) - empty);
      g->area = g->area - by_empty;
      g->enclosing_width = by_enclosing * pair.enclosing_height;
      g->enclosing_height = by_enclosing * pair.enclosing_width;
      g->dx = g->dy = T(0);
    }
  } else {
    const T diagonal = squared_diagonal(pair) + own_eps;
    const T penalty = squared_distance(pair) / diagonal;
    loss = loss + penalty;
    if constexpr (kGradient) add_distance_gradient(pair, diagonal, penalty, grad, g);
    if constexpr (kLoss == BoxLoss::complete) {
      const auto aspect = make_aspect(a, b, iou, eps);
      loss = loss + aspect.penalty;
      if constexpr (kGradient) g->angle = grad * aspect.by_angle;
    }
  }
  if constexpr (kGradient) add_overlap_gradient(pair, by_iou, g);
  return loss;
}

}  // namespace sod_ops::math

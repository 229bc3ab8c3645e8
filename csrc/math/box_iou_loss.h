// The losses of generalized, distance and complete IoU for one pair of boxes, and their gradients by both boxes. The formulas
// stand in sod_ops/reference/box_iou_loss.py, whose table LOSSES has the numbering.
#pragma once

#include "boxes.h"

namespace sod_ops::math {

enum class BoxLoss { generalized, distance, complete };

constexpr int kBoxLosses = 3;

// eps where it is not the caller's: complete's, but for the denominator of alpha.
constexpr double kBoxEps = 1e-7;

template <BoxLoss kLoss, typename T>
SOD_OPS_HD T box_iou_loss(const Box<T>& a, const Box<T>& b, T eps) {
  const auto pair = make_pair<false>(a, b);
  const T own_eps = kLoss == BoxLoss::complete ? T(kBoxEps) : eps;
  const T iou = pair.intersection / (pair.union_ + own_eps);
  if constexpr (kLoss == BoxLoss::generalized) {
    const T enclosing = product(pair.enclosing_width, pair.enclosing_height);
    return T(1) - (iou - (enclosing - pair.union_) / (enclosing + eps));
  } else {
    const T loss = T(1) - iou + make_distance(pair, own_eps).penalty;
    if constexpr (kLoss == BoxLoss::distance) return loss;
    return loss + make_aspect(a, b, iou, eps).penalty;
  }
}

// The gradient of the loss, times `grad`, by what make_pair computes and by the angles.
template <BoxLoss kLoss, typename T>
SOD_OPS_HD PairGradient<T> box_iou_loss_gradient(const Box<T>& a, const Box<T>& b, T eps, T grad) {
  const auto pair = make_pair<false>(a, b);
  const T own_eps = kLoss == BoxLoss::complete ? T(kBoxEps) : eps;
  const T padded_union = pair.union_ + own_eps;
  const T iou = pair.intersection / padded_union;
  const T by_iou = grad / padded_union;
  PairGradient<T> g;
  g.area = by_iou * iou;
  if constexpr (kLoss == BoxLoss::generalized) {
    const T enclosing = product(pair.enclosing_width, pair.enclosing_height);
    const T inverse = T(1) / (enclosing + eps);
    const T by_enclosing = grad * inverse * (T(1) - (enclosing - pair.union_) * inverse);
    g.area = g.area - grad * inverse;
    g.enclosing_width = by_enclosing * pair.enclosing_height;
    g.enclosing_height = by_enclosing * pair.enclosing_width;
    g.dx = g.dy = T(0);
  } else {
    const auto distance = make_distance(pair, own_eps);
    const T by_distance = T(2) * grad / distance.diagonal;
    g.enclosing_width = -by_distance * distance.penalty * pair.enclosing_width;
    g.enclosing_height = -by_distance * distance.penalty * pair.enclosing_height;
    g.dx = by_distance * pair.dx;
    g.dy = by_distance * pair.dy;
    if constexpr (kLoss == BoxLoss::complete) g.angle = grad * make_aspect(a, b, iou, eps).by_angle;
  }
  const T by_intersection = -by_iou - g.area;  // the union loses what the intersection gains
  g.overlap_width = by_intersection * pair.by_width;
  g.overlap_height = by_intersection * pair.by_height;
  return g;
}

}  // namespace sod_ops::math

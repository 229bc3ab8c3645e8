// Boxes and what two of them have in common, for T = float, double or a SIMD vector of them. The formulas are those of
// sod_ops/reference/box_iou_loss.py; where two coordinates are equal, the derivatives of max and min are PyTorch's:
// half for each.
#pragma once

#include "arctangent.h"
#include "scalar.h"

namespace sod_ops::math {

// A number for each of a box's coordinates: the coordinates themselves, or a gradient by them.
template <typename T>
struct Corners {
  T x1, y1, x2, y2;
};

// A box and what is computed from it alone; the last two only where kAngle.
template <typename T>
struct Box : Corners<T> {
  T width, height, area;
  T size;   // the squared diagonal
  T angle;  // atan(width / height); NaN for a box of size 0, which has no aspect ratio
};

template <typename T>
SOD_OPS_HD T squared_size(T width, T height) {
  return multiply_add(width, width, product(height, height));
}

template <bool kAngle, typename T>
SOD_OPS_HD Box<T> make_box(Corners<T> corners) {
  Box<T> box{corners};
  box.width = box.x2 - box.x1;
  box.height = box.y2 - box.y1;
  box.area = product(box.width, box.height);
  if constexpr (kAngle) {
    box.size = squared_size(box.width, box.height);
    box.angle = where(greater(box.size, T(0)), arctangent(box.width, box.height), T(NAN));
  }
  return box;
}

// What two boxes have in common.
template <typename T>
struct Pair {
  T intersection;
  T by_width, by_height;  // the derivatives of the intersection by its width and height
  T union_;
  T enclosing_width, enclosing_height;
  T dx, dy;  // from the centre of b to that of a
};

// kClamp: widths and heights are clamped at 0 on their own, as PyTorch clamps (the derivative at 0 is 1), those of the
// enclosing box too. Otherwise boxes that only touch count as apart.
template <bool kClamp, typename T>
SOD_OPS_HD Pair<T> make_pair(const Box<T>& a, const Box<T>& b) {
  Pair<T> pair;
  const T width = min(a.x2, b.x2) - max(a.x1, b.x1);
  const T height = min(a.y2, b.y2) - max(a.y1, b.y1);
  pair.enclosing_width = max(a.x2, b.x2) - min(a.x1, b.x1);
  pair.enclosing_height = max(a.y2, b.y2) - min(a.y1, b.y1);
  if constexpr (kClamp) {
    const T across = max(width, T(0)), down = max(height, T(0));
    pair.intersection = product(across, down);
    pair.by_width = where(greater(T(0), width), T(0), down);
    pair.by_height = where(greater(T(0), height), T(0), across);
    pair.enclosing_width = max(pair.enclosing_width, T(0));
    pair.enclosing_height = max(pair.enclosing_height, T(0));
  } else {
    const auto overlap = greater(width, T(0)) & greater(height, T(0));
    pair.by_width = where(overlap, height, T(0));
    pair.by_height = where(overlap, width, T(0));
    pair.intersection = product(pair.by_width, pair.by_height);
  }
  pair.union_ = a.area + b.area - pair.intersection;
  pair.dx = ((a.x1 + a.x2) - (b.x1 + b.x2)) * T(0.5);
  pair.dy = ((a.y1 + a.y2) - (b.y1 + b.y2)) * T(0.5);
  return pair;
}

// Of the enclosing box, and between the centres.
template <typename T>
SOD_OPS_HD T squared_diagonal(const Pair<T>& pair) {
  return product(pair.enclosing_width, pair.enclosing_width) + product(pair.enclosing_height, pair.enclosing_height);
}
template <typename T>
SOD_OPS_HD T squared_distance(const Pair<T>& pair) {
  return product(pair.dx, pair.dx) + product(pair.dy, pair.dy);
}

// The penalty alpha v for two boxes whose shapes differ, and its derivative by the angle of a: alpha is a constant. The
// derivative by the angle of b is the same with the other sign.
template <typename T>
struct Aspect {
  T penalty, by_angle;
};

template <typename T>
SOD_OPS_HD Aspect<T> make_aspect(const Box<T>& a, const Box<T>& b, T iou, T eps) {
  const T factor(0.40528473456935108577);  // 4 / pi^2
  const T difference = a.angle - b.angle;
  // NaN, where a box has no aspect ratio, is not greater than 0 either.
  const T angle = where(greater(difference * difference, T(0)), difference, T(0));
  const T v = factor * angle * angle;
  const T alpha = v / (T(1) - iou + v + eps);
  return {alpha * v, T(2) * factor * alpha * angle};
}

// The gradient of a pair's value by what it is computed from. By the centre and the angle of b it is that of a with the
// other sign.
template <typename T>
struct PairGradient {
  T overlap_width, overlap_height;
  T enclosing_width, enclosing_height;
  T area;    // of either box
  T dx, dy;  // by either of two opposite sides, which moves the centre by half
  T angle;
};

// Of the penalty squared_distance / diagonal.
template <typename T>
SOD_OPS_HD void add_distance_gradient(const Pair<T>& pair, T diagonal, T penalty, T grad, PairGradient<T>* g) {
  const T by_distance = grad / diagonal;
  g->dx = by_distance * pair.dx;
  g->dy = by_distance * pair.dy;
  const T by_side = T(-2) * by_distance * penalty;
  g->enclosing_width = by_side * pair.enclosing_width;
  g->enclosing_height = by_side * pair.enclosing_height;
}

// From the gradient by the IoU over the union, and that by the areas: the union loses what the intersection gains.
template <typename T>
SOD_OPS_HD void add_overlap_gradient(const Pair<T>& pair, T by_iou, PairGradient<T>* g) {
  const T by_intersection = by_iou - g->area;
  g->overlap_width = by_intersection * pair.by_width;
  g->overlap_height = by_intersection * pair.by_height;
}

// The gradient by one side of a box, which bounds the overlap where it lies further inside than the other box's, and
// the enclosing box where it lies further outside.
template <typename T>
SOD_OPS_HD T side_gradient(T inner, T outer, T overlap, T enclosing) {
  return where(greater(inner, outer), overlap, where(greater(outer, inner), enclosing, (overlap + enclosing) * T(0.5)));
}

// From there to the coordinates of `box`, the first of the pair (kFirst) or the second, but for what comes by its area
// and its angle.
template <bool kFirst, typename T>
SOD_OPS_HD Corners<T> sides_gradient(const Corners<T>& box, const Corners<T>& other, const PairGradient<T>& g) {
  const T dx = kFirst ? g.dx : -g.dx, dy = kFirst ? g.dy : -g.dy;
  return {dx - side_gradient(box.x1, other.x1, g.overlap_width, g.enclosing_width),
          dy - side_gradient(box.y1, other.y1, g.overlap_height, g.enclosing_height),
          dx + side_gradient(other.x2, box.x2, g.overlap_width, g.enclosing_width),
          dy + side_gradient(other.y2, box.y2, g.overlap_height, g.enclosing_height)};
}

// What comes by the area and (where kAngle) by the angle of the box, added to `gradient`.
template <bool kAngle, typename T>
SOD_OPS_HD Corners<T> add_shape_gradient(const Box<T>& box, T area, T angle, Corners<T> gradient) {
  T by_width = area * box.height, by_height = area * box.width;
  if constexpr (kAngle) {
    const T turn = angle * where(greater(box.size, T(0)), T(1) / box.size, T(0));
    by_width = multiply_add(turn, box.height, by_width);
    by_height = multiply_add(-turn, box.width, by_height);
  }
  return {gradient.x1 - by_width, gradient.y1 - by_height, gradient.x2 + by_width, gradient.y2 + by_height};
}

// Both: the gradient by the coordinates of `box`.
template <bool kFirst, bool kAngle, typename T>
SOD_OPS_HD Corners<T> corners_gradient(const Box<T>& box, const Box<T>& other, const PairGradient<T>& g) {
  T angle = T(0);
  if constexpr (kAngle) angle = kFirst ? g.angle : -g.angle;
  return add_shape_gradient<kAngle>(box, g.area, angle, sides_gradient<kFirst, T>(box, other, g));
}

}  // namespace sod_ops::math

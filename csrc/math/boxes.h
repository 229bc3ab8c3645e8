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

template <bool kAngle, typename T>
SOD_OPS_HD Box<T> make_box(Corners<T> corners) {
  Box<T> box{corners};
  box.width = box.x2 - box.x1;
  box.height = box.y2 - box.y1;
  box.area = product(box.width, box.height);
  if constexpr (kAngle) {
    box.size = multiply_add(box.width, box.width, product(box.height, box.height));
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
  T area;  // of either box
  T dx, dy;
  T angle;
};

// The gradient by one side of `box`, which is the inner of the two where it lies beyond the other's: then it bounds the
// overlap, otherwise the enclosing box.
template <typename T>
SOD_OPS_HD T side_gradient(T side, T bound, T overlap, T enclosing) {
  return where(greater(side, bound), overlap, where(greater(bound, side), enclosing, (overlap + enclosing) * T(0.5)));
}

// From there to the coordinates of `box`, the first of the pair (kFirst) or the second.
template <bool kFirst, bool kAngle, typename T>
SOD_OPS_HD Corners<T> corners_gradient(const Box<T>& box, const Box<T>& other, const PairGradient<T>& g) {
  T by_width = g.area * box.height, by_height = g.area * box.width;
  if constexpr (kAngle) {
    const T inverse = where(greater(box.size, T(0)), T(1) / box.size, T(0));
    const T angle = kFirst ? g.angle * inverse : -(g.angle * inverse);
    by_width = multiply_add(angle, box.height, by_width);
    by_height = multiply_add(-angle, box.width, by_height);
  }
  const T dx = kFirst ? g.dx : -g.dx, dy = kFirst ? g.dy : -g.dy;
  return {dx - by_width - side_gradient(box.x1, other.x1, g.overlap_width, g.enclosing_width),
          dy - by_height - side_gradient(box.y1, other.y1, g.overlap_height, g.enclosing_height),
          dx + by_width + side_gradient(other.x2, box.x2, g.overlap_width, g.enclosing_width),
          dy + by_height + side_gradient(other.y2, box.y2, g.overlap_height, g.enclosing_height)};
}

}  // namespace sod_ops::math

// Boxes and what two of them have in common, for T = float, double or a SIMD vector of them. The formulas are those of
// sod_ops/reference/box_iou_loss.py; where two coordinates are equal, the derivatives of max and min are PyTorch's: half for
// each.
#pragma once

#include "scalar.h"

namespace sod_ops::math {

// A number for each of a box's coordinates: the coordinates themselves, or a gradient by them.
template <typename T>
struct Corners {
  T x1, y1, x2, y2;
};

// A box and what is computed from it alone.
template <typename T>
struct Box : Corners<T> {
  T width, height, area;
  T angle;  // atan(width / height); NaN for a box with neither, which has no aspect ratio. Only where kAngle.
};

template <typename T>
SOD_OPS_HD T max(T a, T b) {
  return where(a > b, a, b);
}

template <typename T>
SOD_OPS_HD T min(T a, T b) {
  return where(a < b, a, b);
}

// The derivative of max(a, b) by a. That of min(a, b) is larger(b, a).
template <typename T>
SOD_OPS_HD T larger(T a, T b) {
  return where(a > b, T(1), where(a < b, T(0), T(0.5)));
}

template <bool kAngle, typename T>
SOD_OPS_HD Box<T> make_box(Corners<T> corners) {
  Box<T> box{corners};
  box.width = box.x2 - box.x1;
  box.height = box.y2 - box.y1;
  box.area = product(box.width, box.height);
  if constexpr (kAngle) {
    const T size = box.width * box.width + box.height * box.height;
    box.angle = where(size > T(0), math::atan(box.width / box.height), T(NAN));
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
    pair.by_width = where(width >= T(0), down, T(0));
    pair.by_height = where(height >= T(0), across, T(0));
    pair.enclosing_width = max(pair.enclosing_width, T(0));
    pair.enclosing_height = max(pair.enclosing_height, T(0));
  } else {
    const auto overlap = (width > T(0)) & (height > T(0));
    pair.by_width = where(overlap, height, T(0));
    pair.by_height = where(overlap, width, T(0));
    pair.intersection = product(pair.by_width, pair.by_height);
  }
  pair.union_ = a.area + b.area - pair.intersection;
  pair.dx = (a.x1 + a.x2) * T(0.5) - (b.x1 + b.x2) * T(0.5);
  pair.dy = (a.y1 + a.y2) * T(0.5) - (b.y1 + b.y2) * T(0.5);
  return pair;
}

// The squared distance of the centres over the squared diagonal of the enclosing box.
template <typename T>
struct Distance {
  T diagonal, penalty;
};

template <typename T>
SOD_OPS_HD Distance<T> make_distance(const Pair<T>& pair, T eps) {
  const T width = pair.enclosing_width, height = pair.enclosing_height;
  const T diagonal = product(width, width) + product(height, height) + eps;
  return {diagonal, (product(pair.dx, pair.dx) + product(pair.dy, pair.dy)) / diagonal};
}

// The penalty alpha v for two boxes whose shapes differ, and its derivative by the angle of a: alpha is a constant. The
// derivative by the angle of b is the same with the other sign.
template <typename T>
struct Aspect {
  T penalty, by_angle;
};

template <typename T>
SOD_OPS_HD Aspect<T> make_aspect(const Box<T>& a, const Box<T>& b, T iou, T eps) {
  const T kFactor = T(0.40528473456935108577);  // 4 / pi^2
  const T difference = a.angle - b.angle;
  const T angle = where(difference == difference, difference, T(0));  // NaN where a box has no aspect ratio
  const T v = kFactor * (angle * angle);
  const T alpha = v / (T(1) - iou + v + eps);
  return {alpha * v, T(2) * alpha * kFactor * angle};
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

// From there to the coordinates of `box`, the first of the pair (kFirst) or the second.
template <bool kFirst, bool kAngle, typename T>
SOD_OPS_HD Corners<T> corners_gradient(const Box<T>& box, const Box<T>& other, const PairGradient<T>& g) {
  T by_width = g.area * box.height, by_height = g.area * box.width;
  if constexpr (kAngle) {
    const T size = box.width * box.width + box.height * box.height;
    const T angle = (kFirst ? g.angle : -g.angle) * where(size > T(0), T(1) / size, T(0));
    by_width = by_width + angle * box.height;
    by_height = by_height - angle * box.width;
  }
  const T dx = (kFirst ? g.dx : -g.dx) * T(0.5), dy = (kFirst ? g.dy : -g.dy) * T(0.5);
  const auto side = [](T overlap, T enclosing, T inner) { return inner * overlap + (T(1) - inner) * enclosing; };
  return {dx - by_width - side(g.overlap_width, g.enclosing_width, larger(box.x1, other.x1)),
          dy - by_height - side(g.overlap_height, g.enclosing_height, larger(box.y1, other.y1)),
          dx + by_width + side(g.overlap_width, g.enclosing_width, larger(other.x2, box.x2)),
          dy + by_height + side(g.overlap_height, g.enclosing_height, larger(other.y2, box.y2))};
}

}  // namespace sod_ops::math

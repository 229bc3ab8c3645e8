// csrc/math/box_iou_loss.h on plain numbers, for test_box_math.py.
#include "../csrc/math/box_iou_loss.h"
#include "../csrc/math/complete_box_iou.h"

#include "plain_math.h"

using namespace sod_ops::math;

template <typename T>
void print(const Corners<T>& c, const char* end) {
  print(c.x1), print(c.y1), print(c.x2), print(c.y2, end);
}

template <BoxLoss kLoss, typename T>
void loss(Corners<T> first, Corners<T> second, T eps, T grad) {
  constexpr bool kAngle = kLoss == BoxLoss::complete;
  const auto a = make_box<kAngle>(first), b = make_box<kAngle>(second);
  PairGradient<T> gradient;
  print(box_iou_loss<kLoss, true>(a, b, eps, grad, &gradient));
  print(corners_gradient<true, kAngle>(a, b, gradient), " ");
  print(corners_gradient<false, kAngle>(b, a, gradient), "\n");
}

template <typename T>
void pairwise(Corners<T> first, Corners<T> second, T eps, T grad) {
  const auto a = make_box<true>(first), b = make_box<true>(second);
  PairGradient<T> gradient;
  print(complete_box_iou<true>(a, b, eps, grad, &gradient));
  print(corners_gradient<true, true>(a, b, gradient), " ");
  print(corners_gradient<false, true>(b, a, gradient), "\n");
}

template <typename T>
void answer(char what, const double* n) {
  if (what == 'a') return print(arctangent(T(n[0]), T(n[1])), "\n");
  const Corners<T> a{T(n[0]), T(n[1]), T(n[2]), T(n[3])}, b{T(n[4]), T(n[5]), T(n[6]), T(n[7])};
  const T eps = T(n[8]), grad = T(n[9]);
  if (what == '0') loss<BoxLoss::generalized>(a, b, eps, grad);
  if (what == '1') loss<BoxLoss::distance>(a, b, eps, grad);
  if (what == '2') loss<BoxLoss::complete>(a, b, eps, grad);
  if (what == 'p') pairwise(a, b, eps, grad);
}

// csrc/math/focal_loss.h on plain numbers, for test_focal_math.py.
#include "../csrc/math/focal_loss.h"

#include "plain_math.h"

using namespace sod_ops::math;

template <Focus kFocus, typename T>
void sigmoid(const double* n) {
  const Focal<T> focal = sigmoid_focal<kFocus>(T(n[0]), T(n[1]), T(n[2]), T(n[3]), T(n[4]));
  print(focal.loss), print(focal.derivative, "\n");
}

template <typename T>
void softmax(const double* n) {
  const auto l = likelihood(T(n[0]), T(n[1]), T(n[2]));
  const auto focal = softmax_focal(focus_of(n[4]), l.cross_entropy, l.target, l.others, T(n[3]), T(n[4]));
  print(focal.loss), print(focal.gain * l.others, "\n");
}

// 'l': log1p_of_unit of a number; 's': sigmoid_focal of logit, target, both weights and gamma; 'm': softmax_focal of
// the largest logit, the target's, the sum of the other exponentials, weight and gamma, and minus its derivative by the
// target's.
template <typename T>
void answer(char what, const double* n) {
  if (what == 'l') return print(log1p_of_unit(T(n[0])), "\n");
  if (what == 'm') return softmax<T>(n);
  switch (focus_of(n[4])) {
    case Focus::zero: return sigmoid<Focus::zero, T>(n);
    case Focus::one: return sigmoid<Focus::one, T>(n);
    case Focus::two: return sigmoid<Focus::two, T>(n);
    case Focus::power: return sigmoid<Focus::power, T>(n);
  }
}

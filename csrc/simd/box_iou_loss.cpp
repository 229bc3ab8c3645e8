// The IoU losses of a run of box pairs, a vector of them at a time; compiled once for each instruction set (see capability.h).
#include "box_iou_loss.h"

#include "boxes.h"
// After boxes.h: its templates call the functions for vectors.
#include "../math/box_iou_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::BoxLoss;
using simd::Accumulator;
using simd::BoxLanes;

template <typename T>
using V = at::vec::Vectorized<Accumulator<T>>;

template <BoxLoss kLoss, typename T>
math::Box<V<T>> box_at(const T* boxes, int64_t step, int64_t i, int64_t count) {
  return math::make_box<kLoss == BoxLoss::complete>(BoxLanes<T>::load(boxes + i * step, step, count));
}

// Calls body(offset, count) for every vector of pairs in [0, pairs).
template <typename T, typename Body>
void for_each_vector(int64_t pairs, const Body& body) {
  simd::for_each_piece<Accumulator<T>>(pairs, body);
}

template <BoxLoss kLoss, typename T>
double forward_of(const BoxPairs<T>& pairs, double eps, Accumulator<T>* losses) {
  const V<T> eps_vector(static_cast<Accumulator<T>>(eps));
  V<T> sum(0);
  for_each_vector<T>(pairs.count, [&](int64_t i, int64_t count) {
    const auto a = box_at<kLoss>(pairs.first, pairs.first_step, i, count);
    const auto b = box_at<kLoss>(pairs.second, pairs.second_step, i, count);
    const V<T> loss = math::box_iou_loss<kLoss>(a, b, eps_vector);
    if (losses != nullptr) return loss.store(losses + i, static_cast<int>(count));
    sum = sum + V<T>::set(V<T>(0), loss, count);
  });
  Accumulator<T> lanes[V<T>::size()];
  sum.store(lanes);
  double total = 0;
  for (const auto lane : lanes) total += lane;
  return total;
}

template <BoxLoss kLoss, bool kFirst, bool kSecond, typename T>
void backward_of(const BoxPairs<T>& pairs, double eps, const Accumulator<T>* grad, int64_t grad_step, double scale,
                 T* grad_first, T* grad_second) {
  using Acc = Accumulator<T>;
  constexpr bool kAngle = kLoss == BoxLoss::complete;
  const V<T> eps_vector(static_cast<Acc>(eps)), factor(static_cast<Acc>(scale));
  const V<T> constant = V<T>(grad_step == 0 && pairs.count > 0 ? *grad : Acc(0)) * factor;
  for_each_vector<T>(pairs.count, [&](int64_t i, int64_t count) {
    const auto a = box_at<kLoss>(pairs.first, pairs.first_step, i, count);
    const auto b = box_at<kLoss>(pairs.second, pairs.second_step, i, count);
    const V<T> weight = grad_step == 0 ? constant : V<T>::loadu(grad + i, count) * factor;
    const auto gradient = math::box_iou_loss_gradient<kLoss>(a, b, eps_vector, weight);
    if constexpr (kFirst) {
      BoxLanes<T>::store(math::corners_gradient<true, kAngle>(a, b, gradient), grad_first + 4 * i, count);
    }
    if constexpr (kSecond) {
      BoxLanes<T>::store(math::corners_gradient<false, kAngle>(b, a, gradient), grad_second + 4 * i, count);
    }
  });
}

template <typename T>
double forward(int64_t loss, const BoxPairs<T>& pairs, double eps, Accumulator<T>* losses) {
  switch (static_cast<BoxLoss>(loss)) {
    case BoxLoss::generalized: return forward_of<BoxLoss::generalized>(pairs, eps, losses);
    case BoxLoss::distance: return forward_of<BoxLoss::distance>(pairs, eps, losses);
    default: return forward_of<BoxLoss::complete>(pairs, eps, losses);
  }
}

template <BoxLoss kLoss, typename T>
void backward_sides(const BoxPairs<T>& pairs, double eps, const Accumulator<T>* grad, int64_t grad_step, double scale,
                    T* grad_first, T* grad_second) {
  if (grad_first != nullptr && grad_second != nullptr) {
    backward_of<kLoss, true, true>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
  } else if (grad_first != nullptr) {
    backward_of<kLoss, true, false>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
  } else if (grad_second != nullptr) {
    backward_of<kLoss, false, true>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
  }
}

template <typename T>
void backward(int64_t loss, const BoxPairs<T>& pairs, double eps, const Accumulator<T>* grad, int64_t grad_step,
              double scale, T* grad_first, T* grad_second) {
  switch (static_cast<BoxLoss>(loss)) {
    case BoxLoss::generalized:
      return backward_sides<BoxLoss::generalized>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
    case BoxLoss::distance:
      return backward_sides<BoxLoss::distance>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
    default: return backward_sides<BoxLoss::complete>(pairs, eps, grad, grad_step, scale, grad_first, grad_second);
  }
}

template <typename T>
constexpr BoxLossKernels<T> kernels() {
  return {forward<T>, backward<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const BoxIouLossKernels SOD_OPS_THIS_TABLE(box_iou_loss_kernels) = {kernels<float>(), kernels<double>(),
                                                                    kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops

// The IoU losses of a run of box pairs, a vector of pairs at a time; compiled once for each instruction set (see
// capability.h).
#include "box_iou_loss.h"

#include "boxes.h"
// After boxes.h: its templates call the functions for vectors.
#include "../math/box_iou_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::BoxLoss;
using simd::BoxLanes;

template <BoxLoss kLoss, bool kFirst, bool kSecond, typename T>
double run_of(int64_t number, const BoxLossRun<T>& run) {
  using Acc = typename BoxLossRun<T>::Acc;
  using V = at::vec::Vectorized<Acc>;
  constexpr bool kGradient = kFirst || kSecond, kAngle = kLoss == BoxLoss::complete;
  const auto padding = math::padding_of<V>(number, run.eps);
  const V scale(static_cast<Acc>(run.scale));
  const V constant = kGradient && run.grad_step == 0 ? V(*run.grad) * scale : scale;
  V sum(0);
  simd::for_each_piece<Acc>(run.count, [&](int64_t i, auto count) {
    const auto box = [&](const T* boxes, int64_t step) {
      return math::make_box<kAngle>(BoxLanes<T>::load(boxes + i * step, step, count), padding.heights);
    };
    const auto a = box(run.first, run.first_step), b = box(run.second, run.second_step);
    V grad = constant;
    if constexpr (kGradient) {
      if (run.grad_step != 0) grad = V::loadu(run.grad + i, count) * scale;
    }
    math::PairGradient<V> gradient;
    const V loss = math::box_iou_loss<kLoss, kGradient>(a, b, padding, grad, &gradient);
    if constexpr (kFirst) {
      BoxLanes<T>::store(math::corners_gradient<true, kAngle>(a, b, gradient), run.grad_first + 4 * i, count);
    }
    if constexpr (kSecond) {
      BoxLanes<T>::store(math::corners_gradient<false, kAngle>(b, a, gradient), run.grad_second + 4 * i, count);
    }
    if (run.losses != nullptr) loss.store(run.losses + i, static_cast<int>(count));
    sum = sum + V::set(V(0), loss, count);
  });
  Acc lanes[V::size()];
  sum.store(lanes);
  double total = 0;
  for (const Acc lane : lanes) total += lane;
  return total;
}

template <BoxLoss kLoss, typename T>
double run_of(int64_t number, const BoxLossRun<T>& run) {
  if (run.grad_first == nullptr) {
    return run.grad_second == nullptr ? run_of<kLoss, false, false>(number, run)
                                      : run_of<kLoss, false, true>(number, run);
  }
  return run.grad_second == nullptr ? run_of<kLoss, true, false>(number, run) : run_of<kLoss, true, true>(number, run);
}

template <typename T>
double run(int64_t loss, const BoxLossRun<T>& run) {
  switch (math::kind_of(loss)) {
    case BoxLoss::generalized: return run_of<BoxLoss::generalized>(loss, run);
    case BoxLoss::distance: return run_of<BoxLoss::distance>(loss, run);
    default: return run_of<BoxLoss::complete>(loss, run);
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

const BoxIouLossKernels SOD_OPS_THIS_TABLE(box_iou_loss_kernels) = {run<float>, run<double>, run<c10::BFloat16>,
                                                                    run<c10::Half>};

}  // namespace sod_ops

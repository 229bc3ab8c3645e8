// Softmax focal loss on the CPU: threads and memory. The arithmetic stands in ../simd/softmax_focal_loss.cpp.
#include "../softmax_focal_loss.h"

#include <tuple>
#include <type_traits>
#include <vector>

#include "../simd/softmax_focal_loss.h"
#include "cache.h"
#include "elements.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// Numbers that are worked on at a time: with what belongs to them they fit into the first-level cache.
constexpr int64_t kBlock = 5120;
constexpr int64_t kMostPositions = 512;
// Numbers whose losses are summed by one thread: fixed, so that the sum doesn't depend on the number of threads.
constexpr int64_t kTask = 65536;
// With fewer classes than this, sums over a position's classes and the registers that they don't fill cost more than
// bringing the classes of many positions together.
constexpr int64_t kFewClasses = 32;
constexpr int64_t kRegister = 16;  // at least the numbers that a register holds

// Targets of any integer dtype.
class Classes {
 public:
  Classes(const Tensor& targets, const Positions& positions)
      : data_(targets.data_ptr()), dtype_(targets.scalar_type()), steps_(positions.targets) {}

  void read(int64_t row, int64_t column, int64_t n, int64_t* to) const {
    using torch::headeronly::ScalarType;
    const int64_t at = row * steps_.row + column * steps_.column;
    switch (dtype_) {
      case ScalarType::Byte: return read_as<uint8_t>(at, n, to);
      case ScalarType::Char: return read_as<int8_t>(at, n, to);
      case ScalarType::Short: return read_as<int16_t>(at, n, to);
      case ScalarType::Int: return read_as<int32_t>(at, n, to);
      default: return read_as<int64_t>(at, n, to);
    }
  }

 private:
  template <typename T>
  void read_as(int64_t at, int64_t n, int64_t* to) const {
    const T* from = static_cast<const T*>(data_) + at;
    if (steps_.column == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(from[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(from[i * steps_.column]);
    }
  }

  const void* data_;
  torch::headeronly::ScalarType dtype_;
  Steps steps_;
};

// Pieces of rows, each of up to `most` positions, and tasks of as many pieces.
struct Pieces {
  int64_t most;
  int64_t across;
  int64_t count;
  int64_t per_task;

  Pieces(const Positions& positions, int64_t largest, int64_t numbers_per_position)
      : most(std::max<int64_t>(1, std::min(largest, positions.columns))),
        across((positions.columns + most - 1) / most),
        count(positions.rows * across),
        per_task(std::max<int64_t>(1, kTask / (most * numbers_per_position))) {}

  int64_t tasks() const { return (count + per_task - 1) / per_task; }

  // body(row, first column, positions) for the pieces of a task.
  template <typename Body>
  void for_each(int64_t task, const Positions& positions, const Body& body) const {
    for (int64_t piece = task * per_task; piece < std::min(count, (task + 1) * per_task); ++piece) {
      const int64_t column = piece % across * most;
      body(piece / across, column, std::min(most, positions.columns - column));
    }
  }
};

// How many positions are not ignored. Throws where the target of one is no class.
int64_t count_targets(const SoftmaxFocalCall& call, const Positions& positions, const Classes& targets) {
  const Pieces pieces(positions, kRun, 1);
  auto counts = scratch<TargetCount>(pieces.tasks());
  const auto count = softmax_focal_kernels().count;
  parallel_tasks(pieces.tasks(), kTask, [&](int64_t first, int64_t last) {
    int64_t buffer[kRun];
    for (int64_t task = first; task < last; ++task) {
      counts[task] = {0, 0};
      pieces.for_each(task, positions, [&](int64_t row, int64_t column, int64_t n) {
        targets.read(row, column, n, buffer);
        const TargetCount found = count(buffer, n, call.ignore_index, call.classes);
        counts[task].counted += found.counted;
        counts[task].classes += found.classes;
      });
    }
  });
  int64_t counted = 0, classes = 0;
  for (int64_t task = 0; task < pieces.tasks(); ++task) {
    counted += counts[task].counted;
    classes += counts[task].classes;
  }
  STD_TORCH_CHECK(counted == classes, call.kOp, ": ", counted - classes, " targets are neither a class, 0 to ",
                  call.classes - 1, ", nor the ignored index ", call.ignore_index);
  return counted;
}

template <typename Acc>
const SoftmaxFocalKernels<Acc>& kernels() {
  if constexpr (std::is_same_v<Acc, float>) return softmax_focal_kernels().float32;
  if constexpr (std::is_same_v<Acc, double>) return softmax_focal_kernels().float64;
}

template <typename Acc>
struct Pass {
  const SoftmaxFocalCall& call;
  const Positions& positions;
  Classes targets;
  const Tensor& inputs;
  const Tensor* gradient = nullptr;  // or none is wanted
  std::vector<Acc> weights;          // of each class
  Source<Acc> upstream{};
  Sink<Acc> loss{};

  bool planar() const { return positions.inputs.of_class != 1 || call.classes < kFewClasses; }
};

// Logits of positions in a row, and gradients, between memory and a block.
template <typename Acc>
class Logits {
 public:
  Logits(const Tensor& tensor, const ClassSteps& steps, int64_t classes, bool planar)
      : data_(static_cast<char*>(tensor.data_ptr())),
        size_(static_cast<int64_t>(tensor.element_size())),
        steps_(steps),
        classes_(classes),
        planar_(planar),
        in_place_(!planar && steps.of_class == 1 &&
                  tensor.scalar_type() == torch::headeronly::CppTypeToScalarType<Acc>::value),
        past_caches_(outgrows_caches(tensor.numel() * static_cast<int64_t>(tensor.element_size()))),
        read_(converters<Acc>().read[static_cast<int>(tensor.scalar_type())]),
        write_(converters<Acc>().write[static_cast<int>(tensor.scalar_type())]) {}

  // The lines of n positions: where they lie, if they lie there as they are wanted, otherwise in `to`.
  const Acc* read(int64_t row, int64_t column, int64_t n, Acc* to, int64_t* stride) const {
    const char* from = data_ + offset(row, column) * size_;
    if (in_place_) {
      *stride = steps_.position.column;
      return reinterpret_cast<const Acc*>(from);
    }
    if (!planar_) {
      read_(from, {steps_.position.column, steps_.of_class}, classes_, 0, n * classes_, to);
      return to;
    }
    for (int64_t c = 0; c < classes_; ++c) {
      read_(from + c * steps_.of_class * size_, {0, steps_.position.column}, n, 0, n, to + c * *stride);
    }
    return to;
  }

  void write(int64_t row, int64_t column, int64_t n, const Acc* from, int64_t stride) const {
    const int64_t at = offset(row, column);
    if (planar_) {
      for (int64_t c = 0; c < classes_; ++c) {
        write_(from + c * stride, n, data_, at + c * steps_.of_class, steps_.position.column, past_caches_);
      }
    } else if (steps_.of_class == 1 && steps_.position.column == classes_) {
      write_(from, n * classes_, data_, at, 1, past_caches_);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        write_(from + i * stride, classes_, data_, at + i * steps_.position.column, steps_.of_class, past_caches_);
      }
    }
  }

 private:
  int64_t offset(int64_t row, int64_t column) const {
    return row * steps_.position.row + column * steps_.position.column;
  }

  char* data_;
  int64_t size_;
  ClassSteps steps_;
  int64_t classes_;
  bool planar_;
  bool in_place_;
  bool past_caches_;
  typename ConvertKernels<Acc>::Read read_;
  typename ConvertKernels<Acc>::Write write_;
};

// The sum of the losses.
template <typename Acc>
double run(const Pass<Acc>& pass) {
  const SoftmaxFocalCall& call = pass.call;
  const int64_t classes = call.classes;
  const bool planar = pass.planar(), with_gradient = pass.gradient != nullptr;
  const auto whole = [](int64_t n) { return (n + kRegister - 1) / kRegister * kRegister; };
  // Planar, whole registers of positions; otherwise those too, where there are few classes enough.
  int64_t most = std::min(kMostPositions, kBlock / classes);
  if (planar || most > kRegister) most = std::max(kRegister, most / kRegister * kRegister);
  const Pieces pieces(pass.positions, most, classes);
  const int64_t padded = whole(pieces.most), stride = planar ? padded : classes;

  const Logits<Acc> logits(pass.inputs, pass.positions.inputs, classes, planar);
  const Logits<Acc> slopes(with_gradient ? *pass.gradient : pass.inputs, pass.positions.gradient, classes, planar);
  const auto kernel = (planar ? kernels<Acc>().planar
                              : kernels<Acc>().rows)[static_cast<int>(math::focus_of(call.gamma))][with_gradient];
  auto partial = scratch<double>(pieces.tasks());
  parallel_tasks(pieces.tasks(), pieces.per_task * pieces.most * classes, [&](int64_t first, int64_t last) {
    std::vector<Acc> memory((planar ? classes * padded : pieces.most * classes) + 7 * padded);
    std::vector<int64_t> numbers(padded);
    Acc* const values = memory.data();
    Acc* const targets = values + (planar ? classes * padded : pieces.most * classes);
    Acc *const weights = targets + padded, *const losses = weights + padded, *const upstream = losses + padded;
    for (int64_t task = first; task < last; ++task) {
      double sum = 0;
      pieces.for_each(task, pass.positions, [&](int64_t row, int64_t column, int64_t n) {
        pass.targets.read(row, column, n, numbers.data());
        kernels<Acc>().prepare(numbers.data(), n, call.ignore_index, pass.weights.data(), targets, weights);
        int64_t logits_stride = stride;
        const Acc* const lines = logits.read(row, column, n, values, &logits_stride);
        const int64_t begin = row * pass.positions.columns + column;
        sum += kernel({n, classes, static_cast<Acc>(call.gamma), lines, logits_stride, values, stride, targets, weights,
                       pass.upstream.read(begin, n, upstream), pass.loss.at(begin, losses), upstream + padded});
        pass.loss.write(begin, n, losses);
        if (with_gradient) slopes.write(row, column, n, values, stride);
      });
      partial[task] = sum;
    }
    convert_kernels().fence();
  });
  double sum = 0;
  for (int64_t task = 0; task < pieces.tasks(); ++task) sum += partial[task];
  return sum;
}

// The weight of each class, times `factor`.
template <typename Acc>
std::vector<Acc> class_weights(const SoftmaxFocalCall& call, const std::optional<Tensor>& alpha, double factor) {
  std::vector<Acc> weights(call.classes, static_cast<Acc>(1));
  if (alpha.has_value()) {
    converters<Acc>().read[static_cast<int>(alpha->scalar_type())](alpha->data_ptr(), {0, alpha->stride(0)},
                                                                   call.classes, 0, call.classes, weights.data());
  }
  for (Acc& weight : weights) weight = static_cast<Acc>(weight * (call.scale * factor));
  return weights;
}

// The loss, and its gradient by inputs where it is a mean or a sum and `with_gradient` holds, otherwise an empty
// tensor.
std::tuple<Tensor, Tensor> softmax_focal_loss(const Tensor& inputs, const Tensor& targets,
                                              const std::optional<Tensor>& alpha, double scale, double gamma,
                                              int64_t ignore_index, int64_t reduction, bool with_gradient) {
  const SoftmaxFocalCall call(inputs, targets, alpha, scale, gamma, ignore_index, reduction);
  Tensor loss = call.empty_loss(inputs, targets), gradient = call.empty_gradient(inputs, with_gradient);
  const bool wanted = with_gradient && call.reduces();
  const Positions positions(inputs, targets, wanted ? gradient : inputs, targets);
  const Classes classes(targets, positions);
  const int64_t counted = count_targets(call, positions, classes);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const double factor = call.averages() ? 1.0 / static_cast<double>(counted) : 1.0;
    Pass<Acc> pass{
        call, positions, classes, inputs, wanted ? &gradient : nullptr, class_weights<Acc>(call, alpha, factor)};
    if (!call.reduces()) pass.loss = Sink<Acc>(loss);
    const double sum = run(pass);
    // The mean of nothing is infinity times 0: NaN.
    if (call.reduces()) Sink<Acc>(loss).put(static_cast<Acc>(counted == 0 ? factor * 0 : sum));
  });
  return {loss, gradient};
}

// The gradient by inputs: grad_output, a single number for a mean or a sum, times the derivative.
Tensor softmax_focal_loss_backward(const Tensor& grad_output, const Tensor& inputs, const Tensor& targets,
                                   const std::optional<Tensor>& alpha, double scale, double gamma, int64_t ignore_index,
                                   int64_t reduction) {
  const SoftmaxFocalCall call(inputs, targets, alpha, scale, gamma, ignore_index, reduction);
  call.check_grad_output(grad_output, targets);
  Tensor gradient = torch::stable::empty_like(inputs);
  const Positions positions(inputs, targets, gradient, call.reduces() ? targets : grad_output);
  const Classes classes(targets, positions);
  const int64_t counted = count_targets(call, positions, classes);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    double factor = call.averages() ? 1.0 / static_cast<double>(counted) : 1.0;
    if (call.reduces()) factor *= Source<Acc>(grad_output).get();
    Pass<Acc> pass{call, positions, classes, inputs, &gradient, class_weights<Acc>(call, alpha, factor)};
    if (!call.reduces()) pass.upstream = Source<Acc>(grad_output, positions.upstream, positions.columns);
    run(pass);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("softmax_focal_loss", TORCH_BOX(&softmax_focal_loss));
  m.impl("softmax_focal_loss_backward", TORCH_BOX(&softmax_focal_loss_backward));
}

}  // namespace sod_ops

// The pairwise complete IoU: a box of the first set against a vector of the second; compiled once for each instruction
// set (see capability.h).
#include "complete_box_iou.h"

#include "boxes.h"
// After boxes.h: its templates call the functions for vectors.
#include "../math/complete_box_iou.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::BoxLanes;
using simd::for_each_piece;

template <typename Acc>
using V = at::vec::Vectorized<Acc>;

template <typename Acc>
V<Acc> load(const Acc* from, int64_t count) {
  return count == V<Acc>::size() ? V<Acc>::loadu(from) : V<Acc>::loadu(from, count);
}

template <typename Acc>
void store(const V<Acc>& value, Acc* to, int64_t count) {
  count == V<Acc>::size() ? value.store(to) : value.store(to, static_cast<int>(count));
}

// A box by its fields: all but its size.
template <typename Get>
auto box_of(const Get& field) {
  using T = decltype(field(0));
  math::Box<T> box{{field(0), field(1), field(2), field(3)}};
  box.width = box.x2 - box.x1;
  box.height = box.y2 - box.y1;
  box.area = field(4);
  box.angle = field(5);
  return box;
}

// Box i in every lane.
template <typename Acc>
math::Box<V<Acc>> same_box(const BoxTable<Acc>& table, int64_t i) {
  return box_of([&](int64_t field) { return V<Acc>(table.data[field * table.count + i]); });
}

// Box j and those that follow it.
template <typename Acc>
math::Box<V<Acc>> boxes_from(const BoxTable<Acc>& table, int64_t j, int64_t count) {
  return box_of([&](int64_t field) { return load(table.data + field * table.count + j, count); });
}

template <typename Acc>
void forward(const BoxTable<Acc>& first, const BoxTable<Acc>& second, const PairTile& tile, double eps, Acc* result) {
  const V<Acc> eps_vector(static_cast<Acc>(eps));
  for (int64_t i = tile.first_begin; i < tile.first_end; ++i) {
    const auto a = same_box(first, i);
    Acc* row = result + i * second.count + tile.second_begin;
    for_each_piece<Acc>(tile.second_end - tile.second_begin, [&](int64_t j, auto count) {
      const auto b = boxes_from(second, tile.second_begin + j, count);
      store(math::complete_box_iou<false>(a, b, eps_vector), row + j, count);
    });
  }
}

// What backward() sums up for a box.
template <typename Acc>
struct Sums {
  V<Acc> fields[BoxTable<Acc>::kFields];

  static Sums of(const math::Corners<V<Acc>>& sides, const V<Acc>& area, const V<Acc>& angle) {
    return {{sides.x1, sides.y1, sides.x2, sides.y2, area, angle}};
  }
};

template <bool kFirst, bool kSecond, typename Acc>
void backward_of(const BoxTable<Acc>& first, const BoxTable<Acc>& second, const PairTile& tile, double eps,
                 const Acc* grad, int64_t row_step, int64_t column_step, const BoxTable<Acc>& first_sums,
                 const BoxTable<Acc>& second_sums) {
  constexpr int64_t kFields = BoxTable<Acc>::kFields;
  const V<Acc> eps_vector(static_cast<Acc>(eps));
  if constexpr (kSecond) {
    for (int64_t field = 0; field < kFields; ++field) {
      Acc* sums = second_sums.data + field * second.count;
      std::fill(sums + tile.second_begin, sums + tile.second_end, Acc(0));
    }
  }
  for (int64_t i = tile.first_begin; i < tile.first_end; ++i) {
    const auto a = same_box(first, i);
    const Acc* grad_row = grad + i * row_step;
    Sums<Acc> row;
    for (auto& field : row.fields) field = V<Acc>(0);
    for_each_piece<Acc>(tile.second_end - tile.second_begin, [&](int64_t offset, auto count) {
      const int64_t j = tile.second_begin + offset;
      const auto b = boxes_from(second, j, count);
      const V<Acc> weight = column_step == 0 ? V<Acc>(*grad_row) : load(grad_row + j, count);
      math::PairGradient<V<Acc>> g;
      math::complete_box_iou<true>(a, b, eps_vector, weight, &g);
      if constexpr (kFirst) {
        const auto parts = Sums<Acc>::of(math::sides_gradient<true, V<Acc>>(a, b, g), g.area, g.angle);
        for (int64_t field = 0; field < kFields; ++field) {
          // Lanes beyond the last box hold no pair.
          row.fields[field] = row.fields[field] + V<Acc>::set(V<Acc>(0), parts.fields[field], count);
        }
      }
      if constexpr (kSecond) {
        const auto parts = Sums<Acc>::of(math::sides_gradient<false, V<Acc>>(b, a, g), g.area, -g.angle);
        for (int64_t field = 0; field < kFields; ++field) {
          Acc* sum = second_sums.data + field * second.count + j;
          store(load(sum, count) + parts.fields[field], sum, count);
        }
      }
    });
    if constexpr (kFirst) {
      for (int64_t field = 0; field < kFields; ++field) {
        first_sums.data[field * first.count + i] =
            at::vec::vec_reduce_all<Acc>([](V<Acc> x, V<Acc> y) { return x + y; }, row.fields[field]);
      }
    }
  }
}

template <typename Acc>
void backward(const BoxTable<Acc>& first, const BoxTable<Acc>& second, const PairTile& tile, double eps,
              const Acc* grad, int64_t row_step, int64_t column_step, const BoxTable<Acc>& first_sums,
              const BoxTable<Acc>& second_sums) {
  const auto kernel = first_sums.data == nullptr    ? backward_of<false, true, Acc>
                      : second_sums.data == nullptr ? backward_of<true, false, Acc>
                                                    : backward_of<true, true, Acc>;
  kernel(first, second, tile, eps, grad, row_step, column_step, first_sums, second_sums);
}

template <typename T, typename Acc>
void fill(const T* boxes, int64_t step, int64_t begin, int64_t end, const BoxTable<Acc>& table) {
  for_each_piece<Acc>(end - begin, [&](int64_t offset, auto count) {
    const int64_t i = begin + offset;
    const auto box = math::make_box<true>(BoxLanes<T>::load(boxes + i * step, step, count));
    const V<Acc> fields[] = {box.x1, box.y1, box.x2, box.y2, box.area, box.angle};
    for (int64_t field = 0; field < BoxTable<Acc>::kFields; ++field) {
      store(fields[field], table.data + field * table.count + i, count);
    }
  });
}

template <typename T, typename Acc>
void finish(const BoxTable<Acc>& boxes, const Acc* sums, int64_t tiles, int64_t begin, int64_t end, T* gradient) {
  constexpr int64_t kFields = BoxTable<Acc>::kFields;
  for_each_piece<Acc>(end - begin, [&](int64_t offset, auto count) {
    const int64_t i = begin + offset;
    V<Acc> total[kFields];
    for (int64_t field = 0; field < kFields; ++field) {
      total[field] = V<Acc>(0);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        total[field] = total[field] + load(sums + (tile * kFields + field) * boxes.count + i, count);
      }
    }
    auto box = boxes_from(boxes, i, count);
    box.size = math::squared_size(box.width, box.height);
    const math::Corners<V<Acc>> sides{total[0], total[1], total[2], total[3]};
    BoxLanes<T>::store(math::add_shape_gradient<true>(box, total[4], total[5], sides), gradient + 4 * i, count);
  });
}

template <typename Acc>
constexpr BoxPairKernels<Acc> pairs() {
  return {forward<Acc>, backward<Acc>};
}

template <typename T>
constexpr BoxTableKernels<T, Accumulator<T>> tables() {
  return {fill<T, Accumulator<T>>, finish<T, Accumulator<T>>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const CompleteBoxIouKernels SOD_OPS_THIS_TABLE(complete_box_iou_kernels) = {
    pairs<float>(), pairs<double>(), tables<float>(), tables<double>(), tables<c10::BFloat16>(), tables<c10::Half>()};

}  // namespace sod_ops

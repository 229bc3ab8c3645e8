// Tensors of one shape walked together, without copying those that are slices of others: as rows and columns that each
// lie at a fixed step. sod_ops/_rows.py says the same in Python.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace sod_ops {

// From one row, and from one column, to the next: in elements.
struct Steps {
  int64_t row;
  int64_t column;
};

template <size_t kTensors>
struct Rows {
  int64_t rows;
  int64_t columns;
  Steps steps[kTensors];

  int64_t count() const { return rows * columns; }
};

// Dimensions are taken in the memory order of the first tensor, which is also that of empty_like for it: element i of
// such a result belongs to row i / columns and column i % columns. Nothing where more than two steps are needed, or
// where the first tensor has no such order because it is expanded or overlaps itself.
template <size_t kTensors, typename Sizes, typename Strides>
std::optional<Rows<kTensors>> as_rows(const Sizes& sizes, const Strides (&strides)[kTensors]) {
  std::vector<size_t> order;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return Rows<kTensors>{0, 0, {}};
    if (sizes[d] > 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[0][a] > strides[0][b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t stride = strides[0][order[i]], next = i + 1 < order.size() ? strides[0][order[i + 1]] : 0;
    if (stride == next) return std::nullopt;
  }

  Rows<kTensors> rows{1, 1, {}};
  int groups = 0;
  // From the innermost dimension outwards: into the group before where all steps fit, otherwise a new one.
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    const int64_t length = groups == 2 ? rows.rows : rows.columns;
    bool merges = groups > 0;
    for (size_t t = 0; t < kTensors && merges; ++t) {
      const int64_t step = groups == 2 ? rows.steps[t].row : rows.steps[t].column;
      merges = strides[t][*d] == step * length;
    }
    if (!merges && ++groups == 3) return std::nullopt;
    (groups == 2 ? rows.rows : rows.columns) *= sizes[*d];
    if (merges) continue;
    for (size_t t = 0; t < kTensors; ++t) (groups == 2 ? rows.steps[t].row : rows.steps[t].column) = strides[t][*d];
  }
  return rows;
}

}  // namespace sod_ops

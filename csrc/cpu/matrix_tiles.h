// Samples as matrices in tiles, for kernels that take sums over rows and over columns in one pass.
//
// A sample is a matrix, of channels x pixels where planar, otherwise of pixels x channels. It is cut into tiles, whose
// size depends on the shape alone and with it the order of summation: the result does not change with the number of
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/matrix.h"
#include "maps.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {

struct MatrixTiles {
  static constexpr int64_t kTile = 65536;  // elements

  MapShape map;
  int64_t samples, rows, columns, tile_rows, tile_columns;

  MatrixTiles(int64_t count, const MapShape& shape)
      : map(shape),
        samples(count),
        rows(map.planar ? map.channels : map.pixels),
        columns(map.planar ? map.pixels : map.channels),
        tile_columns(std::clamp<int64_t>(columns, 1, kMatrixColumns)) {
    tile_rows = std::max<int64_t>(1, kTile / tile_columns);
  }

  int64_t down() const { return (rows + tile_rows - 1) / tile_rows; }
  int64_t across() const { return (columns + tile_columns - 1) / tile_columns; }

  struct Tile {
    int64_t sample, i, j;  // which sample, and which tile of it
    int64_t row, column, rows, columns;
  };

  // body(tile) for every one, by all threads.
  template <typename Body>
  void for_each(const Body& body) const {
    parallel_tasks(samples * down() * across(), tile_rows * tile_columns, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t i = t / across() % down(), j = t % across(), row = i * tile_rows, column = j * tile_columns;
        body(Tile{t / across() / down(), i, j, row, column, std::min(tile_rows, rows - row),
                  std::min(tile_columns, columns - column)});
      }
    });
  }

  // A tile of a map.
  template <typename E>
  Matrix<E> matrix(const Samples<E>& maps, const Tile& tile) const {
    return {maps.at(map, tile.sample, map.planar ? tile.row : tile.column, map.planar ? tile.column : tile.row),
            maps.step};
  }

  // Sums over rows are [N, across, rows], those over columns [N, down, columns]: where a tile's begin.
  int64_t row_sum(const Tile& tile) const { return (tile.sample * across() + tile.j) * rows + tile.row; }
  int64_t column_sum(const Tile& tile) const { return (tile.sample * down() + tile.i) * columns + tile.column; }
};

// body(sample, its sums) with the sums [length] over a sample's `parts` of sums [N, parts, length], in their order.
template <typename A, typename Body>
void for_each_sum(const A* sums, int64_t samples, int64_t parts, int64_t length, const Body& body) {
  parallel_tasks(samples, parts * length, [&](int64_t begin, int64_t end) {
    auto total = scratch<A>(length);
    for (int64_t n = begin; n < end; ++n) {
      std::fill(total.get(), total.get() + length, A(0));
      for (int64_t part = 0; part < parts; ++part) {
        const A* some = sums + (n * parts + part) * length;
        for (int64_t i = 0; i < length; ++i) total[i] += some[i];
      }
      body(n, total.get());
    }
  });
}

}  // namespace sod_ops

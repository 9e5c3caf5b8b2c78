// How a batch is cut into blocks that each reduce N, H and W of some of its channels.
//
// In memory a sample is C maps of HW elements. With channels_last every position is a sample of C maps
// of one element: the layouts differ in nothing else.
#pragma once

#include <algorithm>
#include <numeric>

#include "matrix.cuh"

namespace ran::cuda {

// Where a thread's slots lie.
enum class Walk {
  kMaps,   // a block has one channel, and its threads walk over its maps
  kRuns,   // a block has several, whose maps fill a pack at least; two meet in one at most
  kSlots,  // a block has several, with smaller maps
};

// A block is tx packs across, of `group` channels, and ty rows down, and walks down a chunk of rows. A
// row is a sample; of kMaps it is one pack.
struct Batch {
  int64_t rows;
  int64_t stride;  // elements of a sample
  int c;
  int hw;
  int packs;      // of a map
  int64_t width;  // packs of a sample
  int tx;
  int ty;
  int group;
  int tiles;
  int64_t chunk;
  int chunks;
  int per_row;  // elements of a channel in a row
  int log_lanes;

  dim3 grid() const {
    return grid_of(int64_t{tiles} * chunks);
  }
};

// Elements of a channel that a block has at least, so that its part weighs little beside them, and
// packs of a thread; four times as many where there are blocks enough without cutting.
constexpr int64_t kLeastElements = 256;
constexpr int64_t kLeastSteps = 4;
// Packs of a map from which on a block walks over the maps of one channel.
constexpr int64_t kMapPacks = 16;
// Packs across, so that a block reads whole sectors, two side by side.
constexpr int64_t kLeastAcross = 4;
constexpr int64_t kMostAcross = 64;

// How packs of V lie in the batch.
struct Packing {
  int64_t n;
  int64_t c;
  int64_t hw;
  int64_t fold;   // maps that are whole packs together
  int64_t packs;  // of them

  Packing(const FeatureShape& s, int64_t V)
      : n(s.channels_last ? s.n * s.hw : s.n),
        c(s.c),
        hw(s.channels_last ? 1 : s.hw),
        fold(V / std::gcd(V, hw)),
        packs(hw * fold / V) {}

  bool maps() const {
    return fold == 1 && packs >= kMapPacks;
  }
  bool fits() const {
    return maps() || (c % fold == 0 && packs <= kThreads);
  }
};

// Cuts the rows into chunks of whole steps of a block, each of `step` rows.
inline void cut(Batch& g, int64_t step) {
  const int64_t steps = ceil_div(g.rows, step);
  const int64_t busy = g.tiles < kOneWave ? kLeastSteps : 4 * kLeastSteps;
  const int64_t least = std::max(busy, ceil_div(kLeastElements, step * g.per_row));
  const int64_t most = std::max<int64_t>(1, steps / least);
  const int64_t chunks =
      std::max(std::min(most, pieces_for(g.tiles)), ceil_div(steps, kMostSteps));
  g.chunk = ceil_div(steps, chunks) * step;
  g.chunks = static_cast<int>(ceil_div(g.rows, g.chunk));
}

inline Batch batch_of(const Packing& p, int64_t V) {
  Batch g{};
  g.stride = p.c * p.hw;
  g.c = static_cast<int>(p.c);
  g.hw = static_cast<int>(p.hw);
  if (p.maps()) {
    g.rows = p.n * p.packs;
    g.packs = static_cast<int>(p.packs);
    g.tx = kThreads;
    g.ty = 1;
    g.group = 1;
    g.tiles = g.c;
    g.per_row = static_cast<int>(V);
  } else {
    g.rows = p.n;
    g.width = g.stride / V;
    g.per_row = g.hw;
    // The widest tiles that are enough blocks, with as many chunks as there may be.
    const int64_t folds = p.c / p.fold;
    const int64_t least = std::min(folds, ceil_div(kLeastAcross, p.packs));
    const int64_t chunks = std::max<int64_t>(1, p.n * p.hw / kLeastElements);
    const int64_t across = p.packs < kLeastAcross ? kMostAcross : kThreads;
    int64_t together = std::max(least, std::min(folds, across / p.packs));
    while (together > least && ceil_div(folds, together) * chunks < kOneWave) {
      together = std::max(least, together / 2);
    }
    g.tiles = static_cast<int>(ceil_div(folds, together));
    together = ceil_div(folds, g.tiles);
    g.tiles = static_cast<int>(ceil_div(folds, together));
    g.group = static_cast<int>(together * p.fold);
    g.tx = static_cast<int>(together * p.packs);
    g.ty = static_cast<int>(std::min<int64_t>(kThreads / g.tx, g.rows));
  }
  cut(g, p.maps() ? kThreads : g.ty);
  g.log_lanes = log_lanes_for(kThreads / g.group);
  return g;
}

}  // namespace ran::cuda

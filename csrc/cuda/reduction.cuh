// Sends a reduction to the kernel for its layout, and says how large a workspace either needs.
#pragma once

#include "reduce_columns.cuh"
#include "reduce_rows.cuh"

namespace ran::cuda {

// With channels_last a row is a position and a column a channel.
inline bool along_rows(const FeatureShape& shape, bool over_channels) {
  return shape.channels_last == over_channels;
}

template <typename Op>
int reduce(const Op& op, const FeatureShape& shape, bool packed, void* workspace, void* stream) {
  const Matrix m = matrix_of(shape);
  const auto s = static_cast<cudaStream_t>(stream);
  return along_rows(shape, Op::kOverChannels) ? reduce_rows(op, m, packed, workspace, s)
                                              : reduce_columns(op, m, packed, workspace, s);
}

// Enough for packs and for single elements: the pointers decide between them, unknown here.
template <typename Op>
int64_t workspace_of(const FeatureShape& shape) {
  const Matrix m = matrix_of(shape);
  const bool rows = along_rows(shape, Op::kOverChannels);
  int64_t most = 0;
  for (const int V : {kPack<typename Op::T>, 1}) {
    if (rows ? m.cols % V == 0 : packs_in_bands(m, V)) {
      const Parts parts = rows ? parts_of(m, rows_of<Op>(m, V))
                               : parts_of(m, reduced_columns_of(m, V));
      most = std::max(most, parts.needed() ? parts.count() : 0);
    }
  }
  return most * static_cast<int64_t>(sizeof(typename Op::Acc));
}

template <template <typename> class Op>
int64_t workspace_of(DType dtype, const FeatureShape& shape) {
  int64_t bytes = 0;
  dispatch(dtype, [&](auto tag) {
    bytes = workspace_of<Op<typename decltype(tag)::type>>(shape);
  });
  return bytes;
}

}  // namespace ran::cuda

// Where the heads' rows lie, for region_attention and cross_attention on CPU and GPU alike.
//
// Queries, keys and values are rows of C = heads·size numbers; head h owns the columns from h·size. Rows may lie anywhere:
// a sequence is `batch` numbers after the one before, a row `row` numbers, so that slices of a packed projection or of the
// regions' buffer are read in place.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace avfmae {

struct Rows {
  int64_t batch, row;  // strides, in numbers
  int64_t first = 0;   // column of head 0

  AVFMAE_HD int64_t at(int64_t b, int64_t r, int h, int size) const { return b * batch + r * row + first + h * size; }
};

struct Attention {
  int64_t batches;
  int queries, keys, heads, size;
  float scale;                      // size^-1/2
  Rows q, k, v;                     // inputs
  Rows out;                         // (batches, queries, C), contiguous; grad lies the same way
  Rows dq, dk, dv;                  // gradients, contiguous, packed as the inputs are

  AVFMAE_HD int64_t tasks() const { return batches * heads; }
};

}  // namespace avfmae

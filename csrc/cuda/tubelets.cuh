// Where the pixels of a tubelet lie, for kernels. What can be worked out before a launch is, and no thread divides by a number
// that the compiler does not know: that takes tens of instructions in 32 bits, and about a hundred in 64.
#pragma once

#include <torch/csrc/stable/library.h>

#include <limits>

#include "common/boxes.h"
#include "cuda/device.cuh"

namespace avfmae {

// n / by for 0 <= n < 2^31 as a product and a shift (Granlund and Montgomery, 1994).
struct Divisor {
  int by, shift = 31;
  uint32_t inverse;  // 2^shift / by, rounded up

  explicit Divisor(int64_t by) : by(static_cast<int>(by)) {
    while ((int64_t{1} << (shift - 31)) < by) ++shift;
    inverse = static_cast<uint32_t>(((uint64_t{1} << shift) + by - 1) / by);
  }
  __device__ int quotient(int n) const { return static_cast<int>((uint64_t{static_cast<uint32_t>(n)} * inverse) >> shift); }
};

// Of a pixel in the clip that the model sees.
struct Place {
  int t, y, x;
};

struct Tubelets {
  PatchGrid grid;
  int64_t tokens;
  Divisor columns, rows;  // tokens side by side, and one below the other
  Divisor height, width;  // of a tubelet, in pixels

  Tubelets(const PatchGrid& grid, const Boxes& boxes)
      : grid(grid), tokens(grid.tokens()), columns(grid.W / grid.pw), rows(grid.H / grid.ph), height(grid.ph), width(grid.pw) {
    const int64_t stored = boxes.data ? boxes.stored_clip(grid.T) : grid.clip_size();
    STD_TORCH_CHECK(stored <= std::numeric_limits<int>::max(), "a clip of ", stored, " numbers is more than the CUDA kernels count (2^31)");
  }

  __device__ bool contain(int64_t token) const { return token >= 0 && token < tokens; }

  // Of the tubelet's first pixel.
  __device__ Place first(int token) const {
    const int line = columns.quotient(token), t = rows.quotient(line);
    return {t * grid.pt, (line - t * rows.by) * height.by, (token - line * columns.by) * width.by};
  }

  // Of pixel p, in the order time, row, column, of the tubelet that begins at `first`.
  __device__ Place pixel(const Place& first, int p) const {
    const int line = width.quotient(p), dt = height.quotient(line);
    return {first.t + dt, first.y + line - dt * height.by, first.x + p - line * width.by};
  }

  // Offset of a pixel's first number in a clip that is read as it is.
  __device__ int offset(const Place& at) const {
    return ((at.t * static_cast<int>(grid.H) + at.y) * static_cast<int>(grid.W) + at.x) * grid.channels;
  }
};

}  // namespace avfmae

// A tubelet of a cropped clip on the CPU: rows first, then columns, in memory that stays in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "common/crop.h"
#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace avfmae {
namespace {  // the clones of a function belong to one file

AVFMAE_INLINE Vector to_range(const Vector& x) { return x < 0.0f ? Vector{} : x > 255.0f ? Vector{} + 255.0f : x; }

class CroppedTubelet {
 public:
  explicit CroppedTubelet(const PatchGrid& grid) : grid_(grid), tile_(grid.row()), weights_x_(), weights_y_() {}

  // The tubelet of a token as grid_.tile() lays it out, numbers 0 to 255.
  const float* operator()(const uint8_t* clip, const Crop& crop, int64_t token) {
    const int64_t columns = grid_.W / grid_.pw, rows = grid_.H / grid_.ph;
    const int64_t x = token % columns, y = token / columns % rows, t = token / (columns * rows);
    taps(crop.x, x * grid_.pw, grid_.pw, first_x_, weights_x_, taps_x_);
    taps(crop.y, y * grid_.ph, grid_.ph, first_y_, weights_y_, taps_y_);
    const int64_t line = static_cast<int64_t>(crop.x.size) * kChannels;
    for (int dt = 0; dt < grid_.pt; ++dt)
      resample(clip + (t * grid_.pt + dt) * crop.y.size * line, line, tile_.data() + dt * grid_.ph * grid_.pw * kChannels);
    return tile_.data();
  }

 private:
  // The first pixel and the weights, `count` for each, of `places` places from `begin` on.
  static void taps(const CropAxis& axis, int64_t begin, int places, std::vector<int>& first, std::vector<float>& weights,
                   int& count) {
    count = std::min(axis.size, static_cast<int>(2 * axis.width) + 2);
    first.resize(places);
    weights.assign(places * count, 0.0f);
    for (int i = 0; i < places; ++i) {
      const float c = axis.centre(begin + i);
      const int low = axis.first(c), high = axis.last(c);
      first[i] = std::min(low, axis.size - count);
      float sum = 0;
      for (int k = low; k < high; ++k) sum += axis.weight(c, k);
      for (int k = low; k < high; ++k) weights[i * count + k - first[i]] = axis.weight(c, k) / sum;
    }
  }

  void resample(const uint8_t* frame, int64_t line, float* out) {
    const int width = grid_.pw * kChannels, stride = padded(width);
    const auto [lowest_x, highest_x] = std::minmax_element(first_x_.begin(), first_x_.end());
    const auto [lowest_y, highest_y] = std::minmax_element(first_y_.begin(), first_y_.end());
    const int left = *lowest_x, top = *lowest_y, lines = *highest_y + taps_y_ - top, stored = (*highest_x + taps_x_ - left) * kChannels;
    turned_.resize(padded(stored) * kBlock), squeezed_.resize(stride * kBlock), lines_.resize(padded(lines) * stride);
    for (int l = 0; l < lines; l += kBlock)
      squeeze(frame + (top + l) * line + left * kChannels, line, std::min(kBlock, lines - l), left, stored, lines_.data() + l * stride);
    for (int i = 0; i < grid_.ph; ++i) stack(lines_.data() + (first_y_[i] - top) * stride, &weights_y_[i * taps_y_], out + i * width);
  }

  // As many stored lines as a vector has numbers, at the places' columns. They lie side by side in vectors meanwhile, so that a place's columns need no gathering.
  void squeeze(const uint8_t* from, int64_t line, int count, int left, int stored, float* out) {
    for (int i = 0; i < stored; i += kBlock) {
      Vector x[kBlock];
      for (int l = 0; l < kBlock; ++l) x[l] = vector_of(from + std::min(l, count - 1) * line + i, stored - i);
      transpose(x);
      for (int k = 0; k < kBlock; ++k) vector_at(turned_.data() + (i + k) * kBlock) = x[k];
    }
    for (int i = 0; i < grid_.pw; ++i) {
      const float *column = turned_.data() + (first_x_[i] - left) * kChannels * kBlock, *weight = &weights_x_[i * taps_x_];
      for (int c = 0; c < kChannels; ++c) {
        Vector sum{};
        for (int k = 0; k < taps_x_; ++k) sum += weight[k] * vector_at(column + (k * kChannels + c) * kBlock);
        vector_at(squeezed_.data() + (i * kChannels + c) * kBlock) = to_range(sum);  // a cubic overshoots
      }
    }
    transpose(squeezed_.data(), out, padded(grid_.pw * kChannels), kBlock);
  }

  void stack(const float* lines, const float* weight, float* out) const {
    const int width = grid_.pw * kChannels, stride = padded(width);
    for_vectors(width, [&](int i, int n) {
      Vector sum{};
      for (int k = 0; k < taps_y_; ++k) sum += weight[k] * vector_at(lines + k * stride + i);
      sum = to_range(sum) + kHalf;  // to_level
      Numbers(out).put(i, __builtin_convertvector(__builtin_convertvector(sum, Lanes), Vector), n);
    });
  }

  PatchGrid grid_;
  std::vector<float> tile_, turned_, squeezed_, lines_, weights_x_, weights_y_;
  std::vector<int> first_x_, first_y_;
  int taps_x_ = 0, taps_y_ = 0;
};

}  // namespace
}  // namespace avfmae

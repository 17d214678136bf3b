// A tubelet of a cropped clip on the CPU: rows first, then columns, in memory that stays in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "common/crop.h"
#include "cpu/simd.h"

namespace avfmae {
namespace {  // the clones of a function belong to one file

inline float level_range(float x) { return std::min(std::max(x, 0.0f), 255.0f); }

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
    const int width = grid_.pw * kChannels;
    const auto [lowest, highest] = std::minmax_element(first_y_.begin(), first_y_.end());
    const int top = *lowest, bottom = *highest + taps_y_;
    squeezed_.resize((bottom - top) * width);
    for (int k = top; k < bottom; ++k) squeeze(frame + k * line, squeezed_.data() + (k - top) * width);
    for (int i = 0; i < grid_.ph; ++i) stack(squeezed_.data() + (first_y_[i] - top) * width, &weights_y_[i * taps_y_], out + i * width);
  }

  // A stored line at the places' columns.
  AVFMAE_CLONES void squeeze(const uint8_t* line, float* out) const {
    for (int i = 0; i < grid_.pw; ++i) {
      const uint8_t* pixel = line + first_x_[i] * kChannels;
      const float* weight = &weights_x_[i * taps_x_];
      float sum[kChannels] = {};
      for (int k = 0; k < taps_x_; ++k)
        for (int c = 0; c < kChannels; ++c) sum[c] += weight[k] * static_cast<float>(pixel[k * kChannels + c]);
      for (int c = 0; c < kChannels; ++c) out[i * kChannels + c] = level_range(sum[c]);  // a cubic overshoots
    }
  }

  AVFMAE_CLONES void stack(const float* lines, const float* weight, float* out) const {
    const int width = grid_.pw * kChannels;
    for (int i = 0; i < width; ++i) out[i] = weight[0] * lines[i];
    for (int k = 1; k < taps_y_; ++k)
      for (int i = 0; i < width; ++i) out[i] += weight[k] * lines[k * width + i];
    for (int i = 0; i < width; ++i) out[i] = to_level(level_range(out[i]));
  }

  PatchGrid grid_;
  std::vector<float> tile_, squeezed_, weights_x_, weights_y_;
  std::vector<int> first_x_, first_y_;
  int taps_x_ = 0, taps_y_ = 0;
};

}  // namespace
}  // namespace avfmae

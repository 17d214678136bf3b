// A clip of stored frames seen through a box, at the size that the model looks at: the filter of a bilinear or bicubic
// resize, as wide as a step of the output where that shrinks, so that nothing aliases (Pillow's resize with a box).
//
// Output place i of an axis lies at c = begin + (i + 1/2)·step of the stored frame, whose pixel k is at k + 1/2. With
// s = max(1, |step|) the pixels have the filter's weights at |k + 1/2 - c| / s, divided by their sum. The mean is
// rounded to a level, as a clip that was cropped and stored would be.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/patches.h"

namespace avfmae {

// A little more than a half: means that lie half-way, which boxes of simple proportions give often, go up whatever the
// order in which they were added up.
constexpr float kHalf = 0.501f;

AVFMAE_HD float to_level(float mean) { return floorf(mean + kHalf); }

struct CropAxis {
  float begin, step, scale, width;  // the filter reaches `width` to both sides
  int size;                         // pixels of the stored frame
  bool cubic;

  AVFMAE_HD float centre(int64_t place) const { return begin + (static_cast<float>(place) + 0.5f) * step; }
  AVFMAE_HD int first(float c) const {
    const int k = static_cast<int>(c - width + 0.5f);
    return k < 0 ? 0 : k;
  }
  AVFMAE_HD int last(float c) const {  // one past
    const int k = static_cast<int>(c + width + 0.5f);
    return k > size ? size : k;
  }
  AVFMAE_HD float weight(float c, int k) const {
    const float x = fabsf(static_cast<float>(k) + 0.5f - c) / scale;
    if (!cubic) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5f * x - 2.5f) * x * x + 1;  // Keys, a = -1/2
    return x < 2 ? ((2.5f - 0.5f * x) * x - 4) * x + 2 : 0;
  }
};

// One clip's box (left, top, right, bottom) on stored frames of H x W.
struct Crop {
  CropAxis y, x;

  AVFMAE_HD Crop(const float* box, int64_t stored_h, int64_t stored_w, const PatchGrid& grid, bool cubic = false)
      : y(axis(box[1], box[3], stored_h, grid.H, cubic)), x(axis(box[0], box[2], stored_w, grid.W, cubic)) {}

  AVFMAE_HD static CropAxis axis(float begin, float end, int64_t stored, int64_t places, bool cubic) {
    const float step = (end - begin) / static_cast<float>(places), scale = fabsf(step) > 1 ? fabsf(step) : 1;
    return {begin, step, scale, cubic ? 2 * scale : scale, static_cast<int>(stored), cubic};
  }
};

}  // namespace avfmae

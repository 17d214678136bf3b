// A clip of stored frames seen through a box, at the size that the model looks at: the triangle filter of a bilinear
// resize, as wide as a step of the output where that shrinks, so that nothing aliases (Pillow's resize with a box).
//
// Output place i of an axis lies at c = begin + (i + 1/2)·step of the stored frame, whose pixel k is at k + 1/2. With
// w = max(1, step) the pixels within w of c have the weights 1 - |k + 1/2 - c| / w, divided by their sum. The mean is
// rounded to a level, as a clip that was cropped and stored would be.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/patches.h"

namespace avfmae {

// A little more than a half: means that lie half-way, which boxes of simple proportions give often, go up whatever the
// order in which they were added up.
AVFMAE_HD float to_level(float mean) { return floorf(mean + 0.501f); }

struct CropAxis {
  float begin, step, width;
  int size;  // pixels of the stored frame

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
    const float distance = fabsf(static_cast<float>(k) + 0.5f - c) / width;
    return distance < 1 ? 1 - distance : 0;
  }
};

// One clip's box (left, top, right, bottom) on stored frames of H x W.
struct Crop {
  CropAxis y, x;

  AVFMAE_HD Crop(const float* box, int64_t stored_h, int64_t stored_w, const PatchGrid& grid)
      : y(axis(box[1], box[3], stored_h, grid.H)), x(axis(box[0], box[2], stored_w, grid.W)) {}

  AVFMAE_HD static CropAxis axis(float begin, float end, int64_t stored, int64_t places) {
    const float step = (end - begin) / static_cast<float>(places);
    return {begin, step, step > 1 ? step : 1, static_cast<int>(stored)};
  }
};

}  // namespace avfmae

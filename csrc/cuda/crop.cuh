// A pixel of a cropped clip on the GPU, straight from the stored frames: a few neighbours, which the cache has.
#pragma once

#include "cuda/tubelets.cuh"

namespace avfmae {

// The channels, 0 to 255, of the pixel at a place of the clip that the crop shows.
__device__ __forceinline__ void cropped_pixel(const uint8_t* __restrict__ clip, const Crop& crop, const Place& at, float (&out)[kChannels]) {
  const float cx = crop.x.centre(at.x), cy = crop.y.centre(at.y);
  const int left = crop.x.first(cx), right = crop.x.last(cx), top = crop.y.first(cy), bottom = crop.y.last(cy);
  float total = 0;
  for (int c = 0; c < kChannels; ++c) out[c] = 0;
  for (int i = top; i < bottom; ++i) {
    const uint8_t* line = clip + (at.t * crop.y.size + i) * crop.x.size * kChannels;
    const float wy = crop.y.weight(cy, i);
    for (int k = left; k < right; ++k) {
      const float w = wy * crop.x.weight(cx, k);
      total += w;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) out[c] += w * static_cast<float>(line[k * kChannels + c]);
    }
  }
  for (int c = 0; c < kChannels; ++c) out[c] = to_level(out[c] / total);
}

}  // namespace avfmae

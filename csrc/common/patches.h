// Where a tubelet lies in a clip, and where a number of its embedding row comes from.
//
// A clip is (T, H, W, channels), channels last; a spectrogram is a clip of one frame and one channel. It is cut into
// tubelets of pt x ph x pw pixels; a *token* is the flat index of a tubelet in raster order (time, then rows, then
// columns). The numbers of a tubelet in the order (time, row, column, channel) are pt·ph *lines* of neighbouring
// numbers; the embedding row of a token lists them as a convolution's weight does: (channel, time, row, column).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace avfmae {

constexpr int kChannels = 3;

struct PatchGrid {
  int64_t T, H, W;  // clip, in pixels
  int pt, ph, pw;   // tubelet, in pixels
  int channels = kChannels;

  AVFMAE_HD int64_t clip_size() const { return T * H * W * channels; }  // numbers
  AVFMAE_HD int64_t tokens() const { return (T / pt) * (H / ph) * (W / pw); }
  AVFMAE_HD int pixels() const { return pt * ph * pw; }  // per channel
  AVFMAE_HD int row() const { return channels * pixels(); }
  AVFMAE_HD bool contains(int64_t token) const { return token >= 0 && token < tokens(); }

  // Offset of the tubelet's first number inside its clip.
  AVFMAE_HD int64_t origin(int64_t token) const {
    const int64_t columns = W / pw, rows = H / ph;
    const int64_t x = token % columns, y = token / columns % rows, t = token / (columns * rows);
    return ((t * pt * H + y * ph) * W + x * pw) * channels;
  }

  // A tubelet by itself, as a clip of one.
  AVFMAE_HD PatchGrid tile() const { return {pt, ph, pw, pt, ph, pw, channels}; }

  // Offset of a tubelet's line (time dt, row dy) from its first number.
  AVFMAE_HD int64_t line(int dt, int dy) const { return (dt * H + dy) * W * channels; }
};

// (x/255 - mean)/std as one multiply-add.
struct Normalise {
  float scale[kChannels], shift[kChannels];

  AVFMAE_HD float operator()(float value, int channel) const { return value * scale[channel] + shift[channel]; }
};

inline Normalise make_normalise(const double* mean, const double* std) {
  Normalise n;
  for (int c = 0; c < kChannels; ++c) {
    n.scale[c] = static_cast<float>(1.0 / (255.0 * std[c]));
    n.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  return n;
}

}  // namespace avfmae

// What the CPU and the CUDA entries of masked_patch_loss share: the checks and the grid.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "common/boxes.h"

namespace avfmae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kEps = 1e-6f;  // beside the standard deviation of pixels scaled to 0..1

struct MaskedPatchLoss {
  PatchGrid grid;
  int64_t rows_per_clip, rows;
  bool bytes;  // uint8 pixels, or float32 numbers
  Boxes boxes;

  // Beside the standard deviation: bytes are standardised as they are, 255 times as large.
  float eps() const { return bytes ? 255 * kEps : kEps; }

  // Shared memory for a tubelet.
  size_t tile_bytes() const { return grid.row() * sizeof(float); }

  // The public Python function has checked everything with better words; these guard callers of the bare op.
  MaskedPatchLoss(const Tensor& pred, const Tensor& source, const Tensor& index, const Tensor& scored,
                  const std::vector<int64_t>& patch, const std::optional<Tensor>& crop, const std::vector<int64_t>& size)
      : boxes(source, crop, size) {
    const bool clip = source.dim() == 5;
    STD_TORCH_CHECK(source.is_contiguous() && (clip ? patch.size() == 3 : source.dim() == 4 && patch.size() == 2),
                    "masked_patch_loss: source must be contiguous (B, T, H, W, C) or (B, 1, frames, mels)");
    bytes = source.scalar_type() == ScalarType::Byte;
    STD_TORCH_CHECK(bytes || source.scalar_type() == ScalarType::Float, "masked_patch_loss: source must be uint8 or float32");
    const auto side = [&](int i) { return static_cast<int>(patch[i]); };
    STD_TORCH_CHECK(bytes || !boxes.data, "masked_patch_loss: boxes are for uint8 clips");
    grid = clip ? PatchGrid{source.size(1), boxes.height, boxes.width, side(0), side(1), side(2),
                            static_cast<int>(source.size(4))}
                : PatchGrid{1, source.size(2), source.size(3), 1, side(0), side(1), 1};
    STD_TORCH_CHECK(grid.channels == 1 || grid.channels == kChannels, "masked_patch_loss: 1 or 3 channels");
    STD_TORCH_CHECK(index.dim() == 2 && index.scalar_type() == ScalarType::Long && index.is_contiguous() &&
                        scored.scalar_type() == ScalarType::Bool && scored.is_contiguous() && scored.numel() == index.numel(),
                    "masked_patch_loss: index must be contiguous int64 (B, N), scored contiguous bool (B, N)");
    rows_per_clip = index.size(1);
    rows = index.numel();
    STD_TORCH_CHECK(pred.dim() == 3 && pred.is_contiguous() && pred.size(1) == rows_per_clip && pred.size(2) == grid.row(),
                    "masked_patch_loss: pred must be contiguous (B, N, numbers of a patch)");
  }
};

}  // namespace avfmae

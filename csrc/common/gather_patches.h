// What the CPU and the CUDA entry of gather_patches share: the checks, the grid and the output.
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

struct GatherPatches {
  PatchGrid grid;
  Normalise normalise;
  Boxes boxes;
  int64_t rows_per_clip, rows;
  Tensor out;

  // The public Python function has checked everything with better words; these guard callers of the bare op.
  GatherPatches(const Tensor& video, const Tensor& index, const std::vector<int64_t>& patch,
                const std::vector<double>& mean, const std::vector<double>& std, ScalarType dtype,
                const std::optional<Tensor>& crop, const std::vector<int64_t>& size) : boxes(video, crop, size) {
    STD_TORCH_CHECK(video.dim() == 5 && video.size(4) == kChannels && video.scalar_type() == ScalarType::Byte &&
                        video.is_contiguous(),
                    "gather_patches: video must be contiguous uint8 (B, T, H, W, 3)");
    STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == video.size(0) && index.scalar_type() == ScalarType::Long &&
                        index.is_contiguous(),
                    "gather_patches: index must be contiguous int64 (B, N)");
    STD_TORCH_CHECK(patch.size() == 3 && mean.size() == kChannels && std.size() == kChannels,
                    "gather_patches: patch, mean and std need three values each");
    grid = {video.size(1), boxes.height, boxes.width,
            static_cast<int>(patch[0]), static_cast<int>(patch[1]), static_cast<int>(patch[2])};
    normalise = make_normalise(mean.data(), std.data());
    rows_per_clip = index.size(1);
    rows = index.size(0) * rows_per_clip;
    out = torch::stable::new_empty(video, {index.size(0), rows_per_clip, grid.row()}, dtype);
  }
};

}  // namespace avfmae

// gather_patches on the CPU: one row per iteration, rows spread over all cores.
#include "common/gather_patches.h"
#include "cpu/crop.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace avfmae {
namespace {

template <typename In, typename Out>
AVFMAE_CLONES void gather_row(const In* tubelet, Out* row, const PatchGrid& grid, const Normalise& normalise) {
  const int pixels = grid.pixels();
  Out* line = row;
  for (int dt = 0; dt < grid.pt; ++dt) {
    for (int dy = 0; dy < grid.ph; ++dy, line += grid.pw) {
      const In* source = tubelet + grid.line(dt, dy);
      for (int c = 0; c < kChannels; ++c) {
        for (int dx = 0; dx < grid.pw; ++dx) {
          line[c * pixels + dx] = static_cast<Out>(normalise(static_cast<float>(source[dx * kChannels + c]), c));
        }
      }
    }
  }
}

template <typename Out>
void gather_rows(const GatherPatches& op, const uint8_t* video, const int64_t* index) {
  Out* out = static_cast<Out*>(op.out.mutable_data_ptr());
  torch::stable::parallel_for(0, op.rows, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    CroppedTubelet cropped(op.grid);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / op.rows_per_clip;
      Out* row = out + r * op.grid.row();
      if (op.boxes.data) {
        const Crop crop(op.boxes.data + 4 * b, op.boxes.stored_height, op.boxes.stored_width, op.grid);
        gather_row(cropped(video + b * op.boxes.stored_clip(op.grid.T), crop, index[r]), row, op.grid.tile(), op.normalise);
      } else {
        gather_row(video + b * op.grid.clip_size() + op.grid.origin(index[r]), row, op.grid, op.normalise);
      }
    }
  });
}

Tensor gather_patches(const Tensor& video, const Tensor& index, std::vector<int64_t> patch, std::vector<double> mean,
                      std::vector<double> std, ScalarType dtype, std::optional<Tensor> boxes, std::vector<int64_t> size) {
  const GatherPatches op(video, index, patch, mean, std, dtype, boxes, size);
  const auto* bytes = static_cast<const uint8_t*>(video.const_data_ptr());
  const auto* tokens = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t r = 0; r < op.rows; ++r) {
    STD_TORCH_CHECK(op.grid.contains(tokens[r]), "gather_patches: index holds ", tokens[r], ", expected 0 to ",
                    op.grid.tokens() - 1);
  }
  switch (dtype) {
    case ScalarType::Float: gather_rows<float>(op, bytes, tokens); break;
    case ScalarType::BFloat16: gather_rows<c10::BFloat16>(op, bytes, tokens); break;
    case ScalarType::Half: gather_rows<c10::Half>(op, bytes, tokens); break;
    default: STD_TORCH_CHECK(false, "gather_patches: dtype must be float32, bfloat16 or float16");
  }
  return op.out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) { m.impl("gather_patches", TORCH_BOX(&avfmae::gather_patches)); }

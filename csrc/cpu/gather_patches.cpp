// gather_patches on the CPU: one row per iteration, rows spread over all cores.
#include "common/gather_patches.h"
#include "cpu/crop.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace avfmae {
namespace {

// Writes a tubelet's embedding row from number `first` of `out` on. line and plane: memory for a line of pixels, and for one channel of it.
template <typename In>
void gather_row(const In* tubelet, const Numbers& out, int64_t first, const PatchGrid& grid, const Normalise& normalise,
                float* line, float* plane) {
  for (int dt = 0; dt < grid.pt; ++dt)
    for (int dy = 0; dy < grid.ph; ++dy, first += grid.pw) {
      const In* source = tubelet + grid.line(dt, dy);
      for_vectors(grid.pw * kChannels, [&](int i, int n) { Numbers(line).put(i, vector_of(source + i, n), n); });
      for (int c = 0; c < kChannels; ++c) {
        for (int dx = 0; dx < grid.pw; ++dx) plane[dx] = normalise(line[dx * kChannels + c], c);
        out.store(first + c * grid.pixels(), plane, grid.pw);
      }
    }
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
  const Numbers out(op.out);
  torch::stable::parallel_for(0, op.rows, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    CroppedTubelet cropped(op.grid);
    std::vector<float> line(op.grid.pw * kChannels), plane(op.grid.pw);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / op.rows_per_clip, first = r * op.grid.row();
      if (op.boxes.data) {
        const Crop crop(op.boxes.data + 4 * b, op.boxes.stored_height, op.boxes.stored_width, op.grid);
        const float* tubelet = cropped(bytes + b * op.boxes.stored_clip(op.grid.T), crop, tokens[r]);
        gather_row(tubelet, out, first, op.grid.tile(), op.normalise, line.data(), plane.data());
      } else {
        gather_row(bytes + b * op.grid.clip_size() + op.grid.origin(tokens[r]), out, first, op.grid, op.normalise, line.data(), plane.data());
      }
    }
  });
  return op.out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) { m.impl("gather_patches", TORCH_BOX(&avfmae::gather_patches)); }

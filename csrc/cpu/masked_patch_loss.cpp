// masked_patch_loss on the CPU: a token's target lives in one cache-resident row and is gone with it.
#include "common/masked_patch_loss.h"
#include "cpu/crop.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace avfmae {
namespace {

// Several partial sums, so that the compiler can vectorise a reduction without reordering anything behind our back.
constexpr int kLanes = 16;

// One tubelet's numbers in the order of its lines (time, row, column, channel), and per-channel statistics repeated over
// a line, so that every inner loop runs over neighbouring numbers.
struct Row {
  std::vector<float> target, mean, inverse;

  explicit Row(const PatchGrid& grid)
      : target(grid.row()), mean(grid.pw * grid.channels), inverse(grid.pw * grid.channels) {}
};

// Replaces each number of a line by its channel's sum over the line, times scale.
void fold(std::vector<float>& line, int channels, double scale) {
  double sum[kChannels] = {};
  for (size_t i = 0; i < line.size(); ++i) sum[i % channels] += line[i];
  for (size_t i = 0; i < line.size(); ++i) line[i] = static_cast<float>(sum[i % channels] * scale);
}

// row.target becomes the standardised frame-difference target of a tubelet.
template <typename In>
AVFMAE_CLONES void standardise(const In* tubelet, const PatchGrid& grid, float eps, Row& row) {
  const int line = grid.pw * grid.channels, lines = grid.pt * grid.ph, n = grid.pixels();
  float *x = row.target.data(), *mean = row.mean.data(), *inverse = row.inverse.data();
  std::fill_n(mean, line, 0.0f);
  std::fill_n(inverse, line, 0.0f);
  for (int l = 0; l < lines; ++l) {
    const In* in = tubelet + grid.line(l / grid.ph, l % grid.ph);
    for (int i = 0; i < line; ++i) mean[i] += x[l * line + i] = static_cast<float>(in[i]);
  }
  fold(row.mean, grid.channels, 1.0 / n);
  for (int l = 0; l < lines; ++l)
    for (int i = 0; i < line; ++i) inverse[i] += (x[l * line + i] - mean[i]) * (x[l * line + i] - mean[i]);
  fold(row.inverse, grid.channels, 1.0 / (n - 1));
  for (int i = 0; i < line; ++i) inverse[i] = 1 / (std::sqrt(inverse[i]) + eps);
  for (int l = lines - 1; l >= 0; --l) {  // later frames first: each is replaced by its difference to the one before
    const float* before = l < grid.ph ? mean : x + (l - grid.ph) * line;
    for (int i = 0; i < line; ++i) x[l * line + i] = (x[l * line + i] - before[i]) * inverse[i];
  }
}

template <typename Pred>
AVFMAE_CLONES float square_error(const Pred* pred, const float* target, int size) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const float d = static_cast<float>(pred[i + k]) - target[i + k];
      lanes[k] += d * d;
    }
  for (; i < size; ++i) {
    const float d = static_cast<float>(pred[i]) - target[i];
    lanes[0] += d * d;
  }
  double sum = 0;
  for (float lane : lanes) sum += lane;
  return static_cast<float>(sum);
}

// Calls body(row, target) for every scored row and skip(row) for the others, rows spread over all cores.
template <typename Body, typename Skip>
void for_rows(const MaskedPatchLoss& op, const Tensor& source, const Tensor& index, const Tensor& scored, Body body, Skip skip) {
  const auto* tokens = static_cast<const int64_t*>(index.const_data_ptr());
  const auto* wanted = static_cast<const bool*>(scored.const_data_ptr());
  const void* data = source.const_data_ptr();
  for (int64_t r = 0; r < op.rows; ++r) {
    STD_TORCH_CHECK(!wanted[r] || op.grid.contains(tokens[r]), "masked_patch_loss: index holds ", tokens[r],
                    ", expected 0 to ", op.grid.tokens() - 1);
  }
  torch::stable::parallel_for(0, op.rows, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    Row row(op.grid);
    CroppedTubelet cropped(op.grid);
    for (int64_t r = begin; r < end; ++r) {
      if (!wanted[r]) {
        skip(r);
        continue;
      }
      const int64_t b = r / op.rows_per_clip, first = b * op.grid.clip_size() + op.grid.origin(tokens[r]);
      if (op.boxes.data) {
        const Crop crop(op.boxes.data + 4 * b, op.boxes.stored_height, op.boxes.stored_width, op.grid);
        const uint8_t* stored = static_cast<const uint8_t*>(data) + b * op.boxes.stored_clip(op.grid.T);
        standardise(cropped(stored, crop, tokens[r]), op.grid.tile(), op.eps(), row);
      } else if (op.bytes) {
        standardise(static_cast<const uint8_t*>(data) + first, op.grid, op.eps(), row);
      } else {
        standardise(static_cast<const float*>(data) + first, op.grid, op.eps(), row);
      }
      body(r, row.target.data());
    }
  });
}

template <typename Call>
void by_dtype(const Tensor& pred, Call call) {
  switch (pred.scalar_type()) {
    case ScalarType::Float: call(static_cast<const float*>(pred.const_data_ptr())); break;
    case ScalarType::BFloat16: call(static_cast<const c10::BFloat16*>(pred.const_data_ptr())); break;
    case ScalarType::Half: call(static_cast<const c10::Half*>(pred.const_data_ptr())); break;
    default: STD_TORCH_CHECK(false, "masked_patch_loss: pred must be float32, bfloat16 or float16");
  }
}

Tensor masked_patch_loss(const Tensor& pred, const Tensor& source, const Tensor& index, const Tensor& scored,
                         std::vector<int64_t> patch, std::optional<Tensor> boxes, std::vector<int64_t> size) {
  const MaskedPatchLoss op(pred, source, index, scored, patch, boxes, size);
  Tensor out = torch::stable::new_empty(pred, {pred.size(0), op.rows_per_clip}, ScalarType::Float);
  auto* errors = static_cast<float*>(out.mutable_data_ptr());
  const int row = op.grid.row();
  by_dtype(pred, [&](const auto* p) {
    for_rows(op, source, index, scored,
             [&](int64_t r, const float* target) { errors[r] = square_error(p + r * row, target, row) / row; },
             [&](int64_t r) { errors[r] = 0; });
  });
  return out;
}

Tensor masked_patch_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& source, const Tensor& index,
                                  const Tensor& scored, std::vector<int64_t> patch, std::optional<Tensor> boxes,
                                  std::vector<int64_t> size) {
  const MaskedPatchLoss op(pred, source, index, scored, patch, boxes, size);
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Float && grad.is_contiguous() && grad.numel() == op.rows,
                  "masked_patch_loss_backward: grad must be contiguous float32 (B, N)");
  Tensor out = torch::stable::new_empty(pred, {pred.size(0), op.rows_per_clip, op.grid.row()});
  const auto* upstream = static_cast<const float*>(grad.const_data_ptr());
  const int row = op.grid.row();
  by_dtype(pred, [&](const auto* p) {
    using Pred = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
    auto* slopes = static_cast<Pred*>(out.mutable_data_ptr());
    for_rows(op, source, index, scored,
             [&](int64_t r, const float* target) {
               const float scale = 2 * upstream[r] / row;
               for (int i = 0; i < row; ++i)
                 slopes[r * row + i] = static_cast<Pred>(scale * (static_cast<float>(p[r * row + i]) - target[i]));
             },
             [&](int64_t r) { std::fill_n(slopes + r * row, row, static_cast<Pred>(0.0f)); });
  });
  return out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&avfmae::masked_patch_loss));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&avfmae::masked_patch_loss_backward));
}

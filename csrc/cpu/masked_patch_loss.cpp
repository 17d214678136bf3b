// masked_patch_loss on the CPU: a token's target lives in one cache-resident row and is gone with it.
#include "common/masked_patch_loss.h"
#include "cpu/crop.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace avfmae {
namespace {

// One tubelet's numbers in the order of its lines (time, row, column, channel), and per-channel statistics repeated over
// a line, so that every inner loop runs over neighbouring numbers.
struct Row {
  std::vector<float> target, mean, inverse;

  explicit Row(const PatchGrid& grid)
      : target(grid.row()), mean(grid.pw * grid.channels), inverse(grid.pw * grid.channels) {}
};

// Replaces each number of a line by its channel's sum over the line, times scale.
void fold(std::vector<float>& line, int channels, double scale) {
  for (int c = 0; c < channels; ++c) {
    double sum = 0;
    for (size_t i = c; i < line.size(); i += channels) sum += line[i];
    for (size_t i = c; i < line.size(); i += channels) line[i] = static_cast<float>(sum * scale);
  }
}

// row.target becomes the standardised frame-difference target of a tubelet.
template <typename In>
void standardise(const In* tubelet, const PatchGrid& grid, float eps, Row& row) {
  const int line = grid.pw * grid.channels, lines = grid.pt * grid.ph, n = grid.pixels();
  const Numbers x(row.target.data()), mean(row.mean.data()), inverse(row.inverse.data());
  for_vectors(line, [&](int i, int count) {
    Vector sum{};
    for (int dt = 0, at = i; dt < grid.pt; ++dt)
      for (int dy = 0; dy < grid.ph; ++dy, at += line) {
        const Vector v = vector_of(tubelet + grid.line(dt, dy) + i, count);
        x.put(at, v, count);
        sum += v;
      }
    mean.put(i, sum, count);
  });
  fold(row.mean, grid.channels, 1.0 / n);
  for_vectors(line, [&](int i, int count) {
    const Vector middle = mean.vector(i, count);
    Vector sum{};
    for (int l = 0; l < lines; ++l) {
      const Vector v = x.vector(l * line + i, count) - middle;
      sum += v * v;
    }
    inverse.put(i, sum, count);
  });
  fold(row.inverse, grid.channels, 1.0 / (n - 1));
  for (float& v : row.inverse) v = 1 / (std::sqrt(v) + eps);
  for_vectors(line, [&](int i, int count) {
    const Vector middle = mean.vector(i, count), scale = inverse.vector(i, count);
    for (int l = lines - 1; l >= 0; --l) {  // later frames first: each is replaced by its difference to the one before
      const Vector before = l < grid.ph ? middle : x.vector((l - grid.ph) * line + i, count);
      x.put(l * line + i, (x.vector(l * line + i, count) - before) * scale, count);
    }
  });
}

float square_error(const Numbers& pred, int64_t first, const Numbers& target, int size) {
  Vector squares{};
  for_vectors(size, [&](int i, int n) {
    const Vector d = pred.vector(first + i, n) - target.vector(i, n);
    squares += d * d;
  });
  return sum_of(squares);
}

void grad_of(const Numbers& pred, int64_t first, const Numbers& target, int size, float scale, const Numbers& grad_pred) {
  grad_pred.prefetch_to_write(first, size);
  for_vectors(size, [&](int i, int n) { grad_pred.put(first + i, scale * (pred.vector(first + i, n) - target.vector(i, n)), n); });
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
      body(r, Numbers(row.target.data()));
    }
  });
}

Tensor masked_patch_loss(const Tensor& pred, const Tensor& source, const Tensor& index, const Tensor& scored,
                         std::vector<int64_t> patch, std::optional<Tensor> boxes, std::vector<int64_t> size) {
  const MaskedPatchLoss op(pred, source, index, scored, patch, boxes, size);
  Tensor out = torch::stable::new_empty(pred, {pred.size(0), op.rows_per_clip}, ScalarType::Float);
  auto* errors = static_cast<float*>(out.mutable_data_ptr());
  const Numbers predicted(pred);
  const int row = op.grid.row();
  for_rows(op, source, index, scored,
           [&](int64_t r, const Numbers& target) { errors[r] = square_error(predicted, r * row, target, row) / row; },
           [&](int64_t r) { errors[r] = 0; });
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
  const Numbers predicted(pred), grad_pred(out);
  const int row = op.grid.row();
  const std::vector<float> nothing(row);
  for_rows(op, source, index, scored,
           [&](int64_t r, const Numbers& target) { grad_of(predicted, r * row, target, row, 2 * upstream[r] / row, grad_pred); },
           [&](int64_t r) { grad_pred.store(r * row, nothing.data(), row); });
  return out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&avfmae::masked_patch_loss));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&avfmae::masked_patch_loss_backward));
}

// Choosing masks for data workers: which members of each group of positions are kept, by counter-based random numbers.
//
// Every draw is a function of (seed, epoch, clip id, stream, position) alone; the NumPy twin in
// avfmae_kernels/sample_masks/reference.py computes the same numbers and defines them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/philox.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

void draw(uint64_t seed, uint32_t epoch, uint64_t clip, uint32_t stream, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; i += 4) {
    const auto block = avfmae::philox4x32({static_cast<uint32_t>(i / 4) | stream << 24, epoch,
                                           static_cast<uint32_t>(clip), static_cast<uint32_t>(clip >> 32)}, seed);
    std::copy_n(block.begin(), std::min<int64_t>(4, count - i), out + i);
  }
}

py::array_t<uint32_t> random_bits(uint64_t seed, uint32_t epoch, const Array<uint64_t>& clips, uint32_t stream,
                                  int64_t count) {
  py::array_t<uint32_t> out({clips.size(), static_cast<py::ssize_t>(count)});
  for (py::ssize_t b = 0; b < clips.size(); ++b)
    draw(seed, epoch, clips.data()[b], stream, count, out.mutable_data() + b * count);
  return out;
}

// For every clip, `keep` members of each row of `groups`, ascending over all groups.
py::array_t<int64_t> choose_tokens(uint64_t seed, uint32_t epoch, const Array<uint64_t>& clips, uint32_t stream,
                            const Array<int64_t>& groups, int64_t keep) {
  const int64_t rows = groups.shape(0), size = groups.shape(1);
  std::vector<uint32_t> keys(rows * size);
  std::vector<int64_t> order(size);
  py::array_t<int64_t> out({clips.size(), static_cast<py::ssize_t>(rows * keep)});
  for (py::ssize_t b = 0; b < clips.size(); ++b) {
    draw(seed, epoch, clips.data()[b], stream, rows * size, keys.data());
    int64_t* chosen = out.mutable_data() + b * rows * keep;
    for (int64_t g = 0; g < rows; ++g) {
      const uint32_t* key = keys.data() + g * size;
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + keep, order.end(), [&](int64_t i, int64_t j) {
        return key[i] != key[j] ? key[i] < key[j] : i < j;
      });
      for (int64_t i = 0; i < keep; ++i) chosen[g * keep + i] = groups.data()[g * size + order[i]];
    }
    std::sort(chosen, chosen + rows * keep);
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "NumPy-facing helpers for data workers.";
  m.def("random_bits", &random_bits, py::arg("seed"), py::arg("epoch"), py::arg("clips"), py::arg("stream"),
        py::arg("count"));
  m.def("choose_tokens", &choose_tokens, py::arg("seed"), py::arg("epoch"), py::arg("clips"), py::arg("stream"), py::arg("groups"),
        py::arg("keep"));
}

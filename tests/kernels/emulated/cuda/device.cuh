// Stands in for csrc/cuda/device.cuh.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "emulation.h"
namespace avfmae {
template <typename T> float to_float(T x) { return static_cast<float>(x); }
template <typename T> T from_float(float x) { return static_cast<T>(x); }
inline cudaStream_t stream_of(const torch::stable::Tensor&) { return nullptr; }
}  // namespace avfmae

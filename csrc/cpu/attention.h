// Attention on the CPU: region_attention and cross_attention are this, called for every head of every sequence on all cores.
#pragma once

#include "common/attention.h"
#include "cpu/simd.h"

namespace avfmae {

// What an attention reads and writes: forward q, kv and out; backward all, where `out` may be nothing.
struct AttentionData {
  Numbers q, kv, out, grad, dq, dkv;
};

void attention(const Attention& a, const AttentionData& t);

}  // namespace avfmae

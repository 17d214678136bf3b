// Shares an attention's heads among the cores, and chooses how one of them is computed.
#include "cpu/attention.h"

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "cpu/attention_bf16.h"
#include "cpu/attention_float.h"

namespace avfmae {
namespace {

// Every head of every sequence; tiny ones share a task. A thread keeps its scratch memory, whose padding stays zero, while calls are alike.
template <typename Scratch, typename Body>
void for_heads(const Attention& a, bool backward, Body body) {
  const int64_t work = int64_t{a.queries} * a.keys * a.size;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(0, a.tasks(), grain, [&](int64_t begin, int64_t end) {
    static thread_local std::optional<Scratch> scratch;
    if (!scratch || !scratch->fits(a, backward)) scratch.emplace(a, backward);
    for (int64_t i = begin; i < end; ++i) body(i / a.heads, static_cast<int>(i % a.heads), *scratch);
  });
}

}  // namespace

void attention(const Attention& a, const AttentionData& t) {
  const bool backward = static_cast<bool>(t.grad);
#ifdef __AVX512BF16__
  if (bf16::serves(a, t)) {
    for_heads<bf16::Scratch>(a, backward, [&](int64_t b, int h, bf16::Scratch& s) {
      if (backward) bf16::attend_backward(a, t, b, h, s);
      else bf16::attend(a, t, b, h, s);
    });
    return;
  }
#endif
  for_heads<HeadScratch>(a, backward, [&](int64_t b, int h, HeadScratch& s) {
    if (backward) attend_backward(a, t, b, h, s);
    else attend(a, t, b, h, s);
  });
}

}  // namespace avfmae

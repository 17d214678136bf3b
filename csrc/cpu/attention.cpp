// Shares an attention's heads among the cores.
#include "cpu/attention.h"

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "cpu/attention_float.h"

namespace avfmae {
namespace {

// Every head of every sequence; tiny ones share a task. A thread keeps its scratch memory, whose padding stays zero, while calls are alike.
template <typename Body>
void for_heads(const Attention& a, bool backward, Body body) {
  const int64_t work = int64_t{a.queries} * a.keys * a.size;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(0, a.tasks(), grain, [&](int64_t begin, int64_t end) {
    static thread_local std::optional<HeadScratch> scratch;
    if (!scratch || !scratch->fits(a, backward)) scratch.emplace(a, backward);
    for (int64_t i = begin; i < end; ++i) body(i / a.heads, static_cast<int>(i % a.heads), *scratch);
  });
}

}  // namespace

void attention(const Attention& a, const AttentionData& t) {
  const bool backward = static_cast<bool>(t.grad);
  for_heads(a, backward, [&](int64_t b, int h, HeadScratch& s) {
    if (backward) attend_backward(a, t, b, h, s);
    else attend(a, t, b, h, s);
  });
}

}  // namespace avfmae

// Products of matrices on the CPU, in bfloat16 with float32 sums, by AVX512-BF16.
//
// The factors are bfloat16, or float32 that is rounded on the way in: a layer needs no bfloat16 copy of its weights. Both are packed
// first, so that the innermost loop reads its memory in order: the left one into blocks of up to 14 rows, the right one into panels of 32
// columns, each in pairs of neighbours along the summed dimension, which one instruction multiplies and adds up. 28 of the 32 registers
// hold a block's sums with a panel. A panel stays in the first cache while all blocks pass.
// It is over 400 lines: packing, the tile and both endings (writing, and the optimizer's update) know one layout and are inlined into one loop.
#ifdef __AVX512BF16__
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "cpu/adamw.h"
#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

using Pair = uint32_t;  // neighbours along the summed dimension, the first in the low half

constexpr int kRows = 14, kColumns = 32, kLanes = 16;
constexpr int kStep = 2 * kLanes;  // numbers of a line that are packed at once
constexpr int64_t kWorthAThread = 1 << 19;  // multiplications
constexpr int64_t kPackBlock = 8, kPackPanel = 4;  // multiplications that take as long as packing a number
constexpr int64_t kResident = (512 << 10) / sizeof(Pair);  // pairs of the left factor that leave room in a second cache of 1 MB

// A matrix as lines of numbers to be summed over: rows of the left factor, columns of the right one.
struct Lines {
  const void* data;
  bool wide;       // float32
  bool along;      // a line's numbers are neighbours, and lines are `stride` apart; else the other way round
  int64_t stride;

  AVFMAE_INLINE int bytes() const { return wide ? 4 : 2; }
  // From number k of line i on.
  AVFMAE_INLINE const void* at(int64_t i, int64_t k) const {
    return static_cast<const char*>(data) + ((along ? i : k) * stride + (along ? k : i)) * bytes();
  }
};

Lines lines(const Tensor& t, int line, const char* what) {
  const int along = 1 - line;
  const bool neighbours = t.stride(along) == 1 || t.size(along) == 1;
  STD_TORCH_CHECK(neighbours || t.stride(line) == 1 || t.size(line) == 1, "matmul_bf16: ", what, " must be contiguous in one dimension");
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::BFloat16,
                  "matmul_bf16: ", what, " must be float32 or bfloat16");
  return {t.const_data_ptr(), t.scalar_type() == ScalarType::Float, neighbours, t.stride(neighbours ? line : along)};
}

// 16 numbers from x and 16 from y as bfloat16, only those of the masks read.
template <typename Number>
AVFMAE_INLINE __m512i load(const Number* x, const Number* y, __mmask16 of_x, __mmask16 of_y) {
  if constexpr (sizeof(Number) == sizeof(float))
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(of_y, y), _mm512_maskz_loadu_ps(of_x, x));
  else
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(of_x, x)), _mm256_maskz_loadu_epi16(of_y, y), 1);
}

AVFMAE_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= kLanes ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// Lines first to first + count as pairs, pair k of line i at to[k * width + i]; a missing last half is zero.
template <typename Number>
AVFMAE_INLINE void pack_along(const Number* from, int64_t stride, int count, int64_t depth, Pair* to, int width) {
  for (int i = 0; i < count; i += kLanes, from += kLanes * stride) {
    const int n = std::min(kLanes, count - i);
    const __mmask16 lanes = first_lanes(n);
    for (int64_t k = 0; k < depth; k += kStep) {
      const __mmask16 low = first_lanes(depth - k), high = first_lanes(depth - k - kLanes);
      Vector x[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        const Number* line = from + std::min(r, n - 1) * stride + k;
        x[r] = (Vector)load(line, line + kLanes, low, high);
      }
      transpose(x);
      const int pairs = static_cast<int>(std::min<int64_t>(kLanes, (depth - k + 1) / 2));
      for (int p = 0; p < pairs; ++p) _mm512_mask_storeu_epi32(to + (k / 2 + p) * width + i, lanes, (__m512i)x[p]);
    }
  }
}

// 16 numbers of one row and 16 of the next as pairs (one[i], next[i]).
AVFMAE_INLINE __m512i interleaved(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                                         17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}

// The same of lines that lie across: a pair's numbers are in neighbouring rows, of which those 16 pairs on are fetched.
template <typename Number>
AVFMAE_INLINE void pack_across(const Number* from, int64_t stride, int count, int64_t depth, Pair* to, int width) {
  for (int64_t k = 0; k < depth; k += 2, from += 2 * stride, to += width) {
    for (int row = 0; row < 2; ++row) __builtin_prefetch(from + (2 * kLanes + row) * stride);
    for (int i = 0; i < count; i += kLanes) {
      const __mmask16 lanes = first_lanes(count - i);
      const __m512i rows = load(from + i, from + i + stride, lanes, k + 1 < depth ? lanes : __mmask16{0});
      _mm512_mask_storeu_epi32(to + i, lanes, interleaved(rows));
    }
  }
}

template <typename Number>
AVFMAE_INLINE void pack_lines(const Lines& m, const void* from, int count, int64_t depth, Pair* to, int width) {
  if (m.along) pack_along(static_cast<const Number*>(from), m.stride, count, depth, to, width);
  else pack_across(static_cast<const Number*>(from), m.stride, count, depth, to, width);
}

// `depth` numbers of `count` lines, from number k of line `first` on.
void pack(const Lines& m, int64_t first, int count, int64_t k, int64_t depth, Pair* to, int width) {
  if (m.wide) pack_lines<float>(m, m.at(first, k), count, depth, to, width);
  else pack_lines<uint16_t>(m, m.at(first, k), count, depth, to, width);
}

// Where a block's sums with a panel go.
struct Tile {
  void* data;
  bool wide;
  int64_t stride;
  int columns;
  __m512 bias[2];

  AVFMAE_INLINE char* row(int64_t r) const { return static_cast<char*>(data) + r * stride * (wide ? 4 : 2); }
  AVFMAE_INLINE void prefetch(int rows) const {
    for (int r = 0; r < rows; ++r) prefetch_to_write(row(r));
    if (wide)
      for (int r = 0; r < rows; ++r) prefetch_to_write(row(r) + 64);
  }
};

AVFMAE_INLINE void store(const Tile& t, int row, __m512 left, __m512 right) {
  const __mmask32 mask = t.columns >= kColumns ? ~__mmask32{0} : (__mmask32{1} << t.columns) - 1;
  left = _mm512_add_ps(left, t.bias[0]);
  right = _mm512_add_ps(right, t.bias[1]);
  if (t.wide) {
    auto* to = reinterpret_cast<float*>(t.row(row));
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), left);
    _mm512_mask_storeu_ps(to + kLanes, static_cast<__mmask16>(mask >> 16), right);
  } else {
    _mm512_mask_storeu_epi16(t.row(row), mask, (__m512i)_mm512_cvtne2ps_pbh(right, left));
  }
}

// Memory that is packed next, in stretches of some cache lines each: fetched while there is work to hide it behind.
struct Ahead {
  const char* line = nullptr;
  int64_t left = 0, stride = 0;
  int length = 1, rate = 0, passed = 0;  // lines of a stretch, lines to fetch a pair, lines of this stretch that are fetched

  AVFMAE_INLINE void fetch() {
    if (left-- <= 0) return;
    __builtin_prefetch(line, 0, 2);
    line += 64;
    if (++passed < length) return;
    passed = 0;
    line += stride - 64 * length;
  }
};

template <int R>
void multiply(const Pair* block, const Pair* panel, int64_t pairs, const Tile& tile, const Ahead& to_fetch) {
  tile.prefetch(R);
  Ahead ahead = to_fetch;
  __m512 left[R], right[R];
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) left[r] = right[r] = _mm512_setzero_ps();
  const auto add_pair = [&]() __attribute__((always_inline)) {
    const __m512bh b0 = (__m512bh)_mm512_load_si512(panel), b1 = (__m512bh)_mm512_load_si512(panel + kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int>(block[r]));
      left[r] = _mm512_dpbf16_ps(left[r], a, b0);
      right[r] = _mm512_dpbf16_ps(right[r], a, b1);
    }
    block += R;
    panel += kColumns;
  };
  for (; ahead.left > 0; --pairs, add_pair())
    for (int f = 0; f < ahead.rate; ++f) ahead.fetch();
  for (; pairs > 0; --pairs) add_pair();
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) store(tile, r, left[r], right[r]);
}

using Multiply = void (*)(const Pair*, const Pair*, int64_t, const Tile&, const Ahead&);
constexpr Multiply kMultiply[kRows] = {multiply<1>, multiply<2>,  multiply<3>,  multiply<4>,  multiply<5>,  multiply<6>,  multiply<7>,
                                       multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>, multiply<13>, multiply<14>};

// Memory for packed numbers, kept by its thread from call to call.
class Workspace {
 public:
  Pair* of(int64_t pairs) {
    if (pairs > size_) {
      memory_.reset(static_cast<Pair*>(::operator new(pairs * sizeof(Pair), kAlign)));
      size_ = pairs;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(Pair* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<Pair, Free> memory_;
  int64_t size_ = 0;
};

Tile tile_of(const Tensor& out, const Numbers& bias, int64_t column) {
  Tile t{nullptr, out.scalar_type() == ScalarType::Float, out.size(1), static_cast<int>(std::min<int64_t>(kColumns, out.size(1) - column)), {}};
  t.data = static_cast<char*>(const_cast<void*>(out.const_data_ptr())) + column * (t.wide ? sizeof(float) : sizeof(uint16_t));
  float b[kColumns] = {};
  if (bias) bias.load(column, b, t.columns);
  for (int half = 0; half < 2; ++half) t.bias[half] = _mm512_loadu_ps(b + half * kLanes);
  return t;
}

// A product to be made: M rows in blocks, N columns in panels, K numbers in pairs.
struct Product {
  Lines a, b;
  int64_t M, N, K;
  int64_t pairs = (K + 1) / 2, blocks = (M + kRows - 1) / kRows, panels = (N + kColumns - 1) / kColumns;

  int64_t first_row(int64_t block) const { return M * block / blocks; }
};

struct Range {
  int64_t begin, end;

  // One of `count` pieces.
  Range piece(int64_t i, int64_t count) const { return {begin + (end - begin) * i / count, begin + (end - begin) * (i + 1) / count}; }
};

// What one thread does of a product: some blocks with some panels.
struct Part {
  Range blocks, panels;
};

Product product_of(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.size(1) == b.size(0), "matmul_bf16: got (", a.size(0), ", ", a.size(1), ") times (", b.size(0), ", ", b.size(1), ")");
  return {lines(a, 0, "a"), lines(b, 1, "b"), a.size(0), b.size(1), a.size(1)};
}

// Packs one of the left factor's blocks, and sums up its lines if asked to.
void pack_block(const Product& p, int64_t block, Pair* to, float* sums) {
  const int64_t first = p.first_row(block);
  const int rows = static_cast<int>(p.first_row(block + 1) - first);
  pack(p.a, first, rows, 0, p.K, to, rows);
  if (!sums) return;
  const __m512bh one = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  const __mmask16 lanes = first_lanes(rows);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < p.pairs; ++k) sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi32(lanes, to + k * rows), one);
  _mm512_mask_storeu_ps(sums + first, lanes, sum);
}

// A panel's numbers from k to k + depth, of all its columns.
struct Slice {
  int64_t k = 0, depth = 0;
};

// One of `count` slices; they end where pack_along has whole vectors.
Slice slice_of(const Product& p, int64_t number, int64_t count) {
  const auto edge = [&](int64_t i) { return std::min((p.K + kStep - 1) / kStep * i / count * kStep, p.K); };
  return {edge(number), edge(number + 1) - edge(number)};
}

// What packing a slice of `count` lines reads, to be fetched during a multiplication of `pairs`.
Ahead ahead_of(const Lines& m, int64_t first, int64_t count, const Slice& s, int64_t pairs) {
  const int length = static_cast<int>(((m.along ? s.depth : count) * m.bytes() + 63) / 64);
  const int64_t lines = (m.along ? count : s.depth) * length;
  const int64_t rate = pairs > 0 ? (lines + pairs - 1) / pairs : 0;
  return {static_cast<const char*>(m.at(first, s.k)), lines, m.stride * m.bytes(), length, static_cast<int>(rate)};
}

void pack_slice(const Product& p, int64_t number, const Slice& s, Pair* panel) {
  const int columns = static_cast<int>(std::min<int64_t>(kColumns, p.N - number * kColumns));
  Pair* to = panel + s.k / 2 * kColumns;
  if (columns < kColumns) std::fill_n(to, (s.depth + 1) / 2 * kColumns, 0);
  pack(p.b, number * kColumns, columns, s.k, s.depth, to, kColumns);
}

// Has a part's blocks meet its panels: take(panel's number, block's number, its first row, its rows, block, panel, what to fetch ahead).
// A block is packed when it meets the first panel, and between blocks the next panel is packed, slice by slice: what is fetched ahead must not
// wait long, since lines that are a power of two apart push each other out of a cache. Blocks pass in chunks that stay in the second cache; if
// that takes several rounds, panels are kept.
template <typename Take>
AVFMAE_INLINE void pass(const Product& p, const Part& part, Take take) {
  static thread_local Workspace of_blocks, of_panels;
  const auto [begin, end] = part.panels;
  const int64_t top = p.first_row(part.blocks.begin), height = p.first_row(part.blocks.end) - top;
  const int64_t chunks = std::clamp<int64_t>((height * p.pairs + kResident - 1) / kResident, 1, part.blocks.end - part.blocks.begin);
  const int64_t size = p.pairs * kColumns, kept = chunks > 1 ? end - begin : 2;
  Pair *blocks = of_blocks.of(height * p.pairs), *panels = of_panels.of(size * kept);
  const auto panel_of = [=](int64_t number) { return panels + (number - begin) % kept * size; };
  const auto rows_of = [&p](int64_t i) { return p.first_row(i + 1) - p.first_row(i); };
  pack_slice(p, begin, {0, p.K}, panel_of(begin));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const auto [from, to] = part.blocks.piece(chunk, chunks);
    for (int64_t number = begin; number < end; ++number) {
      const bool packs = chunk == 0 && number + 1 < end;
      for (int64_t i = from; i < to; ++i) {
        Pair* block = blocks + (p.first_row(i) - top) * p.pairs;
        const Slice next = packs ? slice_of(p, i - from, to - from) : Slice{};
        Ahead ahead;
        if (number == begin) {
          pack_block(p, i, block, nullptr);
          if (i + 1 < part.blocks.end) ahead = ahead_of(p.a, p.first_row(i + 1), rows_of(i + 1), {0, p.K}, p.pairs);
        } else if (packs) {
          const int64_t column = (number + 1) * kColumns;
          ahead = ahead_of(p.b, column, std::min<int64_t>(kColumns, p.N - column), next, p.pairs);
        }
        take(number, i, p.first_row(i), static_cast<int>(rows_of(i)), block, panel_of(number), ahead);
        if (packs) pack_slice(p, number + 1, next, panel_of(number + 1));
      }
    }
  }
}

// Parts lie in a grid, `down` times `across`, and share nothing: each packs all that it needs, since what another core has just written comes
// slower than it is packed. The grid is the one with the fewest multiplications a thread, numbers packed counted as some.
template <typename Body>
void for_parts(const Product& p, Body body) {
  if (!p.blocks || !p.panels) return;
  const int64_t threads = std::clamp<int64_t>(p.M * p.N * p.K / kWorthAThread, 1, torch::stable::get_num_threads());
  int64_t down = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t d = threads; d >= 1; --d) {
    if (threads % d) continue;
    const int64_t rows = (p.blocks + d - 1) / d * kRows, columns = (p.panels + threads / d - 1) / (threads / d) * kColumns;
    const int64_t cost = rows * columns + kPackBlock * rows + kPackPanel * columns;
    if (cost < least) down = d, least = cost;
  }
  const int64_t across = threads / down;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Part part{Range{0, p.blocks}.piece(i / across, down), Range{0, p.panels}.piece(i % across, across)};
      if (part.blocks.begin < part.blocks.end && part.panels.begin < part.panels.end) body(part);
    }
  });
}

void write(const Product& p, const Part& part, const Tensor& out, const Numbers& bias) {
  Tile top;
  int64_t of = -1;
  pass(p, part, [&](int64_t number, int64_t, int64_t first, int rows, const Pair* block, const Pair* panel, const Ahead& ahead) {
    if (std::exchange(of, number) != number) top = tile_of(out, bias, number * kColumns);
    Tile tile = top;
    tile.data = top.row(first);
    kMultiply[rows - 1](block, panel, p.pairs, tile, ahead);
  });
}

// Gradients of a block with a panel, for the weights that begin at `index`; their squares' sum is returned.
template <typename Moments>
float update_weights(const Rule rule, const float* gradient, int rows, float* weight, Moments moments, int64_t index, int64_t stride) {
  const float squares = dot(gradient, gradient, rows * kColumns);
  if (!std::isfinite(squares)) return squares;
  for (int r = 0; r < rows; ++r, index += stride, gradient += kColumns)
    for (int half = 0; half < kColumns; half += kLanes) {
      const int64_t i = index + half;
      if constexpr (std::is_same_v<Moments, Compact>) step_avx512(rule, gradient + half, weight + i, moments.at(i), static_cast<uint32_t>(i));
      else step(rule, gradient + half, weight + i, moments.at(i), i);
    }
  return squares;
}

// Panels in groups that stay in the second cache; blocks one after the other, each with all panels of a group: its weights and moments lie in long
// pieces of rows, which memory gives faster than short ones of many.
template <typename Moments>
void update(const Product& p, const Part& part, const Rule& rule, float* weight, Moments moments, float* lines, std::vector<float>& sums) {
  static thread_local Workspace of_blocks, of_panels;
  const int64_t size = p.pairs * kColumns, count = part.panels.end - part.panels.begin;
  const int64_t groups = std::clamp<int64_t>((count * size + kResident - 1) / kResident, 1, count);
  const int64_t top = p.first_row(part.blocks.begin), kept = groups > 1 ? p.first_row(part.blocks.end) - top : kRows;
  Pair *blocks = of_blocks.of(kept * p.pairs), *panels = of_panels.of((count + groups - 1) / groups * size);
  for (int64_t group = 0; group < groups; ++group) {
    const auto [begin, end] = part.panels.piece(group, groups);
    for (int64_t number = begin; number < end; ++number) pack_slice(p, number, {0, p.K}, panels + (number - begin) * size);
    for (int64_t i = part.blocks.begin; i < part.blocks.end; ++i) {
      const int64_t first = p.first_row(i);
      const int rows = static_cast<int>(p.first_row(i + 1) - first);
      Pair* block = blocks + (groups > 1 ? (first - top) * p.pairs : 0);
      if (group == 0) pack_block(p, i, block, begin == 0 ? lines : nullptr);
      for (int64_t number = begin; number < end; ++number) {
        alignas(64) float gradient[kRows * kColumns];
        const int64_t index = first * p.N + number * kColumns;
        for (int r = 0; r < rows; ++r) moments.at(index + r * p.N).prefetch(weight + index + r * p.N);
        kMultiply[rows - 1](block, panels + (number - begin) * size, p.pairs, Tile{gradient, true, kColumns, kColumns, {}}, Ahead{});
        sums[i * p.panels + number] = update_weights(rule, gradient, rows, weight, moments, index, p.N);
      }
    }
  }
}


// a (M, K)·b (K, N) + bias (N), both factors contiguous in either dimension.
void matmul_bf16_into(const Tensor& a, const Tensor& b, std::optional<Tensor> bias, ScalarType, const Tensor out) {
  const Product p = product_of(a, b);
  STD_TORCH_CHECK(!bias || bias->numel() == p.N, "matmul_bf16: bias must have a number a column");
  STD_TORCH_CHECK(out.is_contiguous() && out.numel() == p.M * p.N, "matmul_bf16: out must be contiguous (", p.M, ", ", p.N, ")");
  for_parts(p, [&](const Part& part) { write(p, part, out, bias ? Numbers(*bias) : Numbers()); });
}

Tensor matmul_bf16(const Tensor& a, const Tensor& b, std::optional<Tensor> bias, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(1)}, dtype);
  matmul_bf16_into(a, b, bias, dtype, out);
  return out;
}

// AdamW's step with the gradient a·b, which is never written. Gives sums of a's rows.
void matmul_adamw_into(const Tensor& a, const Tensor& b, const Tensor param, const Tensor exp_avg, const Tensor exp_avg_sq, const Tensor step_of,
                       const Tensor lr, double beta1, double beta2, double eps, double weight_decay, const Tensor squares, const Tensor lines) {
  const Product p = product_of(a, b);
  const bool compact = exp_avg.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(p.N % kColumns == 0, "matmul_adamw: columns must be a multiple of 32");
  for (const Tensor* each : {&param, &exp_avg, &exp_avg_sq})
    STD_TORCH_CHECK(each->is_contiguous() && each->numel() == p.M * p.N, "matmul_adamw: weights and moments must be contiguous, and as large as a·b");
  STD_TORCH_CHECK(param.scalar_type() == ScalarType::Float && exp_avg.scalar_type() == (compact ? ScalarType::Char : ScalarType::Float) &&
                      exp_avg_sq.scalar_type() == (compact ? ScalarType::BFloat16 : ScalarType::Float),
                  "matmul_adamw: weights must be float32, and moments both float32 or both compact");
  STD_TORCH_CHECK(lines.is_contiguous() && lines.numel() == p.M && lines.scalar_type() == ScalarType::Float, "matmul_adamw: out must be float32 (M)");
  const Rule rule = Recipe{scalar(lr), beta1, beta2, eps, weight_decay, 1}.rule(scalar(step_of) += 1);
  std::vector<float> sums(p.panels * p.blocks);
  for_parts(p, [&](const Part& part) {
    float *w = data<float>(param), *of_rows = data<float>(lines);
    if (compact) update(p, part, rule, w, Compact{data<int8_t>(exp_avg), data<uint16_t>(exp_avg_sq)}, of_rows, sums);
    else update(p, part, rule, w, Wide{data<float>(exp_avg), data<float>(exp_avg_sq)}, of_rows, sums);
  });
  scalar(squares) += static_cast<float>(sum_in_order(sums));
}

Tensor matmul_adamw(const Tensor& a, const Tensor& b, const Tensor param, const Tensor exp_avg, const Tensor exp_avg_sq, const Tensor step_of,
                    const Tensor lr, double beta1, double beta2, double eps, double weight_decay, const Tensor squares) {
  Tensor lines = torch::stable::new_empty(a, {a.size(0)}, ScalarType::Float);
  matmul_adamw_into(a, b, param, exp_avg, exp_avg_sq, step_of, lr, beta1, beta2, eps, weight_decay, squares, lines);
  return lines;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("matmul_bf16", TORCH_BOX(&avfmae::matmul_bf16));
  m.impl("matmul_bf16.out", TORCH_BOX(&avfmae::matmul_bf16_into));
  m.impl("matmul_adamw", TORCH_BOX(&avfmae::matmul_adamw));
  m.impl("matmul_adamw.out", TORCH_BOX(&avfmae::matmul_adamw_into));
}
#endif

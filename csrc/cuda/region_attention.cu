// region_attention on the GPU. Whole sequences share a tile of TILE rows, as many as fit; logits between different sequences
// are masked. A tile's rows of one head are read once into shared memory, all products are tensor-core products of 16 by 16
// blocks from there, and every warp owns 16 rows. Short tiles take several heads a block, so that rows are read in long runs.
//
// Short sequences in 16 bits are attended to by a warp each, in registers (warp_attention.cuh).
//
// float32, and shapes that the tensor cores do not take, go through a plain kernel: exact, one block a head of a sequence.
#include <mma.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cuda/shared_memory.cuh"
#include "cuda/warp_attention.cuh"

namespace avfmae {
namespace {

namespace wmma = nvcuda::wmma;

using Sum = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;
constexpr int kBlock = 16;         // rows and columns of a tensor-core product
constexpr int kMaxHead = 128;
constexpr int kMaxSequence = 128;
constexpr const char* kOp = "region_attention";

template <int TILE>
struct Shape {
  static constexpr int kWarps = TILE / kBlock;                 // a head
  static constexpr int kHeads = TILE < 64 ? 64 / TILE : 1;     // a block
  static constexpr int kThreads = 32 * kWarps * kHeads;
  static constexpr int kLogits = TILE + 4;                     // floats of a row: logits, later two rows of 16-bit numbers; 2 of softmax

  // Bytes of shared memory a head: `matrices` of TILE rows, logits, and a block of sums a warp.
  __host__ __device__ static constexpr int bytes(int matrices, int D) {
    return matrices * TILE * (D + 8) * 2 + TILE * kLogits * 4 + kWarps * kBlock * kBlock * 4;
  }
};
static_assert(Shape<64>::bytes(4, 80) <= 99 * 1024, "sequences of up to 64 fit every chip from sm_80 on");
static_assert(Shape<128>::bytes(4, 80) <= 163 * 1024, "sequences of up to 128 fit sm_80, 90 and 100");

template <typename T>
struct Tensors {
  const T *grad, *qkv;
  T *out, *dqkv;
};

// Where a row of a tile lies: its sequence and place, and whether there is one.
struct TileRows {
  int64_t first, sequences;  // first sequence of the tile; all sequences
  int S, pack;

  __device__ bool real(int r) const { return r < pack * S && first + r / S < sequences; }
  __device__ int64_t sequence(int r) const { return first + r / S; }
  __device__ bool together(int r, int c) const { return real(r) && real(c) && r / S == c / S; }
};

// A warp's product of a 16-row block of A with a 16-column block of B, over k blocks.
template <typename LayoutA, typename LayoutB, typename T>
__device__ Sum product(const T* a, int lda, int a_step, const T* b, int ldb, int b_step, int k) {
  Sum sum;
  wmma::fill_fragment(sum, 0.0f);
  for (int i = 0; i < k; ++i) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, LayoutA> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, LayoutB> y;
    wmma::load_matrix_sync(x, a + i * a_step, lda);
    wmma::load_matrix_sync(y, b + i * b_step, ldb);
    wmma::mma_sync(sum, x, y, sum);
  }
  return sum;
}

// One head's part of the block's shared memory, and its warp's place in the tile.
template <typename T, int TILE>
struct Head {
  using S = Shape<TILE>;
  T* matrices;
  float *logits, *sums;
  int D, ld, warp, lane, row;  // `row`: the warp's first of 16

  __device__ Head(unsigned char* shared, int matrix_count, int D) : D(D), ld(D + 8) {
    const int group = threadIdx.x / (32 * S::kWarps);
    warp = threadIdx.x / 32 % S::kWarps, lane = threadIdx.x % 32, row = warp * kBlock;
    shared += group * S::bytes(matrix_count, D);
    matrices = reinterpret_cast<T*>(shared);
    logits = reinterpret_cast<float*>(matrices + matrix_count * TILE * ld);
    sums = logits + TILE * S::kLogits + warp * kBlock * kBlock;
  }
  __device__ T* matrix(int i) const { return matrices + i * TILE * ld; }

  // After the softmax a row of logits holds its probabilities and, beside them, room for the gradients of its logits; behind
  // both, the row's largest logit and the inverse of its sum of exponentials.
  static constexpr int kProbabilities = 2 * S::kLogits;
  __device__ T* p() const { return reinterpret_cast<T*>(logits); }
  __device__ T* dp() const { return p() + TILE; }
  __device__ float& top(int r) const { return logits[r * S::kLogits + TILE]; }
  __device__ float& inverse(int r) const { return logits[r * S::kLogits + TILE + 1]; }

  // Copies the tile's rows into a matrix, 16 bytes at a time; rows that do not exist become zero.
  template <typename At>
  __device__ void load(int i, const T* from, const TileRows& rows, bool head_exists, At at) const {
    const int chunks = D / 8;
    for (int c = threadIdx.x % (32 * S::kWarps); c < TILE * chunks; c += 32 * S::kWarps) {
      const int r = c / chunks, column = c % chunks * 8;
      int4 numbers = {};
      if (head_exists && rows.real(r)) numbers = *reinterpret_cast<const int4*>(from + at(r) + column);
      *reinterpret_cast<int4*>(matrix(i) + r * ld + column) = numbers;
    }
  }

  // Writes a block of sums to rows of the result, 16 bytes a lane.
  template <typename At>
  __device__ void store(const Sum& sum, int column, T* to, const TileRows& rows, bool head_exists, At at) const {
    float exact[8];
    take(sum, exact);
    const int r = row + lane / 2, half = lane % 2 * 8;
    if (!head_exists || !rows.real(r)) return;
    alignas(16) T numbers[8];
    for (int i = 0; i < 8; ++i) numbers[i] = from_float<T>(exact[i]);
    *reinterpret_cast<int4*>(to + at(r) + column + half) = *reinterpret_cast<const int4*>(numbers);
  }

  __device__ Sum logits_block(int c) const {  // q kᵀ
    return product<wmma::row_major, wmma::col_major>(matrix(0) + row * ld, ld, kBlock, matrix(1) + c * ld, ld, kBlock, D / kBlock);
  }
  __device__ Sum grad_block(int c) const {  // grad vᵀ
    return product<wmma::row_major, wmma::col_major>(matrix(3) + row * ld, ld, kBlock, matrix(2) + c * ld, ld, kBlock, D / kBlock);
  }

  // Probabilities of the warp's rows: softmax(q kᵀ·scale) within each sequence, zero elsewhere.
  __device__ void softmax(const TileRows& rows, float scale) const {
    for (int c = 0; c < TILE; c += kBlock)
      wmma::store_matrix_sync(logits + row * S::kLogits + c, logits_block(c), S::kLogits, wmma::mem_row_major);
    __syncwarp();
    constexpr int kEach = (TILE + 31) / 32;
    for (int r = row; r < row + kBlock; ++r) {
      float x[kEach], largest = -INFINITY, total = 0;
      for (int i = 0; i < kEach; ++i) {
        const int c = lane + 32 * i;
        x[i] = c < TILE && rows.together(r, c) ? logits[r * S::kLogits + c] * scale : -INFINITY;
        largest = fmaxf(largest, x[i]);
      }
      for (int step = 16; step; step >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, step));
      for (int i = 0; i < kEach; ++i) {
        x[i] = x[i] == -INFINITY ? 0 : __expf(x[i] - largest);
        total += x[i];
      }
      for (int step = 16; step; step >>= 1) total += __shfl_xor_sync(kWarp, total, step);
      const float scaled = total > 0 ? 1 / total : 0;
      __syncwarp();  // all have read the row that is written over
      for (int i = 0; i < kEach; ++i)
        if (lane + 32 * i < TILE) p()[r * kProbabilities + lane + 32 * i] = from_float<T>(x[i] * scaled);
      if (lane == 0) top(r) = largest, inverse(r) = scaled;
    }
    __syncwarp();
  }

  __device__ Sum answer(int column) const {  // p v
    return product<wmma::row_major, wmma::row_major>(p() + row * kProbabilities, kProbabilities, kBlock, matrix(2) + column, ld, kBlock * ld,
                                                     TILE / kBlock);
  }

  // A lane's eight numbers of a block of sums: half of the block's row lane / 2.
  __device__ void take(const Sum& sum, float (&numbers)[8]) const {
    __syncwarp();
    wmma::store_matrix_sync(sums, sum, kBlock, wmma::mem_row_major);
    __syncwarp();
    for (int i = 0; i < 8; ++i) numbers[i] = sums[lane / 2 * kBlock + lane % 2 * 8 + i];
  }

  // Gradients of the logits of the warp's rows: p·(dp - Σ p·dp)·scale with dp = grad vᵀ. Logits and dp are computed twice
  // more instead of kept: products are cheap, and rounded probabilities would add their error.
  __device__ void grad_logits(const TileRows& rows, float scale) const {
    const int r = row + lane / 2, half = lane % 2 * 8;
    float mean = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int c = 0; c < TILE; c += kBlock) {
        float logit[8], dp_value[8];
        take(logits_block(c), logit);
        take(grad_block(c), dp_value);
        for (int i = 0; i < 8; ++i) {
          const float weight = rows.together(r, c + half + i) ? __expf(logit[i] * scale - top(r)) * inverse(r) : 0;
          if (pass == 0) mean += weight * dp_value[i];
          else dp()[r * kProbabilities + c + half + i] = from_float<T>(weight * (dp_value[i] - mean) * scale);
        }
      }
      if (pass == 0) mean += __shfl_xor_sync(kWarp, mean, 1);
    }
  }
};

template <typename T, int TILE>
__global__ void __launch_bounds__(Shape<TILE>::kThreads) region_attention_kernel(Tensors<T> t, Attention a, int pack) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Head<T, TILE> head(shared, 3, a.size);
  const TileRows rows{int64_t{blockIdx.x} * pack, a.batches, a.queries, pack};
  const int h = blockIdx.y * Shape<TILE>::kHeads + threadIdx.x / (32 * Shape<TILE>::kWarps);
  const bool exists = h < a.heads;
  const auto at = [&](const Rows& where) { return [&](int r) { return where.at(rows.sequence(r), r % rows.S, h, a.size); }; };
  head.load(0, t.qkv, rows, exists, at(a.q));
  head.load(1, t.qkv, rows, exists, at(a.k));
  head.load(2, t.qkv, rows, exists, at(a.v));
  __syncthreads();
  head.softmax(rows, a.scale);
  for (int c = 0; c < a.size; c += kBlock) head.store(head.answer(c), c, t.out, rows, exists, at(a.out));
}

template <typename T, int TILE>
__global__ void __launch_bounds__(Shape<TILE>::kThreads, 1) region_attention_backward_kernel(Tensors<T> t, Attention a, int pack) {
  extern __shared__ __align__(128) unsigned char shared[];
  using H = Head<T, TILE>;
  const H head(shared, 4, a.size);
  const TileRows rows{int64_t{blockIdx.x} * pack, a.batches, a.queries, pack};
  const int h = blockIdx.y * Shape<TILE>::kHeads + threadIdx.x / (32 * Shape<TILE>::kWarps), ld = head.ld, row = head.row;
  const bool exists = h < a.heads;
  const auto at = [&](const Rows& where) { return [&](int r) { return where.at(rows.sequence(r), r % rows.S, h, a.size); }; };
  head.load(0, t.qkv, rows, exists, at(a.q));
  head.load(1, t.qkv, rows, exists, at(a.k));
  head.load(2, t.qkv, rows, exists, at(a.v));
  head.load(3, t.grad, rows, exists, at(a.out));
  __syncthreads();
  head.softmax(rows, a.scale);
  head.grad_logits(rows, a.scale);
  __syncthreads();  // keys' gradients gather over all warps' rows
  constexpr int kLd = H::kProbabilities, kBlocks = TILE / kBlock;
  for (int c = 0; c < a.size; c += kBlock) {
    if (t.out) head.store(head.answer(c), c, t.out, rows, exists, at(a.out));
    const Sum dq = product<wmma::row_major, wmma::row_major>(head.dp() + row * kLd, kLd, kBlock, head.matrix(1) + c, ld, kBlock * ld, kBlocks);
    head.store(dq, c, t.dqkv, rows, exists, at(a.dq));
    const Sum dk = product<wmma::col_major, wmma::row_major>(head.dp() + row, kLd, kBlock * kLd, head.matrix(0) + c, ld, kBlock * ld, kBlocks);
    head.store(dk, c, t.dqkv, rows, exists, at(a.dk));
    const Sum dv = product<wmma::col_major, wmma::row_major>(head.p() + row, kLd, kBlock * kLd, head.matrix(3) + c, ld, kBlock * ld, kBlocks);
    head.store(dv, c, t.dqkv, rows, exists, at(a.dv));
  }
}

// The plain kernel: block (sequence, head), a warp a row; logits and their gradients of a sequence in shared memory.
constexpr int kPlainThreads = 256;

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(kWarp, x, step);
  return x;
}

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(Tensors<T> t, Attention a) {
  extern __shared__ float plain[];
  const int S = a.queries, D = a.size, h = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t b = blockIdx.x;
  float *p = plain, *ds = plain + S * S;
  const auto at = [&](const Rows& rows, int r, int d) { return rows.at(b, r, h, D) + d; };
  const auto dot = [&](const T* x, const Rows& x_rows, int i, const T* y, const Rows& y_rows, int j) {
    float sum = 0;
    for (int d = lane; d < D; d += 32) sum += to_float(x[at(x_rows, i, d)]) * to_float(y[at(y_rows, j, d)]);
    return warp_sum(sum);
  };
  for (int i = warp; i < S; i += warps) {
    float top = -INFINITY, total = 0, mean = 0;
    for (int j = 0; j < S; ++j) {
      const float logit = dot(t.qkv, a.q, i, t.qkv, a.k, j) * a.scale;
      top = fmaxf(top, logit);
      if (lane == 0) p[i * S + j] = logit;
    }
    __syncwarp();
    for (int j = lane; j < S; j += 32) total += p[i * S + j] = expf(p[i * S + j] - top);
    total = warp_sum(total);
    __syncwarp();
    for (int j = lane; j < S; j += 32) p[i * S + j] /= total;
    __syncwarp();
    if (t.grad) {
      for (int j = 0; j < S; ++j) {
        const float dp_value = dot(t.grad, a.out, i, t.qkv, a.v, j);
        mean += p[i * S + j] * dp_value;
        if (lane == 0) ds[i * S + j] = dp_value;
      }
      __syncwarp();
      for (int j = lane; j < S; j += 32) ds[i * S + j] = p[i * S + j] * (ds[i * S + j] - mean) * a.scale;
    }
  }
  __syncthreads();
  // A row of a product: Σ_j weight(j)·x_j.
  const auto combine = [&](T* to, const Rows& to_rows, int i, const T* x, const Rows& x_rows, auto weight) {
    for (int d = lane; d < D; d += 32) {
      float sum = 0;
      for (int j = 0; j < S; ++j) sum += weight(j) * to_float(x[at(x_rows, j, d)]);
      to[at(to_rows, i, d)] = from_float<T>(sum);
    }
  };
  for (int i = warp; i < S; i += warps) {
    if (t.out) combine(t.out, a.out, i, t.qkv, a.v, [&](int j) { return p[i * S + j]; });
    if (!t.grad) continue;
    combine(t.dqkv, a.dq, i, t.qkv, a.k, [&](int j) { return ds[i * S + j]; });
    combine(t.dqkv, a.dk, i, t.qkv, a.q, [&](int j) { return ds[j * S + i]; });
    combine(t.dqkv, a.dv, i, t.grad, a.out, [&](int j) { return p[j * S + i]; });
  }
}

template <typename T, int TILE>
void launch_tiles(const Tensors<T>& t, const Attention& a, cudaStream_t stream) {
  using S = Shape<TILE>;
  const int pack = TILE / a.queries, bytes = S::kHeads * S::bytes(t.grad ? 4 : 3, a.size);
  const dim3 grid(static_cast<unsigned>((a.batches + pack - 1) / pack), static_cast<unsigned>((a.heads + S::kHeads - 1) / S::kHeads));
  const auto kernel = t.grad ? region_attention_backward_kernel<T, TILE> : region_attention_kernel<T, TILE>;
  allow_shared(kOp, kernel, bytes);
  kernel<<<grid, S::kThreads, bytes, stream>>>(t, a, pack);
}

// 16-byte chunks everywhere, and blocks of 16 columns.
template <typename T>
bool tiles_fit(const Tensors<T>& t, const Attention& a) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return sizeof(T) == 2 && a.size % kBlock == 0 && a.size <= 80 && a.q.batch % 8 == 0 && a.q.row % 8 == 0 && aligned(t.qkv) &&
         aligned(t.grad) && aligned(t.out) && aligned(t.dqkv);
}

template <typename T>
void launch(const Tensors<T>& t, const Attention& a, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (attend_by_warps<true>(AttentionData<T>{t.qkv, t.qkv, t.grad, t.out, t.dqkv, t.dqkv}, a, stream)) return;
    if (tiles_fit(t, a)) {
      if (a.queries <= 16) launch_tiles<T, 16>(t, a, stream);
      else if (a.queries <= 32) launch_tiles<T, 32>(t, a, stream);
      else if (a.queries <= 64) launch_tiles<T, 64>(t, a, stream);
      else launch_tiles<T, 128>(t, a, stream);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      return;
    }
  }
  const int bytes = a.queries * a.queries * 4 * (t.grad ? 2 : 1);
  allow_shared(kOp, plain_kernel<T>, bytes);
  plain_kernel<T><<<dim3(static_cast<unsigned>(a.batches), a.heads), kPlainThreads, bytes, stream>>>(t, a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch(const Attention& a, const Tensor* grad, const Tensor& qkv, const Tensor& out, const Tensor* dqkv) {
  STD_TORCH_CHECK(a.queries <= kMaxSequence && a.size <= kMaxHead, "region_attention: sequences and heads are at most 128 on a GPU");
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    launch<T>({data<const T>(grad), data<const T>(&qkv), data<T>(&out), data<T>(dqkv)}, a, stream_of(qkv));
  };
  switch (qkv.scalar_type()) {
    case ScalarType::Float: with(float{}); break;
    case ScalarType::BFloat16: with(__nv_bfloat16{}); break;
    case ScalarType::Half: with(__half{}); break;
    default: STD_TORCH_CHECK(false, "region_attention: dtype must be float32, bfloat16 or float16");
  }
}

Tensor region_attention(const Tensor& qkv, int64_t heads) {
  const torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  const Attention a = region_attention_shape(qkv, heads);
  Tensor out = new_answer(qkv, a);
  if (a.batches) launch(a, nullptr, qkv, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> region_attention_backward(const Tensor& grad, const Tensor& qkv, int64_t heads, bool recompute) {
  const torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  const Attention a = region_attention_shape(qkv, heads);
  check_grad(grad, qkv, a);
  Tensor dqkv = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2)}), out = new_answer(qkv, a, recompute);
  if (a.batches) launch(a, &grad, qkv, out, &dqkv);
  return {dqkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m) {
  m.impl("region_attention", TORCH_BOX(&avfmae::region_attention));
  m.impl("region_attention_backward", TORCH_BOX(&avfmae::region_attention_backward));
}

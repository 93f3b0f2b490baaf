// What the GPU computes between products; compiled for the GPU at hand by NVRTC, when a model is loaded.
//
// Numbers between kernels are fp16, sums and statistics are fp32. Tokens of all sequences lie one after the
// other: no kernel knows of padding. Given by the compiler's options: HEAD (components of a head, 32, 64 or 128)
// and HIDDEN (a multiple of 8).
//
// Without CUDA's headers, which an installation that only serves does not have.

typedef unsigned short Half;
typedef unsigned int Pair;  // of halves, the first in the low bits

struct alignas(16) Four { Pair x, y, z, w; };
struct alignas(8) Two { Pair x, y; };
struct alignas(16) Tile { int start, length, query, pad; };  // of one sequence: its first token, how many, the first query

#ifndef ON_CPU  // where tests/mexma/cuda_on_cpu.cpp has its own
__device__ __forceinline__ float2 wide(Pair p) {
  float2 f;
  asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(f.x), "=f"(f.y) : "r"(p));
  return f;
}
__device__ __forceinline__ Pair narrow(float low, float high) {
  Pair p;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(high), "f"(low));
  return p;
}
__device__ __forceinline__ float exp2_(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// c += a b, 16 x 16 by 16 x 8, as PTX lays mma.m16n8k16 out: lane 4 g + t has rows g and g + 8 of a and c, column g of b.
__device__ __forceinline__ void product(float* c, Pair a0, Pair a1, Pair a2, Pair a3, Pair b0, Pair b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// The sum over the lanes of a warp, the same on each of them.
__device__ __forceinline__ float over_warp(float x) {
#pragma unroll
  for (int far = 16; far; far /= 2) x += __shfl_xor_sync(~0u, x, far);
  return x;
}

constexpr int WARP = 32, WARPS = 4;
constexpr int PARTS = HIDDEN / 8;                       // of 16 bytes in a row
constexpr int MINE = (PARTS + WARP - 1) / WARP;         // of them for each lane

// Normalise a row that the lanes of a warp hold, and write it. weight, bias: fp32 [HIDDEN].
__device__ __forceinline__ void normalised(const float (*row)[8], int lane, const float* weight, const float* bias, float eps, Half* out) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < MINE; i++)
    if (i * WARP + lane < PARTS)
#pragma unroll
      for (int j = 0; j < 8; j++) sum += row[i][j];
  const float mean = over_warp(sum) / HIDDEN;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < MINE; i++)
    if (i * WARP + lane < PARTS)
#pragma unroll
      for (int j = 0; j < 8; j++) squares += (row[i][j] - mean) * (row[i][j] - mean);
  const float scale = rsqrtf(over_warp(squares) / HIDDEN + eps);
#pragma unroll
  for (int i = 0; i < MINE; i++) {
    const int part = i * WARP + lane;
    if (part >= PARTS) continue;
    const float4* w = reinterpret_cast<const float4*>(weight + part * 8);
    const float4* b = reinterpret_cast<const float4*>(bias + part * 8);
    const float4 w0 = w[0], w1 = w[1], b0 = b[0], b1 = b[1];
    const float* x = row[i];
    Four y;
    y.x = narrow((x[0] - mean) * scale * w0.x + b0.x, (x[1] - mean) * scale * w0.y + b0.y);
    y.y = narrow((x[2] - mean) * scale * w0.z + b0.z, (x[3] - mean) * scale * w0.w + b0.w);
    y.z = narrow((x[4] - mean) * scale * w1.x + b1.x, (x[5] - mean) * scale * w1.y + b1.y);
    y.w = narrow((x[6] - mean) * scale * w1.z + b1.z, (x[7] - mean) * scale * w1.w + b1.w);
    reinterpret_cast<Four*>(out)[part] = y;
  }
}
__device__ __forceinline__ void widened(Four v, float* x) {
  const Pair pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 f = wide(pairs[j]);
    x[2 * j] = f.x, x[2 * j + 1] = f.y;
  }
}

// A token's vector and its place's, normalised. table: fp16 [rows, HIDDEN]; positions: fp32 [places, HIDDEN].
extern "C" __global__ void __launch_bounds__(WARP* WARPS) embed(
    const int* ids, const int* places, const Half* table, const float* positions, const float* weight, const float* bias, float eps, Half* out, int tokens) {
  const int token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (token >= tokens) return;
  const Four* from = reinterpret_cast<const Four*>(table + size_t(ids[token]) * HIDDEN);
  const float4* place = reinterpret_cast<const float4*>(positions + size_t(places[token]) * HIDDEN);
  float row[MINE][8];
#pragma unroll
  for (int i = 0; i < MINE; i++) {
    const int part = i * WARP + lane;
    if (part >= PARTS) continue;
    widened(from[part], row[i]);
    const float4 a = place[2 * part], b = place[2 * part + 1];
    row[i][0] += a.x, row[i][1] += a.y, row[i][2] += a.z, row[i][3] += a.w;
    row[i][4] += b.x, row[i][5] += b.y, row[i][6] += b.z, row[i][7] += b.w;
  }
  normalised(row, lane, weight, bias, eps, out + size_t(token) * HIDDEN);
}

// in, out: fp16 [tokens, HIDDEN].
extern "C" __global__ void __launch_bounds__(WARP* WARPS) normalise(const Half* in, const float* weight, const float* bias, float eps, Half* out, int tokens) {
  const int token = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (token >= tokens) return;
  const Four* from = reinterpret_cast<const Four*>(in + size_t(token) * HIDDEN);
  float row[MINE][8];
#pragma unroll
  for (int i = 0; i < MINE; i++)
    if (i * WARP + lane < PARTS) widened(from[i * WARP + lane], row[i]);
  normalised(row, lane, weight, bias, eps, out + size_t(token) * HIDDEN);
}

constexpr int ROWS = HEAD < 128 ? 2 : 1;  // blocks of 16 queries for each warp; as many as registers hold
constexpr int CHUNKS = HEAD / 32;       // of a head's components
constexpr int KEYS = 32;                // at once
constexpr int EACH = HEAD / 8;          // components that a lane has of a value
constexpr int VALUE_TWOS = EACH / 4;    // 8 bytes each

// Attention of 32 queries (16 with heads of 128) of one sequence and one head, by one warp, without shared memory: what a product sums over
// may stand in any order, so each lane takes 16 bytes that lie together, of queries and of keys alike, and the columns of
// a product may be any of a value's, so it takes those that lie together there. The queries come multiplied with log2(e) / sqrt(HEAD).
//
// qkv: fp16 [tokens, 3 HIDDEN]. out: fp16 [tokens, HIDDEN]. tiles: [count]. A grid of (count / WARPS, heads).
extern "C" __global__ void __launch_bounds__(WARP* WARPS) attend(const Half* qkv, Half* out, const Tile* tiles, int count) {
  const int item = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (item >= count) return;
  const Tile tile = tiles[item];
  const int g = lane / 4, t = lane % 4, last = tile.length - 1;
  if (tile.query > last) return;  // of a recorded graph for a longer text
  const size_t stride = 3 * HIDDEN;
  const Half* queries = qkv + size_t(tile.start) * stride + blockIdx.y * HEAD;
  const Half *keys = queries + HIDDEN, *values = keys + HIDDEN;

  Four query[ROWS][2][CHUNKS];  // rows g and g + 8 of each block
#pragma unroll
  for (int m = 0; m < ROWS; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = min(tile.query + m * 16 + r * 8 + g, last);
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) query[m][r][c] = *reinterpret_cast<const Four*>(queries + row * stride + c * 32 + t * 8);
    }
  float mixed[ROWS][EACH][4], best[ROWS][2], sums[ROWS][2];
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
#pragma unroll
    for (int j = 0; j < EACH; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) mixed[m][j][i] = 0;
    best[m][0] = best[m][1] = __int_as_float(0xff800000);
    sums[m][0] = sums[m][1] = 0;
  }
  for (int from = 0; from < tile.length; from += KEYS) {
    float scores[ROWS][KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[m][n][i] = 0;
      const size_t key = min(from + n * 8 + g, last) * stride;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const Four k = *reinterpret_cast<const Four*>(keys + key + c * 32 + t * 8);
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
          const Four a = query[m][0][c], b = query[m][1][c];
          product(scores[m][n], a.x, b.x, a.y, b.y, k.x, k.y);
          product(scores[m][n], a.z, b.z, a.w, b.w, k.z, k.w);
        }
      }
#pragma unroll
      for (int m = 0; m < ROWS; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (from + n * 8 + t * 2 + i % 2 > last) scores[m][n][i] = __int_as_float(0xff800000);
    }
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float most = best[m][r];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float fade = exp2_(best[m][r] - most);
        best[m][r] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) sum += scores[m][n][2 * r + i] = exp2_(scores[m][n][2 * r + i] - most);
        sums[m][r] = sums[m][r] * fade + sum;
#pragma unroll
        for (int j = 0; j < EACH; j++) mixed[m][j][2 * r] *= fade, mixed[m][j][2 * r + 1] *= fade;
      }
#pragma unroll
    for (int s = 0; s < KEYS / 16; s++) {
      if (from + s * 16 > last) break;
      Two value[4][VALUE_TWOS];  // of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const size_t key = min(from + s * 16 + t * 2 + i % 2 + i / 2 * 8, last) * stride;
#pragma unroll
        for (int w = 0; w < VALUE_TWOS; w++) value[i][w] = reinterpret_cast<const Two*>(values + key + g * EACH)[w];
      }
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
        const float *low = scores[m][2 * s], *high = scores[m][2 * s + 1];
        const Pair a0 = narrow(low[0], low[1]), a1 = narrow(low[2], low[3]), a2 = narrow(high[0], high[1]), a3 = narrow(high[2], high[3]);
#pragma unroll
        for (int w = 0; w < VALUE_TWOS; w++) {
          const Two *v = &value[0][w], *v1 = &value[1][w], *v2 = &value[2][w], *v3 = &value[3][w];
          product(mixed[m][4 * w], a0, a1, a2, a3, __byte_perm(v->x, v1->x, 0x5410), __byte_perm(v2->x, v3->x, 0x5410));
          product(mixed[m][4 * w + 1], a0, a1, a2, a3, __byte_perm(v->x, v1->x, 0x7632), __byte_perm(v2->x, v3->x, 0x7632));
          product(mixed[m][4 * w + 2], a0, a1, a2, a3, __byte_perm(v->y, v1->y, 0x5410), __byte_perm(v2->y, v3->y, 0x5410));
          product(mixed[m][4 * w + 3], a0, a1, a2, a3, __byte_perm(v->y, v1->y, 0x7632), __byte_perm(v2->y, v3->y, 0x7632));
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < ROWS; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = sums[m][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = tile.query + m * 16 + r * 8 + g;
      if (row > last) continue;
      const float scale = 1 / sum;
      Two* to = reinterpret_cast<Two*>(out + size_t(tile.start + row) * HIDDEN + blockIdx.y * HEAD + t * 2 * EACH);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int w = 0; w < VALUE_TWOS; w++)
          to[i * VALUE_TWOS + w] = {
              narrow(mixed[m][4 * w][2 * r + i] * scale, mixed[m][4 * w + 1][2 * r + i] * scale),
              narrow(mixed[m][4 * w + 2][2 * r + i] * scale, mixed[m][4 * w + 3][2 * r + i] * scale)};
    }
}

// One vector of each sequence, by one block: the first token's or the mean, of unit length where `unit` says so.
// states: fp16 [tokens, HIDDEN]. bounds: [sequences + 1]. out: fp32 [sequences, HIDDEN].
extern "C" __global__ void __launch_bounds__(128) pool(const Half* states, const int* bounds, int mean, int unit, float* out) {
  constexpr int PAIRS = HIDDEN / 2, OWN = (PAIRS + 127) / 128;
  __shared__ float shared[4];
  const int from = bounds[blockIdx.x], to = mean ? bounds[blockIdx.x + 1] : from + 1;
  const Pair* rows = reinterpret_cast<const Pair*>(states);
  float2 sum[OWN];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int pair = i * 128 + threadIdx.x;
    sum[i] = {0, 0};
    if (pair >= PAIRS) continue;
    for (int token = from; token < to; token++) {
      const float2 x = wide(rows[size_t(token) * PAIRS + pair]);
      sum[i].x += x.x, sum[i].y += x.y;
    }
    sum[i].x /= to - from, sum[i].y /= to - from;
    squares += sum[i].x * sum[i].x + sum[i].y * sum[i].y;
  }
  squares = over_warp(squares);
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = squares;
  __syncthreads();
  const float length = sqrtf(shared[0] + shared[1] + shared[2] + shared[3]);
  const float scale = unit ? 1 / fmaxf(length, 1e-12f) : 1;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int pair = i * 128 + threadIdx.x;
    if (pair < PAIRS) reinterpret_cast<float2*>(out)[size_t(blockIdx.x) * PAIRS + pair] = {sum[i].x * scale, sum[i].y * scale};
  }
}

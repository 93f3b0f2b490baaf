// Kernel for processors whose AVX-512 multiplies bytes twice as fast as bf16 (Zen 4 and later): the two products
// that end in a sum with the residual, five twelfths of all, in bytes, the others as in avx512_bf16.
//
// A token's 32 neighbouring activations share a scale, as 32 weights of a compact artifact do; so those weights
// are what they were, and what is multiplied by them is off by a 254th of the largest of its 32 at most.

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
#include <immintrin.h>

#include <cmath>

#include "pace.hpp"

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "bf16.hpp"
#include "pairs.hpp"

// Activations: 32 bytes and their scale in the place of 32 bf16. A signed one is its byte less 128, times the
// scale; what gelu gives is not far below zero anywhere, and is its byte times the scale, plus LEAST.
constexpr int ZERO = 128, SCALE_AT = 32;
constexpr float LEAST = -0.1701f;

template <bool SIGNED>
inline void store_bytes(void* to, __m512 low, __m512 high) {
  constexpr float MOST = SIGNED ? 127 : 255;
  if (!SIGNED) low = _mm512_sub_ps(low, _mm512_set1_ps(LEAST)), high = _mm512_sub_ps(high, _mm512_set1_ps(LEAST));
  const __m512i magnitude = _mm512_set1_epi32(SIGNED ? 0x7fffffff : -1);
  // Compared as integers: the largest is NaN where any is.
  const unsigned bits = _mm512_reduce_max_epu32(_mm512_max_epu32(
      _mm512_and_si512(magnitude, _mm512_castps_si512(low)), _mm512_and_si512(magnitude, _mm512_castps_si512(high))));
  float most;
  __builtin_memcpy(&most, &bits, 4);
  const __m512 factor = _mm512_set1_ps(MOST / most);  // infinite for zeros: some byte, whose scale is zero
  const __m512i zero = _mm512_set1_epi32(SIGNED ? ZERO : 0);
  auto* bytes = static_cast<char*>(to);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(_mm512_add_epi32(zero, _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)))));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 16), _mm512_cvtepi32_epi8(_mm512_add_epi32(zero, _mm512_cvtps_epi32(_mm512_mul_ps(high, factor)))));
  const float scale = most * (1 / MOST);
  __builtin_memcpy(bytes + SCALE_AT, &scale, 4);
}

struct StoreBytes {
  static inline void widened(void* to, __m512 low, __m512 high) { store_bytes<false>(to, low, high); }
  static inline void mixed(void* to, __m512 low, __m512 high) { store_bytes<true>(to, low, high); }
};

// Weights: panels of 32 columns, in them blocks of 32 rows: two halves of 16 columns, in them 8 fours of rows;
// the columns' scales; what their sums begin with, int32, so that ZERO is no number. Behind the blocks what LEAST adds, by column.
constexpr size_t SCALES = 1024, BEGIN = SCALES + 128, BLOCK_BYTES = BEGIN + 128, MORE_BYTES = 128;
inline size_t panel_bytes(int k) { return size_t(k) / BLOCK * BLOCK_BYTES + MORE_BYTES; }

struct Bytes : Pairs<StoreBytes> {
  template <bool AHEAD>
  static inline void block(const char* a, size_t a_step, const char* b, int k_blocks, float (&sums)[ROWS][BLOCK]) {
    const size_t panel = size_t(k_blocks) * BLOCK_BYTES + MORE_BYTES;
    for (int block = 0; block < k_blocks; block++, a += a_step, b += BLOCK_BYTES) {
      __m512i whole[ROWS][2];
      for (int r = 0; r < ROWS; r++)
        whole[r][0] = _mm512_load_si512(b + BEGIN), whole[r][1] = _mm512_load_si512(b + BEGIN + 64);
      if (AHEAD)
        for (size_t line = 0; line < BLOCK_BYTES; line += 64) _mm_prefetch(b + panel + line, _MM_HINT_T1);
#pragma GCC unroll 8
      for (int four = 0; four < 8; four++) {
        const __m512i low = _mm512_load_si512(b + four * 64), high = _mm512_load_si512(b + 512 + four * 64);
        for (int r = 0; r < ROWS; r++) {
          int bytes;
          __builtin_memcpy(&bytes, a + r * ROW_BYTES + four * 4, 4);
          const __m512i factor = _mm512_set1_epi32(bytes);
          whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], factor, low);
          whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], factor, high);
        }
      }
      const __m512 low = _mm512_load_ps(b + SCALES), high = _mm512_load_ps(b + SCALES + 64);
      for (int r = 0; r < ROWS; r++) {
        float scale;
        __builtin_memcpy(&scale, a + r * ROW_BYTES + SCALE_AT, 4);
        const __m512 factor = _mm512_set1_ps(scale);
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][0]), low), factor, _mm512_load_ps(sums[r])));
        _mm512_store_ps(sums[r] + 16, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][1]), high), factor, _mm512_load_ps(sums[r] + 16)));
      }
    }
  }

  static void add_product(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual, int width, char*) {
    const size_t step = size_t(stride) * ROW_BYTES;
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * panel_bytes(matrix.k);
      const char* more = b + panel_bytes(matrix.k) - MORE_BYTES;
      const __m512 low = _mm512_load_ps(more), high = _mm512_load_ps(more + 64);
      for (int row = 0; row < rows; row += ROWS) {
        float* c = residual + size_t(row) * width + panel * BLOCK;
        alignas(64) float sums[ROWS][BLOCK];
        for (int r = 0; r < ROWS; r++) {
          _mm512_store_ps(sums[r], _mm512_add_ps(low, _mm512_loadu_ps(c + size_t(r) * width)));
          _mm512_store_ps(sums[r] + 16, _mm512_add_ps(high, _mm512_loadu_ps(c + size_t(r) * width + 16)));
        }
        const char* a = reinterpret_cast<const char*>(x) + row * ROW_BYTES;
        if (row == ahead) block<true>(a, step, b, matrix.k / BLOCK, sums);
        else block<false>(a, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) {
          _mm512_storeu_ps(c + size_t(r) * width, _mm512_load_ps(sums[r]));
          _mm512_storeu_ps(c + size_t(r) * width + 16, _mm512_load_ps(sums[r] + 16));
        }
      }
    }
  }
};

size_t packed_bytes(Product product, int k, int n) {
  const bool bytes = product == Product::attention_out || product == Product::narrow;
  return bytes ? size_t(n) / BLOCK * panel_bytes(k) : bf16_packed_bytes(product, k, n);
}

// The scale of a block's column: the one of which all weights are whole multiples, where there is one, else
// that which gives the largest the last number; NaN where a weight is not finite.
float scale_of(const float* column, int n) {
  float most = 0;
  for (int i = 0; i < BLOCK; i++) {
    if (!std::isfinite(column[size_t(i) * n])) return NAN;
    most = std::fmax(most, std::fabs(column[size_t(i) * n]));
  }
  for (int last = 127; last; last--) {
    const float scale = most / float(last);
    int i = 0;
    while (i < BLOCK && std::nearbyint(column[size_t(i) * n] / scale) * scale == column[size_t(i) * n]) i++;
    if (i == BLOCK) return scale;
  }
  return most / 127;
}

void pack(Product product, const float* matrix, int k, int n, void* packed) {
  if (product == Product::qkv || product == Product::widen) return bf16_pack(product, matrix, k, n, packed);
  auto* out = static_cast<char*>(packed);
  for (int panel = 0; panel < n / BLOCK; panel++) {
    auto* more = reinterpret_cast<float*>(out + panel_bytes(k) - MORE_BYTES);
    for (int c = 0; c < BLOCK; c++) more[c] = 0;
    for (int block = 0; block < k / BLOCK; block++, out += BLOCK_BYTES)
      for (int c = 0; c < BLOCK; c++) {
        const float* column = matrix + size_t(block) * BLOCK * n + panel * BLOCK + c;
        const float scale = scale_of(column, n);
        int total = 0;
        for (int i = 0; i < BLOCK; i++) {
          // Of a scale that is denormal itself it may be more than 127.
          const float whole = scale > 0 ? std::nearbyint(column[size_t(i) * n] / scale) : 0;
          const auto code = static_cast<int8_t>(std::fmax(-127, std::fmin(127, whole)));
          total += code;
          out[(c / 16 * 8 + i / 4) * 64 + c % 16 * 4 + i % 4] = code;
        }
        reinterpret_cast<float*>(out + SCALES)[c] = scale;
        reinterpret_cast<int32_t*>(out + BEGIN)[c] = product == Product::attention_out ? -ZERO * total : 0;
        if (product == Product::narrow) more[c] += LEAST * scale * float(total);
      }
    out += MORE_BYTES;
  }
}

void run(const Model& model, const Workspace& workspace, const Piece& piece, const Team& team) {
  forward<Bytes>(model, workspace, piece, team);
}

}  // namespace

// Products of bytes for one of bf16.
double bytes_pace() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const auto pair = [&](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)one); };
  const auto four = [&](__m512 sum) { return (__m512)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)one, (__m512i)one); };
  return 2 * times_as_fast(four, pair);
}

extern const Kernel avx512_vnni_kernel;
const Kernel avx512_vnni_kernel = {"avx512_vnni", "bf16 and int8", 2, packed_bytes, pack, pairs_scratch_bytes, run};

}  // namespace mexma
#endif

// Kernel for processors whose AVX-512 multiplies pairs of bf16 (Zen 4, Cooper Lake and later): products
// in bf16, attention in fp32.

#include <chrono>

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include <immintrin.h>

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "plain.hpp"
#include "bf16.hpp"

struct Pairs {
  using Element = uint16_t;
  static constexpr int ROWS = 8;

  static inline V widen(const uint16_t* p) {
    return (V)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static inline void store(uint16_t* p, const V (&parts)[PARTS]) { _mm512_storeu_si512(p, narrow(as(parts[0]), as(parts[1]))); }
  static void enter() {}
  static void leave() {}

  static inline void block(const uint16_t* a, size_t a_step, const char* b, int k_blocks, __m512 (&sums)[ROWS][2]) {
    for (int block = 0; block < k_blocks; block++, a += a_step, b += 2048)
      for (int pair = 0; pair < 16; pair++) {
        const __m512bh low = (__m512bh)_mm512_load_si512(b + pair * 64), high = (__m512bh)_mm512_load_si512(b + 1024 + pair * 64);
        for (int r = 0; r < ROWS; r++) {
          int both;
          __builtin_memcpy(&both, a + r * 32 + pair * 2, 4);
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], factor, low);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], factor, high);
        }
      }
  }

  template <bool ACTIVATE>
  static void multiply(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, uint16_t* out, char*) {
    const size_t step = size_t(stride) * BLOCK;
    const Gelu gelu(gelu_table());
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * matrix.k * 64;
      const __m512 bias[2] = {_mm512_loadu_ps(matrix.bias + panel * BLOCK), _mm512_loadu_ps(matrix.bias + panel * BLOCK + 16)};
      for (int row = 0; row < rows; row += ROWS) {
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++) sums[r][0] = bias[0], sums[r][1] = bias[1];
        block(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++)
          _mm512_storeu_si512(out + panel * step + (row + r) * BLOCK, ACTIVATE ? narrow(gelu(sums[r][0]), gelu(sums[r][1])) : narrow(sums[r][0], sums[r][1]));
      }
    }
  }

  static void add_product(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual,
                          int width, char*) {
    const size_t step = size_t(stride) * BLOCK;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * matrix.k * 64;
      for (int row = 0; row < rows; row += ROWS) {
        float* c = residual + size_t(row) * width + panel * BLOCK;
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++) sums[r][0] = _mm512_loadu_ps(c + size_t(r) * width), sums[r][1] = _mm512_loadu_ps(c + size_t(r) * width + 16);
        block(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(c + size_t(r) * width, sums[r][0]), _mm512_storeu_ps(c + size_t(r) * width + 16, sums[r][1]);
      }
    }
  }

  static void attention(const Model& m, const uint16_t* wide, uint16_t* mixed, int stride, int start, int length, int head, char* scratch) {
    RowAttention<Pairs>::run(m, wide, mixed, stride, start, length, head, scratch);
  }
};

// Seconds for 16,384 instructions that do not wait for each other, least of some tries.
template <class Step>
double least_seconds(const Step& step) {
  double least = 1;
  for (int again = 0; again < 16; again++) {
    __m512 sums[16] = {};
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 1024; i++)
#pragma GCC unroll 16
      for (int j = 0; j < 16; j++) {
        sums[j] = step(sums[j]);
        asm volatile("" : "+v"(sums[j]));  // all of them are done
      }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds < least) least = seconds;
  }
  return least;
}

}  // namespace

// Zen 5 multiplies a pair as fast as a single number, so products take half the time (this kernel is 1.8
// times the one in fp32); on Sapphire Rapids it was slower than that one.
double bf16_pace() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const double single = least_seconds([&](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); });
  const double pair = least_seconds([&](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)one); });
  return 2 * single / pair;
}

extern const Kernel avx512_bf16_kernel;
const Kernel avx512_bf16_kernel = {"avx512_bf16", "bf16", 2, bf16_packed_bytes, bf16_pack, row_scratch_bytes<Pairs>, run_forward<Pairs>};

}  // namespace mexma
#endif

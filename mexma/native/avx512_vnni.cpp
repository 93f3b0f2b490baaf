// Kernel for processors that have AVX-512's products of whole numbers, and none of bf16 or no fast ones (Cascade Lake, Ice
// Lake): two of a layer's products in words, with half of fp32's instructions and about as exact, those that end in a sum
// with the residual in bytes, with a quarter. Attention in fp32.

#include <chrono>
#include <cmath>

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include <immintrin.h>

#include "pace.hpp"

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "plain.hpp"
#include "integers.hpp"
#include "gelu_pieces.hpp"

struct StoreMixed {
  static inline void store(float* to, const V (&parts)[PARTS]) { Bytes::put<true>(to, (__m512)parts[0], (__m512)parts[1]); }
};

// Words and bytes stand in the places of 32 floats.
struct Integers {
  using Element = float;
  static constexpr int ROWS = 8, SLOT = BLOCK * sizeof(float);

  static inline void store(float* to, const V (&parts)[PARTS]) { Words::put(to, (__m512)parts[0], (__m512)parts[1]); }
  static void enter() {}
  static void leave() {}

  template <bool ACTIVATE>
  static void multiply(const float* x, int stride, int rows, const Matrix& matrix, int from, int to, float* out, char*) {
    const Gelu gelu(gelu_table());
    Panels<Words>::multiply<SLOT, ROWS>(
        x, stride, rows, matrix, from, to, [&](int, int panel, int half) { return _mm512_loadu_ps(matrix.bias + panel * BLOCK + 16 * half); },
        [&](int row, int panel, __m512 low, __m512 high) {
          float* place = out + (size_t(panel) * stride + row) * BLOCK;
          if (ACTIVATE) Bytes::put<false>(place, gelu(low), gelu(high));
          else _mm512_storeu_ps(place, low), _mm512_storeu_ps(place + 16, high);
        });
  }

  static void add_product(const float* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual, int width, char*) {
    Panels<Bytes>::add_product<SLOT, ROWS>(x, stride, rows, matrix, from, to, residual, width);
  }

  static void attention(const Model& m, const float* wide, float* mixed, int stride, int start, int length, int head, char* scratch) {
    RowAttention<StoreMixed>::run(m, wide, mixed, stride, start, length, head, scratch);
  }
};

size_t packed_bytes(Product product, int k, int n) {
  return in_bytes(product) ? Panels<Bytes>::packed_bytes(k, n) : Panels<Words>::packed_bytes(k, n);
}

void pack(Product product, const float* matrix, int k, int n, void* packed) {
  in_bytes(product) ? pack_bytes(product, matrix, k, n, packed) : Panels<Words>::pack(matrix, k, n, 0, 0, packed);
}

}  // namespace

// Products of words for one of fp32.
double words_pace() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const auto single = [&](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); };
  const auto pair = [&](__m512 sum) { return (__m512)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)one, (__m512i)one); };
  return 2 * times_as_fast(pair, single);
}

extern const Kernel avx512_vnni_kernel;
const Kernel avx512_vnni_kernel = {"avx512_vnni", "int16 and int8", 4, packed_bytes, pack, row_scratch_bytes<StoreMixed>, run_forward<Integers>};

}  // namespace mexma
#endif

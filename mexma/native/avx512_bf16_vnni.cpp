// Kernel for processors whose AVX-512 multiplies bytes twice as fast as bf16 (Zen 5): the two products that end in a sum
// with the residual, five twelfths of all, in bytes, the others as in avx512_bf16.

#include <chrono>
#include <cmath>

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
#include <immintrin.h>

#include "pace.hpp"

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "bf16.hpp"
#include "integers.hpp"
#include "gelu_pieces.hpp"
#include "pairs.hpp"

struct StoreBytes {
  static inline void widened(void* to, __m512 low, __m512 high) { Bytes::put<false>(to, low, high); }
  static inline void mixed(void* to, __m512 low, __m512 high) { Bytes::put<true>(to, low, high); }
};

// Bytes stand in the places of 32 bf16.
struct PairsAndBytes : Pairs<StoreBytes> {
  static void add_product(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual, int width, char*) {
    Panels<Bytes>::add_product<ROW_BYTES, ROWS>(x, stride, rows, matrix, from, to, residual, width);
  }
};

size_t packed_bytes(Product product, int k, int n) {
  return in_bytes(product) ? Panels<Bytes>::packed_bytes(k, n) : bf16_packed_bytes(product, k, n);
}

void pack(Product product, const float* matrix, int k, int n, void* packed) {
  in_bytes(product) ? pack_bytes(product, matrix, k, n, packed) : bf16_pack(product, matrix, k, n, packed);
}

}  // namespace

// Products of bytes for one of bf16.
double bytes_pace() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const auto pair = [&](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)one); };
  const auto four = [&](__m512 sum) { return (__m512)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)one, (__m512i)one); };
  return 2 * times_as_fast(four, pair);
}

extern const Kernel avx512_bf16_vnni_kernel;
const Kernel avx512_bf16_vnni_kernel = {"avx512_bf16_vnni", "bf16 and int8", 2, packed_bytes, pack, pairs_scratch_bytes, run_forward<PairsAndBytes>};

}  // namespace mexma
#endif

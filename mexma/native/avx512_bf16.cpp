// Kernel for processors whose AVX-512 multiplies pairs of bf16 (Zen 4, Cooper Lake and later): products
// in bf16, those of attention too.

#include <chrono>

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include <immintrin.h>

#include "pace.hpp"

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "bf16.hpp"
#include "gelu_pieces.hpp"
#include "pairs.hpp"

}  // namespace

// Zen 5 multiplies a pair as fast as a single number, so products take half the time (this kernel is twice
// as fast as the one in fp32); on Sapphire Rapids it was slower than that one. In turn, the least of each,
// since others may use the processor, too.
double bf16_pace() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const auto single = [&](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); };
  const auto pair = [&](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)one); };
  return 2 * times_as_fast(pair, single);
}

extern const Kernel avx512_bf16_kernel;
const Kernel avx512_bf16_kernel = {"avx512_bf16", "bf16", 2, bf16_packed_bytes, bf16_pack, pairs_scratch_bytes, run_forward<Pairs<StorePairs>>};

}  // namespace mexma
#endif

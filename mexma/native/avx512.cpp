// Kernel in fp32 for processors with AVX-512.

#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "plain.hpp"

}  // namespace

extern const Kernel avx512_kernel;
const Kernel avx512_kernel = {"avx512", "fp32", 4, plain_packed_bytes, plain_pack, row_scratch_bytes<Plain<8, 2>>, run_forward<Plain<8, 2>>};

}  // namespace mexma
#endif

// Kernel in fp32 for processors with AVX2 and FMA.

#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
namespace mexma {
namespace {

constexpr int LANES = 8;
#include "forward.hpp"
#include "plain.hpp"

}  // namespace

// 4 rows of half a panel: 6 loads for 8 products, where 2 rows of a whole one take 10.
extern const Kernel avx2_kernel;
const Kernel avx2_kernel = {"avx2", "fp32", 4, plain_packed_bytes, plain_pack, row_scratch_bytes<Plain<4, 2>>, run_forward<Plain<4, 2>>};

}  // namespace mexma
#endif

// Kernel in fp32 for processors with AVX2 and FMA.

#include "kernel.hpp"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
namespace mexma {
namespace {

#include "forward.hpp"
#include "plain.hpp"

}  // namespace

extern const Kernel avx2_kernel;
const Kernel avx2_kernel = {"avx2", "fp32", 4, plain_packed_bytes, plain_pack, row_scratch_bytes<Plain<2>>, run_forward<Plain<2>>};

}  // namespace mexma
#endif

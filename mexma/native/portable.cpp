// Kernel in fp32 for any processor.

#include "kernel.hpp"


namespace mexma {
namespace {

constexpr int LANES = 4;
#include "forward.hpp"
#include "plain.hpp"

}  // namespace

extern const Kernel portable_kernel;
const Kernel portable_kernel = {"portable", "fp32", 4, plain_packed_bytes, plain_pack, row_scratch_bytes<Plain<1, 8>>, run_forward<Plain<1, 8>>};

}  // namespace mexma


#pragma once

namespace mexma {

// [3][32]: the pieces of half of erf(a / sqrt 2) as powers of a, for bf16.hpp; made in kernels.cpp.
const float (*gelu_table())[32];

}  // namespace mexma

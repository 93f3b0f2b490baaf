// Which kernels there are, whether this processor can run them, and which are slow on it.

#include <cmath>

#include "engine.hpp"
#include "gelu.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mexma {

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel amx_kernel, avx512_bf16_vnni_kernel, avx512_bf16_kernel, avx512_vnni_kernel, avx512_kernel, avx2_kernel;
double bf16_pace();   // products of bf16 for one of fp32, in avx512_bf16.cpp
double bytes_pace();  // products of bytes for one of bf16, in avx512_bf16_vnni.cpp
double words_pace();  // products of words for one of fp32, in avx512_vnni.cpp
#endif

// p(a) = erf(a / sqrt 2) / 2 through three Chebyshev nodes of each piece, as powers of a.
const float (*gelu_table())[32] {
  static float table[3][32];
  static const bool made = [] {
    for (int j = 0; j < 32; j++) {
      const double per_unit = 7, middle = j / per_unit, half = 0.5 / per_unit;
      double x[3], y[3];
      for (int i = 0; i < 3; i++) {
        x[i] = middle + half * std::cos((2 * i + 1) * std::acos(-1.0) / 6);
        y[i] = 0.5 * std::erf(x[i] / std::sqrt(2.0));
      }
      const double d01 = (y[1] - y[0]) / (x[1] - x[0]), d12 = (y[2] - y[1]) / (x[2] - x[1]);
      const double d = (d12 - d01) / (x[2] - x[0]);
      table[2][j] = float(d);
      table[1][j] = float(d01 - d * (x[0] + x[1]));
      table[0][j] = float(y[0] - d01 * x[0] + d * x[0] * x[1]);
    }
    return true;
  }();
  (void)made;
  return table;
}

#if defined(__x86_64__)
namespace {

bool processor_has(const char* feature) {
  unsigned a, b, c, d;
  const std::string f = feature;
  if (f == "amx_bf16" || f == "amx_tile") {
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return d >> (f == "amx_bf16" ? 22 : 24) & 1;
  }
  if (f == "avx512_bf16") return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1) && __builtin_cpu_supports("avx512f");
  if (f == "avx512_vnni") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
  if (f == "avx512f") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (f == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return false;
}

// Linux gives a process the tiles' state only when it asks.
bool system_gives_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

}  // namespace
#endif

const std::vector<const Kernel*>& kernels() {
  static const std::vector<const Kernel*> all = {
#if defined(__x86_64__)
      &amx_kernel, &avx512_bf16_vnni_kernel, &avx512_bf16_kernel, &avx512_vnni_kernel, &avx512_kernel, &avx2_kernel,
#endif
      &portable_kernel};
  return all;
}

std::string missing(const Kernel& kernel) {
#if defined(__x86_64__)
  static const struct {
    const Kernel* kernel;
    std::vector<const char*> features;
  } needs[] = {{&amx_kernel, {"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}},
               {&avx512_bf16_vnni_kernel, {"avx512f", "avx512_bf16", "avx512_vnni"}},
               {&avx512_bf16_kernel, {"avx512f", "avx512_bf16"}},
               {&avx512_vnni_kernel, {"avx512f", "avx512_vnni"}},
               {&avx512_kernel, {"avx512f"}},
               {&avx2_kernel, {"avx2"}}};
  for (const auto& need : needs) {
    if (need.kernel != &kernel) continue;
    for (const char* feature : need.features)
      if (!processor_has(feature)) return std::string("the processor has no ") + feature;
    if (need.kernel == &amx_kernel && !system_gives_tiles()) return "the system does not let this process use AMX";
  }
#endif
  return "";
}

std::string slow(const Kernel& kernel) {
  if (&kernel == &portable_kernel) return "slower than any runtime";
#if defined(__x86_64__)
  if (!missing(kernel).empty()) return "";
  // Measured once, in a millisecond or two: 2, or 1 or less, hardly between.
  constexpr double FASTER = 1.4;
  if (&kernel == &avx512_bf16_kernel || &kernel == &avx512_bf16_vnni_kernel) {
    static const double pace = bf16_pace();
    if (pace < FASTER) return "this processor multiplies bf16 hardly faster than fp32";
  }
  if (&kernel == &avx512_bf16_vnni_kernel) {
    static const double pace = bytes_pace();
    if (pace < FASTER) return "this processor multiplies bytes hardly faster than bf16";
  }
  if (&kernel == &avx512_vnni_kernel) {
    static const double pace = words_pace();
    if (pace < FASTER) return "this processor multiplies words hardly faster than fp32";
  }
#endif
  return "";
}

}  // namespace mexma

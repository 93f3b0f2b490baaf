// How fast this processor's instructions are, measured. Included after the instruction set was chosen, and <chrono> before
// that, since its functions may become those of files for other processors.
#pragma once

namespace mexma {
namespace {

// Seconds for 16,384 instructions that do not wait for each other.
template <class Step>
double seconds_of(const Step& step) {
  __m512 sums[16] = {};
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 1024; i++)
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
      sums[j] = step(sums[j]);
      asm volatile("" : "+v"(sums[j]));  // all of them are done
    }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// How many of `step` take the time of one `other`. In turn, the least of each, since others may use the processor, too.
template <class Step, class Other>
double times_as_fast(const Step& step, const Other& other) {
  double least = 1, others = 1;
  for (int again = 0; again < 200; again++) {
    const double theirs = seconds_of(other), own = seconds_of(step);
    least = own < least ? own : least;
    others = theirs < others ? theirs : others;
  }
  return others / least;
}

}  // namespace
}  // namespace mexma

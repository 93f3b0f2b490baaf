// A GPU for tests where there is none: CUDA's driver, NVRTC and cuBLASLt, as far as mexma/cuda uses them, on the CPU.
//
// Kernels are mexma/cuda/kernels.cu itself, compiled by g++ with -DHIDDEN and -DHEAD. The threads of a block are coroutines that
// run in turn, each to its next meeting with the others of its warp or block; the matrix product of a warp reads its
// operands from the lanes where PTX has them. So what is proved is the kernels' own arithmetic and which lane holds what; not that it is fast,
// nor what happens when threads race. `fail(name, after)` lets a function of the libraries fail.

#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __shared__ static

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Index { unsigned x, y; };
static Index blockIdx, threadIdx;

namespace lanes {

constexpr int MOST = 256, STACK = 256 << 10;

struct Lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool ended = false;
  int meetings = 0;
  uint32_t given[2][6];
};

Lane all[MOST];
ucontext_t scheduler;
int current = 0, count = 0;
const std::function<void()>* body;

void enter() {
  (*body)();
  all[current].ended = true;
}

// Give up to six words to the others of the warp; when this returns all of them have given theirs, which stay
// until the meeting after the next.
int meet(const uint32_t* words, int n) {
  Lane& own = all[current];
  const int turn = own.meetings++ % 2, self = current;
  std::memcpy(own.given[turn], words, n * sizeof *words);
  swapcontext(&own.context, &scheduler);
  current = self;
  threadIdx.x = unsigned(self);
  return turn;
}

void run_block(int threads, const std::function<void()>& work) {
  body = &work, count = threads;
  for (int i = 0; i < threads; i++) {
    Lane& lane = all[i];
    lane.ended = false, lane.meetings = 0;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = STACK;
    lane.context.uc_link = &scheduler;
    makecontext(&lane.context, enter, 0);
  }
  for (bool more = true; more;) {
    more = false;
    for (int i = 0; i < threads; i++) {
      if (all[i].ended) continue;
      current = i, threadIdx.x = unsigned(i);
      swapcontext(&scheduler, &all[i].context);
      more = more || !all[i].ended;
    }
  }
}

}  // namespace lanes

static float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float size = exponent == 0 ? std::ldexp(float(mantissa), -24) : exponent == 31 ? (mantissa ? NAN : INFINITY) : std::ldexp(float(mantissa + 1024), exponent - 25);
  return h & 0x8000 ? -size : size;
}
static uint16_t to_half(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float size = std::fabs(f);
  if (std::isnan(f)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent;
  std::frexp(size, &exponent);  // size < 2^exponent
  const int scale = std::max(exponent - 11, -24);
  const int units = int(std::nearbyint(std::ldexp(size, -scale)));  // to even
  return scale == -24 ? sign | uint16_t(units) : sign | uint16_t(units + ((scale + 24) << 10));
}

static float2 wide(unsigned p) { return {from_half(uint16_t(p)), from_half(uint16_t(p >> 16))}; }
static unsigned narrow(float low, float high) { return to_half(low) | unsigned(to_half(high)) << 16; }
static float exp2_(float x) { return std::exp2(x); }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static int min(int a, int b) { return a < b ? a : b; }
static float __int_as_float(unsigned i) { float f; std::memcpy(&f, &i, 4); return f; }
static unsigned __byte_perm(unsigned a, unsigned b, unsigned how) {
  const uint64_t bytes = a | uint64_t(b) << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= unsigned(bytes >> 8 * (how >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
static float __shfl_xor_sync(unsigned, float x, int far) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const int self = lanes::current, turn = lanes::meet(&word, 1);
  float other;
  std::memcpy(&other, &lanes::all[self ^ far].given[turn][0], 4);
  return other;
}
static void __syncthreads() { const uint32_t none = 0; lanes::meet(&none, 1); }

// As PTX lays out mma.m16n8k16 of fp16.
static void product(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const uint32_t words[6] = {a0, a1, a2, a3, b0, b1};
  const int self = lanes::current, warp = self / 32 * 32, g = self % 32 / 4, t = self % 4;
  const int turn = lanes::meet(words, 6);
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = t * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) {
      const uint32_t a = lanes::all[warp + row % 8 * 4 + k % 8 / 2].given[turn][row / 8 + k / 8 * 2];
      const uint32_t b = lanes::all[warp + column * 4 + k % 8 / 2].given[turn][4 + k / 8];
      sum += from_half(uint16_t(a >> k % 2 * 16)) * from_half(uint16_t(b >> k % 2 * 16));
    }
    c[i] += sum;
  }
}

#include "../../mexma/cuda/kernels.cu"

namespace {

struct Failing {
  int after, times;  // calls that go well before some fail, and how many do
};
std::map<std::string, Failing> failing;
std::mutex one_at_a_time;
std::string options_seen;
int major_version = 9, graphs_recorded = 0;
std::atomic<int> living{0};  // of all that has to be given back
thread_local int pushed = 0;

int made(int status) { return living += !status, status; }
int gone(int status) { return living--, status; }

bool fails(const char* name) {
  const auto found = failing.find(name);
  if (found == failing.end()) return false;
  return found->second.after-- <= 0 && found->second.times-- > 0;
}

template <class T>
T argument(void** arguments, int i) { return *static_cast<T*>(arguments[i]); }
template <class T>
T* pointer(void** arguments, int i) { return reinterpret_cast<T*>(argument<unsigned long long>(arguments, i)); }

using Call = std::function<void()>;
using Kernel = Call (*)(void**);

// What a stream was given while it was recorded.
using Recorded = std::vector<Call>;
thread_local Recorded* recording = nullptr;

void now_or_later(Call call) {
  if (recording)
    recording->push_back(std::move(call));
  else
    call();
}

Call call_embed(void** a) {
  return [a0 = pointer<int>(a, 0), a1 = pointer<int>(a, 1), a2 = pointer<Half>(a, 2), a3 = pointer<float>(a, 3), a4 = pointer<float>(a, 4), a5 = pointer<float>(a, 5), a6 = argument<float>(a, 6), a7 = pointer<Half>(a, 7), a8 = argument<int>(a, 8)] { embed(a0, a1, a2, a3, a4, a5, a6, a7, a8); };
}
Call call_normalise(void** a) {
  return [a0 = pointer<Half>(a, 0), a1 = pointer<float>(a, 1), a2 = pointer<float>(a, 2), a3 = argument<float>(a, 3), a4 = pointer<Half>(a, 4), a5 = argument<int>(a, 5)] { normalise(a0, a1, a2, a3, a4, a5); };
}
Call call_attend(void** a) {
  return [a0 = pointer<Half>(a, 0), a1 = pointer<Half>(a, 1), a2 = pointer<Tile>(a, 2), a3 = argument<int>(a, 3)] { attend(a0, a1, a2, a3); };
}
Call call_pool(void** a) {
  return [a0 = pointer<Half>(a, 0), a1 = pointer<int>(a, 1), a2 = argument<int>(a, 2), a3 = argument<int>(a, 3), a4 = pointer<float>(a, 4)] { pool(a0, a1, a2, a3, a4); };
}

struct Description { int transposed = 0, epilogue = 1; unsigned long long bias = 0; };
struct Layout { uint64_t rows, columns; int64_t stride; };
struct Heuristic { uint64_t algorithm[8]; size_t bytes; int state; float waves; int reserved[4]; };

}  // namespace

namespace {

void multiply(Description description, Layout la, Layout lb, Layout ld, const uint16_t* weights, const uint16_t* in, const uint16_t* residual, float by, float times, uint16_t* out) {
  const auto* bias = reinterpret_cast<const uint16_t*>(description.bias);
  std::vector<float> wide_weights(la.rows * la.columns), row(lb.rows);
  for (uint64_t n = 0; n < la.columns; n++)
    for (uint64_t k = 0; k < la.rows; k++) wide_weights[n * la.rows + k] = from_half(weights[n * la.stride + k]);
  for (uint64_t t = 0; t < lb.columns; t++) {
    for (uint64_t k = 0; k < lb.rows; k++) row[k] = from_half(in[t * lb.stride + k]);
    for (uint64_t n = 0; n < la.columns; n++) {
      float sum = 0;
      for (uint64_t k = 0; k < la.rows; k++) sum += wide_weights[n * la.rows + k] * row[k];
      sum *= by;
      if (times) sum += times * from_half(residual[t * ld.stride + n]);
      sum += from_half(bias[n]);
      if (description.epilogue == 36) sum *= 0.5f * (1 + std::tanh(0.7978845608f * (sum + 0.044715f * sum * sum * sum)));
      out[t * ld.stride + n] = to_half(sum);
    }
  }
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API void fail(const char* name, int after, int times) { failing[name] = {after, times}; }
API int alive() { return living; }
API int contexts_left() { return pushed; }
API void heal() { failing.clear(); }
API void be_version(int major) { major_version = major; }
API const char* options() { return options_seen.c_str(); }

API int cuInit(unsigned) { return fails("cuInit") ? 100 : 0; }
API int cuGetErrorString(int, const char** words) { return *words = "the test said so", 0; }
API int cuDeviceGetCount(int* n) { return *n = fails("cuDeviceGetCount") ? 0 : 1, 0; }
API int cuDeviceGet(int* device, int) { return *device = 0, 0; }
API int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "a CPU that stands for a GPU"), 0; }
API int cuDeviceGetAttribute(int* value, int which, int) { return *value = which == 75 ? major_version : 0, 0; }
API int cuDevicePrimaryCtxRetain(void** context, int) { return made(fails("cuDevicePrimaryCtxRetain") ? 2 : (*context = context, 0)); }
API int cuDevicePrimaryCtxRelease_v2(int) { return gone(0); }
API int cuCtxPushCurrent_v2(void*) { return pushed++, 0; }
API int cuCtxPopCurrent_v2(void** context) { return *context = nullptr, pushed--, 0; }
API int cuModuleLoadData(void** module, const void*) { return made(fails("cuModuleLoadData") ? 209 : (*module = module, 0)); }
API int cuModuleUnload(void*) { return gone(0); }
API int cuModuleGetFunction(void** function, void*, const char* name) {
  static const std::map<std::string, Kernel> all = {{"embed", call_embed}, {"normalise", call_normalise}, {"attend", call_attend}, {"pool", call_pool}};
  const auto found = all.find(name);
  if (found == all.end()) return 500;
  return *function = reinterpret_cast<void*>(found->second), 0;
}
API int cuLaunchKernel(void* function, unsigned across, unsigned down, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*, void** arguments, void**) {
  if (fails("cuLaunchKernel")) return 700;
  const Call call = reinterpret_cast<Kernel>(function)(arguments);  // arguments are read now, as CUDA does
  now_or_later([=] {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    for (blockIdx.y = 0; blockIdx.y < down; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < across; blockIdx.x++) lanes::run_block(int(threads), call);
  });
  return 0;
}
// Filled, so that what is read before it is written shows.
static void* filled(size_t bytes) {
  void* at = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (at) std::memset(at, 0xff, bytes);
  return at;
}
API int cuMemAlloc_v2(unsigned long long* at, size_t bytes) { return made(fails("cuMemAlloc_v2") ? 2 : (*at = reinterpret_cast<unsigned long long>(filled(bytes)), 0)); }
API int cuMemFree_v2(unsigned long long at) { return std::free(reinterpret_cast<void*>(at)), gone(0); }
API int cuMemAllocHost_v2(void** at, size_t bytes) { return made(fails("cuMemAllocHost_v2") ? 2 : (*at = filled(bytes), 0)); }
API int cuMemFreeHost(void* at) { return std::free(at), gone(0); }
API int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void*) { return now_or_later([=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); }), 0; }
API int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) { return now_or_later([=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); }), fails("cuMemcpyDtoHAsync_v2") ? 719 : 0; }
API int cuStreamCreate(void** stream, unsigned) { return made(fails("cuStreamCreate") ? 2 : (*stream = stream, 0)); }
API int cuStreamDestroy_v2(void*) { return gone(0); }
API int cuStreamSynchronize(void*) { return fails("cuStreamSynchronize") ? 719 : 0; }
API int cuEventCreate(void** event, unsigned) { return made(fails("cuEventCreate") ? 2 : (*event = event, 0)); }
API int cuEventDestroy_v2(void*) { return gone(0); }
API int cuEventRecord(void*, void*) { return 0; }
API int cuEventSynchronize(void*) { return 0; }

API int cuStreamBeginCapture_v2(void*, int) { return fails("cuStreamBeginCapture_v2") ? 900 : (recording = new Recorded, 0); }
API int cuStreamEndCapture(void*, void** graph) { return *graph = recording, recording = nullptr, living++, fails("cuStreamEndCapture") ? 901 : 0; }
API int cuGraphInstantiateWithFlags(void** run, void* graph, unsigned long long) { return fails("cuGraphInstantiateWithFlags") ? 2 : made((graphs_recorded++, *run = new Recorded(*static_cast<Recorded*>(graph)), 0)); }
API int cuGraphDestroy(void* graph) { return delete static_cast<Recorded*>(graph), gone(0); }
API int cuGraphLaunch(void* run, void*) {
  if (fails("cuGraphLaunch")) return 700;
  for (const Call& call : *static_cast<Recorded*>(run)) call();
  return 0;
}
API int cuGraphExecDestroy(void* run) { return delete static_cast<Recorded*>(run), gone(0); }
API int recorded() { return graphs_recorded; }

API int nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) { return *program = program, made(0); }
API int nvrtcCompileProgram(void*, int n, const char* const* options) {
  options_seen.clear();
  for (int i = 0; i < n; i++) options_seen += std::string(options[i]) + " ";
  return fails("nvrtcCompileProgram") ? 6 : 0;
}
API int nvrtcGetProgramLogSize(void*, size_t* size) { return *size = 22, 0; }
API int nvrtcGetProgramLog(void*, char* log) { return std::strcpy(log, "error: it is no source"), 0; }
API int nvrtcGetCUBINSize(void*, size_t* size) { return *size = 1, 0; }
API int nvrtcGetCUBIN(void*, char* code) { return *code = 0, fails("nvrtcGetCUBIN") ? 3 : 0; }
API int nvrtcDestroyProgram(void**) { return gone(0); }

API int cublasLtCreate(void** handle) { return made(fails("cublasLtCreate") ? 1 : (*handle = handle, 0)); }
API int cublasLtDestroy(void*) { return gone(0); }
API int cublasLtMatmulDescCreate(void** out, int, int) { return *out = new Description, made(0); }
API int cublasLtMatmulDescSetAttribute(void* at, int which, const void* value, size_t) {
  auto* description = static_cast<Description*>(at);
  if (which == 3) std::memcpy(&description->transposed, value, 4);
  if (which == 7) std::memcpy(&description->epilogue, value, 4);
  if (which == 8) std::memcpy(&description->bias, value, 8);
  return 0;
}
API int cublasLtMatmulDescDestroy(void* at) { return delete static_cast<Description*>(at), gone(0); }
API int cublasLtMatrixLayoutCreate(void** out, int, uint64_t rows, uint64_t columns, int64_t stride) { return made(fails("cublasLtMatrixLayoutCreate") ? 3 : (*out = new Layout{rows, columns, stride}, 0)); }
API int cublasLtMatrixLayoutDestroy(void* at) { return delete static_cast<Layout*>(at), gone(0); }
API int cublasLtMatmulPreferenceCreate(void** out) { return *out = out, made(0); }
API int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
API int cublasLtMatmulPreferenceDestroy(void*) { return gone(0); }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int wanted, Heuristic* found, int* count) {
  *count = fails("cublasLtMatmulAlgoGetHeuristic") ? 0 : min(wanted, 2);
  for (int i = 0; i < *count; i++) found[i] = {}, found[i].algorithm[0] = 7 + i;
  return 0;
}
API int cublasLtMatmul(void*, void* how, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta, const void* c,
                       void*, void* d, void* d_layout, const uint64_t* algorithm, void*, size_t, void*) {
  if (fails("cublasLtMatmul") || *algorithm < 7 || *algorithm > 8) return 14;
  const auto description = *static_cast<Description*>(how);
  const auto la = *static_cast<Layout*>(a_layout), lb = *static_cast<Layout*>(b_layout), ld = *static_cast<Layout*>(d_layout);
  if (description.transposed != 1 || la.rows != lb.rows || ld.rows != la.columns || ld.columns != lb.columns) return 7;
  const auto *weights = static_cast<const uint16_t*>(a), *in = static_cast<const uint16_t*>(b), *residual = static_cast<const uint16_t*>(c);
  const float by = *static_cast<const float*>(alpha), times = *static_cast<const float*>(beta);
  now_or_later([=] { multiply(description, la, lb, ld, weights, in, residual, by, times, static_cast<uint16_t*>(d)); });
  return 0;
}

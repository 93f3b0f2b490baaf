// What is used of CUDA's driver, its run-time compiler and its products, loaded when a GPU is asked for.
//
// So the extension is compiled, and the package installed, where there is none of it. The declarations repeat
// NVIDIA's: cuda.h (driver API), nvrtc.h and cublasLt.h of CUDA 12 and 13.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace mexma::cuda {

// A GPU that cannot be had, or failed; not the caller's fault. Whatever else was asked of it then may fail, too.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Pointer = unsigned long long;  // on the device
using Device = int;
struct Opaque;
using Context = Opaque*;
using Module = Opaque*;
using Function = Opaque*;
using Stream = Opaque*;
using Event = Opaque*;
using Graph = Opaque*;
using GraphRun = Opaque*;
using Program = Opaque*;
using LtHandle = Opaque*;
using MatmulDescription = Opaque*;
using Layout = Opaque*;
using Preference = Opaque*;

struct Algorithm {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76;  // CUdevice_attribute
constexpr unsigned STREAM_NON_BLOCKING = 1, EVENT_BLOCKING_UNTIMED = 3, CAPTURE_RELAXED = 2;
constexpr int TYPE_F32 = 0, TYPE_F16 = 2, COMPUTE_F32 = 68;  // cudaDataType_t, cublasComputeType_t
constexpr int MATMUL_TRANSPOSE_A = 3, MATMUL_EPILOGUE = 7, MATMUL_BIAS = 8, TRANSPOSED = 1;
constexpr int EPILOGUE_BIAS = 4, EPILOGUE_GELU_BIAS = 36;
constexpr int PREFERENCE_WORKSPACE_BYTES = 1;

struct Paths {
  std::string driver, compiler, products;
};

// Each of them named as the library calls it, less its prefix. Throws CudaError where one is not there.
class Libraries {
 public:
  explicit Libraries(const Paths& paths);

  int (*init)(unsigned);
  int (*error_string)(int, const char**);
  int (*device_count)(int*);
  int (*device_get)(Device*, int);
  int (*device_name)(char*, int, Device);
  int (*device_attribute)(int*, int, Device);
  int (*context_retain)(Context*, Device);
  int (*context_release)(Device);
  int (*context_push)(Context);
  int (*context_pop)(Context*);
  int (*module_load)(Module*, const void*);
  int (*module_unload)(Module);
  int (*module_function)(Function*, Module, const char*);
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**);
  int (*allocate)(Pointer*, size_t);
  int (*release)(Pointer);
  int (*allocate_host)(void**, size_t);
  int (*release_host)(void*);
  int (*to_device)(Pointer, const void*, size_t, Stream);
  int (*to_host)(void*, Pointer, size_t, Stream);
  int (*stream_create)(Stream*, unsigned);
  int (*stream_destroy)(Stream);
  int (*stream_wait)(Stream);
  int (*event_create)(Event*, unsigned);
  int (*event_destroy)(Event);
  int (*event_record)(Event, Stream);
  int (*event_wait)(Event);
  int (*capture_begin)(Stream, int);
  int (*capture_end)(Stream, Graph*);
  int (*graph_prepare)(GraphRun*, Graph, unsigned long long);
  int (*graph_destroy)(Graph);
  int (*graph_launch)(GraphRun, Stream);
  int (*graph_run_destroy)(GraphRun);

  int (*program_create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*program_compile)(Program, int, const char* const*);
  int (*program_log_size)(Program, size_t*);
  int (*program_log)(Program, char*);
  int (*program_code_size)(Program, size_t*);
  int (*program_code)(Program, char*);
  int (*program_destroy)(Program*);

  int (*lt_create)(LtHandle*);
  int (*lt_destroy)(LtHandle);
  int (*matmul_create)(MatmulDescription*, int, int);
  int (*matmul_set)(MatmulDescription, int, const void*, size_t);
  int (*matmul_destroy)(MatmulDescription);
  int (*layout_create)(Layout*, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_set)(Preference, int, const void*, size_t);
  int (*preference_destroy)(Preference);
  int (*heuristics)(LtHandle, MatmulDescription, Layout, Layout, Layout, Layout, Preference, int, Heuristic*, int*);
  int (*matmul)(LtHandle, MatmulDescription, const void*, const void*, Layout, const void*, Layout, const void*,
                const void*, Layout, void*, Layout, const Algorithm*, void*, size_t, Stream);

  // Throw CudaError where `status` is an error: of the driver, or of another library.
  void check(int status, const char* what) const;
  static void check_other(int status, const char* what);
};

}  // namespace mexma::cuda

#include "libraries.hpp"

#include <dlfcn.h>

namespace mexma::cuda {

namespace {

class Library {
 public:
  explicit Library(const std::string& path) : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw CudaError(dlerror());
  }
  // Never closed: CUDA does not stand that.
  template <class F>
  void get(F& function, const char* name) const {
    function = reinterpret_cast<F>(dlsym(handle_, name));
    if (!function) throw CudaError(path_ + " has no " + name + "; is it older than CUDA 12?");
  }

 private:
  std::string path_;
  void* handle_;
};

}  // namespace

Libraries::Libraries(const Paths& paths) {
  const Library driver(paths.driver), compiler(paths.compiler), products(paths.products);
  driver.get(init, "cuInit");
  driver.get(error_string, "cuGetErrorString");
  driver.get(device_count, "cuDeviceGetCount");
  driver.get(device_get, "cuDeviceGet");
  driver.get(device_name, "cuDeviceGetName");
  driver.get(device_attribute, "cuDeviceGetAttribute");
  driver.get(context_retain, "cuDevicePrimaryCtxRetain");
  driver.get(context_release, "cuDevicePrimaryCtxRelease_v2");
  driver.get(context_push, "cuCtxPushCurrent_v2");
  driver.get(context_pop, "cuCtxPopCurrent_v2");
  driver.get(module_load, "cuModuleLoadData");
  driver.get(module_unload, "cuModuleUnload");
  driver.get(module_function, "cuModuleGetFunction");
  driver.get(launch, "cuLaunchKernel");
  driver.get(allocate, "cuMemAlloc_v2");
  driver.get(release, "cuMemFree_v2");
  driver.get(allocate_host, "cuMemAllocHost_v2");
  driver.get(release_host, "cuMemFreeHost");
  driver.get(to_device, "cuMemcpyHtoDAsync_v2");
  driver.get(to_host, "cuMemcpyDtoHAsync_v2");
  driver.get(stream_create, "cuStreamCreate");
  driver.get(stream_destroy, "cuStreamDestroy_v2");
  driver.get(stream_wait, "cuStreamSynchronize");
  driver.get(event_create, "cuEventCreate");
  driver.get(event_destroy, "cuEventDestroy_v2");
  driver.get(event_record, "cuEventRecord");
  driver.get(event_wait, "cuEventSynchronize");
  driver.get(capture_begin, "cuStreamBeginCapture_v2");
  driver.get(capture_end, "cuStreamEndCapture");
  driver.get(graph_prepare, "cuGraphInstantiateWithFlags");
  driver.get(graph_destroy, "cuGraphDestroy");
  driver.get(graph_launch, "cuGraphLaunch");
  driver.get(graph_run_destroy, "cuGraphExecDestroy");

  compiler.get(program_create, "nvrtcCreateProgram");
  compiler.get(program_compile, "nvrtcCompileProgram");
  compiler.get(program_log_size, "nvrtcGetProgramLogSize");
  compiler.get(program_log, "nvrtcGetProgramLog");
  compiler.get(program_code_size, "nvrtcGetCUBINSize");
  compiler.get(program_code, "nvrtcGetCUBIN");
  compiler.get(program_destroy, "nvrtcDestroyProgram");

  products.get(lt_create, "cublasLtCreate");
  products.get(lt_destroy, "cublasLtDestroy");
  products.get(matmul_create, "cublasLtMatmulDescCreate");
  products.get(matmul_set, "cublasLtMatmulDescSetAttribute");
  products.get(matmul_destroy, "cublasLtMatmulDescDestroy");
  products.get(layout_create, "cublasLtMatrixLayoutCreate");
  products.get(layout_destroy, "cublasLtMatrixLayoutDestroy");
  products.get(preference_create, "cublasLtMatmulPreferenceCreate");
  products.get(preference_set, "cublasLtMatmulPreferenceSetAttribute");
  products.get(preference_destroy, "cublasLtMatmulPreferenceDestroy");
  products.get(heuristics, "cublasLtMatmulAlgoGetHeuristic");
  products.get(matmul, "cublasLtMatmul");
}

void Libraries::check(int status, const char* what) const {
  if (!status) return;
  const char* words = nullptr;
  error_string(status, &words);
  throw CudaError(std::string(what) + ": " + (words ? words : "unknown error") + " (" + std::to_string(status) + ")");
}

void Libraries::check_other(int status, const char* what) {
  if (status) throw CudaError(std::string(what) + " failed with status " + std::to_string(status));
}

}  // namespace mexma::cuda

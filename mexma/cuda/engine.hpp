// An encoder on a GPU: what the Python binding stands on.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "libraries.hpp"

namespace mexma::cuda {

struct Shape {
  int hidden, heads, intermediate, layers, places;
  float norm_eps;
  bool mean, normalise;
};

// What a layer multiplies with; numbered as in mexma/cuda/__init__.py.
enum Which { QKV, ATTENTION_OUT, WIDEN, NARROW, PRODUCTS };

class Engine {
 public:
  static constexpr int64_t MOST_TOKENS = (1 << 20) - 1;  // of one call; with the largest shape kernels count within 32 bits

  // kernels: source of kernels.cu.
  // Throws CudaError where there is no GPU, or none that can; invalid_argument for shapes that the kernels do not take.
  Engine(const Shape& shape, const std::string& kernels, const Paths& paths);
  ~Engine();

  // Weights; copied. Vectors are fp32, matrices fp16 [outputs, inputs], biases fp16, the table fp16 [rows, hidden].
  void set_table(const void* values, size_t bytes, int64_t rows);
  void set_vector(int layer, int which, const void* values, size_t bytes);
  void set_matrix(int layer, int which, const void* matrix, size_t bytes, const void* bias, size_t bias_bytes);

  // Vectors fp32 [sequences, hidden] of sequences whose ids stand one after the other, and, unless null, the last layer's states fp16
  // [tokens, hidden]. May be called from several threads: each has a stream and memory of its own, which stay for later calls.
  void run(const int64_t* ids, const int32_t* lengths, int sequences, float* vectors, uint16_t* states);

  const Shape& shape() const { return shape_; }
  const std::string& device() const { return device_; }

 private:
  // What is taken of the machine, given back when the engine goes or could not be made.
  struct Held {
    const Libraries& cuda;
    int number = 0;
    Context context = nullptr;
    Module module = nullptr;
    LtHandle lt = nullptr;
    std::vector<Pointer> uploaded;
    std::vector<MatmulDescription> descriptions;
    explicit Held(const Libraries& libraries) : cuda(libraries) {}
    ~Held();
  };
  class Current;
  struct Memory;
  struct Lane;
  struct Matrix;
  struct Layer;
  struct Products;
  struct Given;
  class Taken;
  void forward(Lane& lane, const Given& given, const Products& products);
  bool record(Lane& lane, const Given& given, const Products& products, GraphRun& run);
  void multiply(Lane& lane, const Products& products, int layer, Which which, Pointer in, Pointer residual, Pointer out);
  void launch(Lane& lane, Function function, unsigned across, unsigned down, unsigned threads, void** arguments) const;
  Algorithm algorithm(Which which, int tokens);
  Pointer upload(const void* values, size_t bytes);
  void complete() const;
  int inputs(int which) const { return which == NARROW ? shape_.intermediate : shape_.hidden; }
  int outputs(int which) const { return which == QKV ? 3 * shape_.hidden : which == WIDEN ? shape_.intermediate : shape_.hidden; }

  const Shape shape_;
  const Libraries cuda_;
  std::string device_;
  Held held_;
  Function embed_, normalise_, attend_, pool_;
  Pointer table_ = 0, positions_ = 0;
  int64_t rows_ = 0;
  Pointer embedding_norm_[2] = {};
  std::vector<Layer> layers_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
  std::mutex algorithms_mutex_;
  std::vector<std::pair<int, Algorithm>> algorithms_[PRODUCTS];  // by sizes of batches
};

}  // namespace mexma::cuda

// A model on its threads: what the Python binding stands on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernel.hpp"

namespace mexma {

// Memory in large pages where the system has them: weights are read from end to end for every piece,
// and with pages of 4 KiB address translation becomes the bottleneck.
class Memory {
 public:
  explicit Memory(size_t bytes = 0);
  ~Memory();
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr, other.bytes_ = 0; }
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

// Threads that run one function together, the caller being one of them.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  int size() const { return size_; }
  // Calls task(rank, context) once on each thread and returns when all are done.
  void run(void (*task)(int rank, void* context), void* context);

 private:
  void work(int rank);
  void stop();
  int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> running_{0};
  bool stopping_ = false;
  void (*task_)(int, void*) = nullptr;
  void* context_ = nullptr;
};

// Where threads of a team meet. Spins shortly, then lets others run: the cores may be shared.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();
  static void wait(void* barrier) { static_cast<Barrier*>(barrier)->wait(); }

 private:
  const int size_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
};

enum class Pooling : int { first_token = 0, mean = 1 };

struct Shape {
  int hidden, heads, head_size, intermediate, layers, dim, places;
  float norm_eps;
  Pooling pooling;
  bool head, normalise;
};

class Engine {
 public:
  static constexpr int64_t MOST_TOKENS = INT32_MAX;  // of one call

  Engine(const Shape& shape, const Kernel& kernel, int threads, int piece_tokens);

  // Weights. `which`: see engine.cpp. Values are copied, but the table's are not. Throw invalid_argument
  // for what is not of the model's shape; values of vectors may lie at any address.
  void set_table(TableKind kind, const uint8_t* codes, const uint8_t* scales, int64_t rows);
  void set_vector(int layer, int which, const void* values, size_t bytes);
  void set_matrix(int layer, int which, const float* values, int k, int n, const float* bias);

  // Vectors [sequences, dim] of sequences whose ids stand one after the other, and, unless null, the
  // last layer's states [tokens, hidden]. May be called from several threads: a call that is alone has
  // all threads, each of two half of them, so that neither waits for the other's last piece; more take turns. The
  // caller must not change ids nor lengths meanwhile, and their sum is at most MOST_TOKENS.
  void run(const int64_t* ids, const int32_t* lengths, int sequences, float* vectors, float* states);

  const Shape& shape() const { return shape_; }
  const Kernel& kernel() const { return kernel_; }
  size_t table_columns_bytes(TableKind kind) const;

 private:
  struct Room {  // a workspace and the memory behind it
    Memory memory, scratch;
    Workspace workspace;
    std::vector<char*> scratches;
  };
  // Threads that run one call at a time, and their memory.
  struct Crew {
    explicit Crew(int threads) : pool(threads), barrier(threads), rooms(threads) {}
    std::mutex turn;
    Pool pool;
    Barrier barrier;
    std::vector<Room> rooms;
  };
  struct Call;
  Layer& layer_at(int index);
  bool complete() const;
  void make_room(Room& room, int tokens, int longest, int team);
  void run_on(Crew& crew, Call& call, int longest);
  void pool(const Call& call, int first, const Piece& piece, const Workspace& w, int from, int to, float* pooled);

  const Shape shape_;
  const Kernel& kernel_;
  const int piece_tokens_;
  Model model_;
  std::vector<Layer> layers_;
  std::vector<Memory> weights_;
  Memory matrices_, head_, head_bias_;
  std::atomic<int> running_{0};  // calls
  Crew all_;
  std::vector<std::unique_ptr<Crew>> halves_;  // none where there is one thread
};

const std::vector<const Kernel*>& kernels();     // all that were compiled, best first
std::string missing(const Kernel& kernel);       // what this processor lacks for it; empty if nothing
std::string slow(const Kernel& kernel);          // why nobody should choose it here who need not; empty if it is fast

}  // namespace mexma

#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "sanitize.hpp"

namespace mexma {

namespace {

constexpr size_t LARGE_PAGE = size_t(2) << 20;

// Below this many tokens a call is one piece that all threads work on together: a thread alone would
// read all weights for few tokens.
constexpr int TOGETHER_TOKENS = 96;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (!bytes) return;
  const bool large = bytes >= LARGE_PAGE / 2;
  const size_t alignment = large ? LARGE_PAGE : 64;
  data_ = static_cast<char*>(std::aligned_alloc(alignment, round_up(bytes, alignment)));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(data_, round_up(bytes, alignment), MADV_HUGEPAGE);
#endif
  std::memset(data_, 0, bytes);
  close_memory(data_, round_up(bytes, alignment));
  open_memory(data_, bytes);
}

Memory::~Memory() { std::free(data_); }

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Pool::Pool(int threads) : size_(threads) {
  try {
    for (int rank = 1; rank < threads; rank++) threads_.emplace_back([this, rank] { work(rank); });
  } catch (...) {  // the system gives no more; those that run have to end before anything is thrown
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    round_++;
  }
  start_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::work(int rank) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < 200 && round_.load(std::memory_order_acquire) == seen; i++) pause();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (stopping_) return;
    }
    task_(rank, context_);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void Pool::run(void (*task)(int, void*), void* context) {
  if (size_ > 1) {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = task;
    context_ = context;
    running_ = size_ - 1;
    round_++;
    start_.notify_all();
  }
  task(0, context);
  if (size_ > 1) {
    for (int i = 0; i < 2000 && running_.load(std::memory_order_acquire); i++) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_.load() == 0; });
  }
}

void Barrier::wait() {
  const unsigned phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; phase_.load(std::memory_order_acquire) == phase; i++) {
    if (i < 2000)
      pause();
    else
      std::this_thread::yield();
  }
}

namespace {

// Sizes with which the kernels' int arithmetic holds, far above any model's. Throws invalid_argument.
const Shape& checked(const Shape& s, int threads, int piece_tokens) {
  const struct { const char* name; int value, most; } sizes[] = {
      {"hidden size", s.hidden, 1 << 16}, {"heads", s.heads, 1 << 10}, {"head size", s.head_size, 1 << 12},
      {"intermediate size", s.intermediate, 1 << 20}, {"layers", s.layers, 1 << 12}, {"dim", s.dim, 1 << 16},
      {"places", s.places, 1 << 20}, {"threads", threads, 1 << 12}, {"piece_tokens", piece_tokens, 1 << 20}};
  for (const auto& size : sizes)
    if (size.value < 1 || size.value > size.most)
      throw std::invalid_argument(std::string(size.name) + ": expected 1 to " + std::to_string(size.most) + ", got " + std::to_string(size.value));
  if (s.hidden % BLOCK) throw std::invalid_argument("hidden size: expected a multiple of 32, got " + std::to_string(s.hidden));
  if (!s.head && s.dim != s.hidden) throw std::invalid_argument("without a head, vectors have the hidden size " + std::to_string(s.hidden) + ", got dim " + std::to_string(s.dim));
  return s;
}

}  // namespace

Engine::Engine(const Shape& shape, const Kernel& kernel, int threads, int piece_tokens)
    : shape_(checked(shape, threads, piece_tokens)), kernel_(kernel), piece_tokens_(piece_tokens), layers_(shape.layers), all_(threads) {
  for (int i = 0; threads > 1 && i < 2; i++) halves_.push_back(std::make_unique<Crew>(threads / 2));
  model_.hidden = shape.hidden;
  model_.padded_hidden = int(round_up(shape.hidden, BLOCK));
  model_.heads = shape.heads;
  model_.head_blocks = int(round_up(shape.head_size, BLOCK)) / BLOCK;
  model_.intermediate = int(round_up(shape.intermediate, BLOCK));
  model_.layer_count = shape.layers;
  model_.norm_eps = shape.norm_eps;
  model_.places = shape.places;
  model_.layers = layers_.data();
}

size_t Engine::table_columns_bytes(TableKind kind) const {
  const size_t h = shape_.hidden;
  return kind == TableKind::f32 ? h * 4 : kind == TableKind::bf16 ? h * 2 : kind == TableKind::eight_bits ? h : h / 2;
}

void Engine::set_table(TableKind kind, const uint8_t* codes, const uint8_t* scales, int64_t rows) {
  model_.table = Table{kind, codes, scales, rows};
}

Layer& Engine::layer_at(int index) {
  if (index < 0 || index >= shape_.layers) throw std::invalid_argument("there is no layer " + std::to_string(index));
  return layers_[index];
}

bool Engine::complete() const {
  if (!model_.table.codes || !model_.positions || !model_.embedding_norm.weight || !model_.embedding_norm.bias) return false;
  if (shape_.head && (!head_.data() || !head_bias_.data())) return false;
  for (const Layer& l : layers_) {
    for (const Matrix* m : {&l.qkv, &l.attention_out, &l.widen, &l.narrow})
      if (!m->packed) return false;
    for (const Norm* n : {&l.attention_norm, &l.output_norm})
      if (!n->weight || !n->bias) return false;
  }
  return true;
}

void Engine::set_vector(int layer, int which, const void* values, size_t bytes) {
  const size_t hidden = shape_.hidden;
  const size_t count = which == 0   ? hidden * shape_.places
                       : which == 7 ? hidden * shape_.dim
                       : which == 8 ? shape_.dim
                                    : hidden;
  if (bytes != count * 4)
    throw std::invalid_argument("vector " + std::to_string(which) + ": expected " + std::to_string(count) + " values of 4 bytes, got " + std::to_string(bytes) + " bytes");
  Memory memory(bytes);
  std::memcpy(memory.data(), values, bytes);
  const auto* copy = reinterpret_cast<const float*>(memory.data());
  switch (which) {
    case 0: model_.positions = copy; break;
    case 1: model_.embedding_norm.weight = copy; break;
    case 2: model_.embedding_norm.bias = copy; break;
    case 3: layer_at(layer).attention_norm.weight = copy; break;
    case 4: layer_at(layer).attention_norm.bias = copy; break;
    case 5: layer_at(layer).output_norm.weight = copy; break;
    case 6: layer_at(layer).output_norm.bias = copy; break;
    case 7: head_ = std::move(memory); return;
    case 8: head_bias_ = std::move(memory); return;
    default: throw std::invalid_argument("there is no vector " + std::to_string(which));
  }
  weights_.push_back(std::move(memory));
}

void Engine::set_matrix(int layer, int which, const float* values, int k, int n, const float* bias) {
  Layer& l = layer_at(layer);
  const int h = model_.padded_hidden, mixed = model_.heads * model_.head_blocks * BLOCK, f = model_.intermediate;
  const struct { Matrix& to; int k, n; } parts[] = {{l.qkv, h, 3 * mixed}, {l.attention_out, mixed, h}, {l.widen, h, f}, {l.narrow, f, h}};
  if (which < 0 || which > 3) throw std::invalid_argument("there is no matrix " + std::to_string(which));
  const auto& part = parts[which];
  if (k != part.k || n != part.n)
    throw std::invalid_argument("matrix " + std::to_string(which) + ": expected " + std::to_string(part.k) + " by " + std::to_string(part.n) + ", got " + std::to_string(k) + " by " + std::to_string(n));
  // In the order of use, one after the other: kernels fetch ahead of where they are.
  size_t before = 0, layer_bytes = 0;
  for (int i = 0; i < 4; i++) {
    const size_t bytes = kernel_.packed_bytes(Product(i), parts[i].k, parts[i].n);
    if (i < which) before += bytes;
    layer_bytes += bytes;
  }
  if (!matrices_.data()) matrices_ = Memory(layer_bytes * layers_.size());
  char* packed = matrices_.data() + layer_bytes * layer + before;
  kernel_.pack(Product(which), values, k, n, packed);
  weights_.emplace_back(size_t(n) * 4);
  auto* copy = reinterpret_cast<float*>(weights_.back().data());
  std::copy(bias, bias + n, copy);
  part.to = Matrix{packed, copy, k, n};
}

void Engine::make_room(Room& room, int tokens, int longest, int team) {
  // Blocks of 32 columns lie `stride` rows of 64 bytes apart; an odd multiple of 1 KiB spreads them
  // over all sets of the caches.
  const size_t rows = round_up(tokens, BLOCK);
  const size_t stride = round_up(rows, 64) + 16;
  const size_t e = kernel_.element_bytes;
  const size_t wide = std::max(3 * model_.heads * model_.head_blocks * BLOCK, model_.intermediate);
  const size_t mixed = size_t(model_.heads) * model_.head_blocks * BLOCK;
  const size_t parts[] = {rows * model_.padded_hidden * 4, stride * model_.padded_hidden * e, stride * wide * e, stride * mixed * e};
  size_t total = 0;
  for (size_t part : parts) total += round_up(part, 4096) + 1024;
  if (room.memory.bytes() < total) room.memory = Memory(total + total / 4);
  char* at = room.memory.data();
  void* places[4];
  close_memory(room.memory.data(), room.memory.bytes());
  for (int i = 0; i < 4; i++) {
    places[i] = at;
    open_memory(at, parts[i]);
    at += round_up(parts[i], 4096) + 1024;
  }
  const size_t needed = kernel_.scratch_bytes(model_, longest), scratch = round_up(needed, 4096) + 256;
  if (room.scratch.bytes() < scratch * team) room.scratch = Memory(scratch * team);
  room.scratches.resize(team);
  close_memory(room.scratch.data(), room.scratch.bytes());
  for (int i = 0; i < team; i++) {
    room.scratches[i] = room.scratch.data() + i * scratch;
    open_memory(room.scratches[i], needed);
  }
  room.workspace = Workspace{static_cast<float*>(places[0]), places[1], places[2], places[3], room.scratches.data(), int(stride)};
}

// What one call hands to the threads.
struct Engine::Call {
  Engine* engine;
  Crew* crew;  // whose threads
  const int64_t* ids;
  const int32_t* starts;  // [sequences + 1]
  int sequences;
  std::vector<int> pieces;  // first sequence of each, and the number of all
  // Each piece's starts, beginning with 0, of piece p at pieces[p] + p. Made before threads run: what
  // throws there, and a want of memory would, ends the process.
  std::vector<int32_t> own_starts;
  float* vectors;
  float* states;
  bool together;
  std::atomic<int> next{0};
};

void Engine::pool(const Call& call, int first, const Piece& piece, const Workspace& w, int from, int to, float* pooled) {
  const int hidden = shape_.hidden, dim = shape_.dim, width = model_.padded_hidden;
  for (int s = from; s < to; s++) {
    const int start = piece.starts[s], length = piece.starts[s + 1] - start;
    const float* states = w.residual + size_t(piece.first_only ? s : start) * width;
    float* out = call.vectors + size_t(first + s) * dim;
    std::copy(states, states + hidden, pooled);
    if (shape_.pooling == Pooling::mean) {
      for (int t = 1; t < length; t++)
        for (int i = 0; i < hidden; i++) pooled[i] += states[size_t(t) * width + i];
      for (int i = 0; i < hidden; i++) pooled[i] /= float(length);
    }
    if (shape_.head) {
      const auto* matrix = reinterpret_cast<const float*>(head_.data());
      const auto* bias = reinterpret_cast<const float*>(head_bias_.data());
      for (int j = 0; j < dim; j++) {
        double total = bias[j];
        for (int i = 0; i < hidden; i++) total += double(matrix[size_t(j) * hidden + i]) * pooled[i];
        out[j] = float(std::tanh(total));
      }
    } else {
      std::copy(pooled, pooled + hidden, out);
    }
    if (shape_.normalise) {
      double squares = 0;
      for (int j = 0; j < dim; j++) squares += double(out[j]) * out[j];
      const double length_of = std::sqrt(squares);
      const float norm = float(length_of < 1e-12 ? 1e-12 : length_of);  // NaN stays NaN
      for (int j = 0; j < dim; j++) out[j] /= norm;
    }
    if (call.states) {
      float* to_states = call.states + size_t(call.starts[first + s]) * hidden;
      for (int t = 0; t < length; t++)
        std::copy(states + size_t(t) * width, states + size_t(t) * width + hidden, to_states + size_t(t) * hidden);
    }
  }
}

void Engine::run(const int64_t* ids, const int32_t* lengths, int sequences, float* vectors, float* states) {
  if (!complete()) throw std::invalid_argument("the model lacks weights");
  std::vector<int32_t> starts(size_t(sequences) + 1, 0);
  int longest = 1;
  for (int s = 0; s < sequences; s++) {
    if (lengths[s] < 1 || lengths[s] > shape_.places)
      throw std::out_of_range("sequence " + std::to_string(s) + " has " + std::to_string(lengths[s]) + " tokens; this model takes 1 to " + std::to_string(shape_.places));
    starts[s + 1] = starts[s] + lengths[s];
    longest = std::max(longest, lengths[s]);
  }
  const int tokens = starts[sequences];
  for (int t = 0; t < tokens; t++)
    if (ids[t] < 0 || ids[t] >= model_.table.rows)
      throw std::out_of_range("token id " + std::to_string(ids[t]) + " at position " + std::to_string(t) + " is none of this model's " + std::to_string(model_.table.rows));
  if (!sequences) return;

  Call call{this, nullptr, ids, starts.data(), sequences, {}, {}, vectors, states, false};
  struct Presence {
    std::atomic<int>& running;
    const bool alone = running.fetch_add(1) == 0;
    ~Presence() { running.fetch_sub(1); }
  } presence{running_};
  if (!presence.alone)
    for (auto& half : halves_)
      if (std::unique_lock<std::mutex> turn(half->turn, std::try_to_lock); turn) return run_on(*half, call, longest);
  std::lock_guard<std::mutex> turn(all_.turn);
  run_on(all_, call, longest);
}

void Engine::run_on(Crew& crew, Call& call, int longest) {
  const int32_t* starts = call.starts;
  const int sequences = call.sequences, tokens = starts[sequences], threads = crew.pool.size();
  call.crew = &crew;
  const int least = (tokens - 1) / piece_tokens_ + 1;  // pieces
  const int64_t count_of_all = (int64_t(least) + threads - 1) / threads * threads;
  call.together = threads > 1 && (tokens < TOGETHER_TOKENS || sequences < threads);
  // More pieces than sequences there cannot be.
  const int count = int(std::min<int64_t>(call.together ? least : count_of_all, tokens));
  // Pieces of equal size in tokens, in whole sequences.
  call.pieces.push_back(0);
  for (int p = 1; p < count; p++) {
    const int32_t wanted = int32_t(int64_t(tokens) * p / count);
    int s = int(std::lower_bound(starts, starts + sequences + 1, wanted) - starts);
    if (s > 0 && wanted - starts[s - 1] < starts[s] - wanted) s--;
    if (s > call.pieces.back() && s < sequences) call.pieces.push_back(s);
  }
  call.pieces.push_back(sequences);
  call.own_starts.reserve(size_t(sequences) + call.pieces.size());
  for (size_t p = 0; p + 1 < call.pieces.size(); p++)
    for (int s = call.pieces[p]; s <= call.pieces[p + 1]; s++) call.own_starts.push_back(starts[s] - starts[call.pieces[p]]);

  int most = 0;
  for (size_t p = 0; p + 1 < call.pieces.size(); p++)
    most = std::max(most, starts[call.pieces[p + 1]] - starts[call.pieces[p]]);
  if (call.together) {
    make_room(crew.rooms[0], most, longest, threads);
  } else {
    // Of every thread, though pieces may be fewer: whichever threads are first take them.
    for (Room& room : crew.rooms) make_room(room, most, longest, 1);
  }
  const auto task = [](int rank, void* context) {
    auto& c = *static_cast<Call*>(context);
    Engine& e = *c.engine;
    Crew& crew = *c.crew;
    const int pieces = int(c.pieces.size()) - 1;
    for (int i = 0;; i++) {
      const int p = c.together ? i : c.next.fetch_add(1);
      if (p >= pieces) return;
      const int first = c.pieces[p], end = c.pieces[p + 1];
      const Piece piece{c.ids + c.starts[first], c.own_starts.data() + first + p, end - first, c.starts[end] - c.starts[first],
                        e.shape_.pooling == Pooling::first_token && !c.states};
      Room& room = crew.rooms[c.together ? 0 : rank];
      Team team;
      if (c.together) team = Team{rank, crew.pool.size(), Barrier::wait, &crew.barrier};
      e.kernel_.forward(e.model_, room.workspace, piece, team);
      auto* pooled = reinterpret_cast<float*>(room.scratches[team.rank]);  // has room for a row
      if (c.together) {
        e.pool(c, first, piece, room.workspace, piece.sequences * rank / team.size, piece.sequences * (rank + 1) / team.size, pooled);
        if (p + 1 < pieces) crew.barrier.wait();
      } else {
        e.pool(c, first, piece, room.workspace, 0, piece.sequences, pooled);
      }
    }
  };
  if (!call.together && call.pieces.size() == 2)
    task(0, &call);
  else
    crew.pool.run(task, &call);
}

}  // namespace mexma

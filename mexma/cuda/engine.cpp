#include "engine.hpp"

#include <algorithm>
#include <cstring>

namespace mexma::cuda {

namespace {

constexpr int WARPS = 4, THREADS = 32 * WARPS;  // as in kernels.cu
constexpr size_t WORKSPACE = size_t(32) << 20;                // what cuBLAS recommends on Hopper
// From here on a call's thread sleeps while the GPU computes; below, waking it up would take as long.
constexpr int PATIENT_TOKENS = 4096;

// One text of up to so many tokens is run by a recorded graph: launching its kernels one by one takes longer than they do. There
// is one for each multiple of RECORDED_STEP; what is computed beyond the text's end is looked at by nothing.
constexpr int RECORDED_TOKENS = 128, RECORDED_STEP = 16;

struct Tile {  // as in kernels.cu
  int start, length, query, pad;
};

// Queries of a tile, as in kernels.cu.
int queries(const Shape& shape) { return shape.hidden / shape.heads < 128 ? 32 : 16; }

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
unsigned blocks(int64_t n, int each) { return unsigned((n + each - 1) / each); }

const Shape& checked(const Shape& s) {
  const struct { const char* name; int value, most; } sizes[] = {
      {"hidden size", s.hidden, 1 << 13}, {"heads", s.heads, 1 << 10}, {"intermediate size", s.intermediate, 1 << 14}, {"layers", s.layers, 1 << 12}, {"places", s.places, 1 << 20}};
  for (const auto& size : sizes)
    if (size.value < 1 || size.value > size.most)
      throw std::invalid_argument(std::string(size.name) + ": expected 1 to " + std::to_string(size.most) + ", got " + std::to_string(size.value));
  if (s.hidden % s.heads) throw std::invalid_argument("expected heads that divide the hidden size " + std::to_string(s.hidden) + ", got " + std::to_string(s.heads));
  const int head = s.hidden / s.heads;
  if (head != 32 && head != 64 && head != 128) throw std::invalid_argument("expected heads of 32, 64 or 128 components, got " + std::to_string(head));
  if (s.intermediate % 8) throw std::invalid_argument("expected an intermediate size in 8s, got " + std::to_string(s.intermediate));
  return s;
}

}  // namespace

// On the device or, pinned, on the host; grows, and never shrinks.
struct Engine::Memory {
  const Libraries& cuda;
  const bool host;
  size_t bytes = 0;
  void* at = nullptr;
  Pointer there = 0;

  Memory(const Libraries& libraries, bool on_host) : cuda(libraries), host(on_host) {}
  Memory(const Memory&) = delete;
  ~Memory() { clear(); }
  void clear() {
    if (at) cuda.release_host(at);
    if (there) cuda.release(there);
    at = nullptr, there = 0, bytes = 0;
  }
  void hold(size_t wanted) {
    if (wanted <= bytes) return;
    clear();
    const size_t size = round_up(wanted + wanted / 8, 4096);
    if (host)
      cuda.check(cuda.allocate_host(&at, size), "memory for copies");
    else
      cuda.check(cuda.allocate(&there, size), ("GPU memory of " + std::to_string(size >> 20) + " MiB").c_str());
    bytes = size;
  }
};

// A stream and what one call needs beside weights.
struct Engine::Lane {
  const Libraries& cuda;
  Stream stream = nullptr;
  Event done = nullptr;
  bool records = true;  // until it could not
  Memory given, vectors, states;  // of the host
  Memory input, x, y, qkv, wide, out, workspace;
  GraphRun recorded[RECORDED_TOKENS / RECORDED_STEP] = {};

  explicit Lane(const Libraries& libraries)
      : cuda(libraries), given(cuda, true), vectors(cuda, true), states(cuda, true), input(cuda, false), x(cuda, false),
        y(cuda, false), qkv(cuda, false), wide(cuda, false), out(cuda, false), workspace(cuda, false) {
    try {
      workspace.hold(WORKSPACE);
      cuda.check(cuda.stream_create(&stream, STREAM_NON_BLOCKING), "stream");
      cuda.check(cuda.event_create(&done, EVENT_BLOCKING_UNTIMED), "event");
    } catch (...) {
      end();
      throw;
    }
  }
  ~Lane() { end(); }
  void end() {
    if (stream) cuda.stream_wait(stream);
    forget();
    if (done) cuda.event_destroy(done);
    if (stream) cuda.stream_destroy(stream);
  }
  // Memory for a call. Recorded graphs know where it lay.
  void hold(const Shape& shape, size_t tokens, size_t sequences, size_t input_bytes) {
    const size_t hidden = shape.hidden;
    const struct { Memory& memory; size_t bytes; } all[] = {
        {given, input_bytes}, {input, input_bytes}, {x, tokens * hidden * 2}, {y, tokens * hidden * 2}, {qkv, tokens * hidden * 6},
        {wide, tokens * std::max(shape.hidden, shape.intermediate) * 2}, {out, sequences * hidden * 4}, {vectors, sequences * hidden * 4}};
    for (const auto& each : all)
      if (each.bytes > each.memory.bytes) forget();
    for (const auto& each : all) each.memory.hold(each.bytes);
  }
  void forget() {
    for (GraphRun& run : recorded) {
      if (run) cuda.graph_run_destroy(run);
      run = nullptr;
    }
  }
  void wait(bool patient) {
    if (patient) {
      cuda.check(cuda.event_record(done, stream), "event");
      cuda.check(cuda.event_wait(done), "the GPU's work");
    } else {
      cuda.check(cuda.stream_wait(stream), "the GPU's work");
    }
  }
};

struct Engine::Matrix {
  Pointer values = 0, bias = 0;
  MatmulDescription description = nullptr;
};

struct Engine::Layer {
  Matrix matrices[PRODUCTS];
  Pointer attention_norm[2] = {}, output_norm[2] = {};
};

// Layouts and algorithms of the four products for a number of tokens. cuBLAS counts by columns: what is [tokens, n] here
// is [n, tokens] there.
struct Engine::Products {
  const Libraries& cuda;
  Layout weights[PRODUCTS] = {}, in[PRODUCTS] = {}, out[PRODUCTS] = {};
  Algorithm algorithms[PRODUCTS] = {};

  Products(const Engine& engine, int tokens) : cuda(engine.cuda_) {
    try {
      for (int which = 0; which < PRODUCTS; which++) make(engine, which, tokens);
    } catch (...) {
      end();
      throw;
    }
  }
  ~Products() { end(); }

 private:
  void end() {
    for (auto* layouts : {weights, in, out})
      for (int which = 0; which < PRODUCTS; which++)
        if (layouts[which]) cuda.layout_destroy(layouts[which]);
  }
  void make(const Engine& engine, int which, int tokens) {
    const int k = engine.inputs(which), n = engine.outputs(which);
    cuda.check_other(cuda.layout_create(&weights[which], TYPE_F16, k, n, k), "a matrix's layout");
    cuda.check_other(cuda.layout_create(&in[which], TYPE_F16, k, tokens, k), "a matrix's layout");
    cuda.check_other(cuda.layout_create(&out[which], TYPE_F16, n, tokens, n), "a matrix's layout");
  }
};

// The engine's context as this thread's own, for as long as this lives.
class Engine::Current {
 public:
  explicit Current(const Engine& engine) : cuda_(engine.cuda_) { cuda_.check(cuda_.context_push(engine.held_.context), "the GPU"); }
  ~Current() {
    Context before;
    cuda_.context_pop(&before);
  }
  Current(const Current&) = delete;

 private:
  const Libraries& cuda_;
};

Engine::Held::~Held() {
  if (!context) return;
  cuda.context_push(context);
  for (MatmulDescription description : descriptions) cuda.matmul_destroy(description);
  for (const Pointer pointer : uploaded) cuda.release(pointer);
  if (lt) cuda.lt_destroy(lt);
  if (module) cuda.module_unload(module);
  cuda.context_pop(&context);
  cuda.context_release(number);
}

// A lane for the time of one call.
class Engine::Taken {
 public:
  explicit Taken(Engine& engine) : engine_(engine) {
    {
      std::lock_guard<std::mutex> lock(engine.mutex_);
      if (!engine.idle_.empty()) lane_ = std::move(engine.idle_.back()), engine.idle_.pop_back();
    }
    if (!lane_) lane_ = std::make_unique<Lane>(engine.cuda_);
  }
  Lane& operator*() { return *lane_; }
  // Without this the lane goes with the call: work may be under way in it.
  void give_back() {
    std::lock_guard<std::mutex> lock(engine_.mutex_);
    engine_.idle_.push_back(std::move(lane_));
  }

 private:
  Engine& engine_;
  std::unique_ptr<Lane> lane_;
};

namespace {

// Machine code of the kernels for `architecture`.
std::vector<char> compiled(const Libraries& cuda, const Shape& shape, const std::string& kernels, const std::string& architecture, const std::string& device) {
  struct Held {
    const Libraries& cuda;
    Program program = nullptr;
    ~Held() {
      if (program) cuda.program_destroy(&program);
    }
  } held{cuda};
  cuda.check_other(cuda.program_create(&held.program, kernels.c_str(), "kernels.cu", 0, nullptr, nullptr), "NVRTC");
  const std::string options[] = {
      "--gpu-architecture=" + architecture, "-std=c++17", "-DHIDDEN=" + std::to_string(shape.hidden), "-DHEAD=" + std::to_string(shape.hidden / shape.heads)};
  const char* given[] = {options[0].c_str(), options[1].c_str(), options[2].c_str(), options[3].c_str()};
  const int status = cuda.program_compile(held.program, 4, given);
  size_t size = 0;
  if (status) {
    cuda.program_log_size(held.program, &size);
    std::string log(size, '\0');
    cuda.program_log(held.program, log.data());
    throw CudaError("NVRTC does not compile for " + device + " (" + architecture + ", status " + std::to_string(status) + "): " + log.c_str());
  }
  cuda.check_other(cuda.program_code_size(held.program, &size), "NVRTC");
  std::vector<char> code(size);
  cuda.check_other(cuda.program_code(held.program, code.data()), "NVRTC");
  return code;
}

}  // namespace

Engine::Engine(const Shape& shape, const std::string& kernels, const Paths& paths)
    : shape_(checked(shape)), cuda_(paths), held_(cuda_), layers_(shape.layers) {
  cuda_.check(cuda_.init(0), "CUDA");
  int count = 0, major = 0, minor = 0;
  cuda_.check(cuda_.device_count(&count), "GPUs");
  if (count < 1) throw CudaError("there is no GPU");
  cuda_.check(cuda_.device_get(&held_.number, 0), "the first GPU");
  char name[256] = {};
  cuda_.check(cuda_.device_name(name, sizeof name - 1, held_.number), "the first GPU's name");
  device_ = name;
  cuda_.check(cuda_.device_attribute(&major, COMPUTE_CAPABILITY_MAJOR, held_.number), "the first GPU's version");
  cuda_.check(cuda_.device_attribute(&minor, COMPUTE_CAPABILITY_MINOR, held_.number), "the first GPU's version");
  if (major < 8) throw CudaError("expected a GPU of compute capability 8.0 or more, " + device_ + " has " + std::to_string(major) + "." + std::to_string(minor));
  const std::vector<char> code = compiled(cuda_, shape_, kernels, "sm_" + std::to_string(major) + std::to_string(minor), device_);
  Context context = nullptr;
  cuda_.check(cuda_.context_retain(&context, held_.number), "the first GPU");
  held_.context = context;
  const Current current(*this);
  cuda_.check(cuda_.module_load(&held_.module, code.data()), "the kernels");
  const struct { Function& function; const char* name; } functions[] = {
      {embed_, "embed"}, {normalise_, "normalise"}, {attend_, "attend"}, {pool_, "pool"}};
  for (const auto& f : functions) cuda_.check(cuda_.module_function(&f.function, held_.module, f.name), f.name);
  cuda_.check_other(cuda_.lt_create(&held_.lt), "cuBLAS");
}

Engine::~Engine() {
  try {
    const Current current(*this);
    idle_.clear();
  } catch (const CudaError&) {  // then there is nothing to give back to
  }
}

Pointer Engine::upload(const void* values, size_t bytes) {
  const Current current(*this);
  Pointer there = 0;
  cuda_.check(cuda_.allocate(&there, bytes), ("GPU memory for weights, " + std::to_string(bytes >> 20) + " MiB").c_str());
  held_.uploaded.push_back(there);
  cuda_.check(cuda_.to_device(there, values, bytes, nullptr), "copying weights");
  cuda_.check(cuda_.stream_wait(nullptr), "copying weights");
  return there;
}

void Engine::set_table(const void* values, size_t bytes, int64_t rows) {
  if (rows < 1 || rows > INT32_MAX || bytes != size_t(rows) * shape_.hidden * 2)
    throw std::invalid_argument("table: expected " + std::to_string(rows) + " rows of " + std::to_string(shape_.hidden) + " halves, got " + std::to_string(bytes) + " bytes");
  table_ = upload(values, bytes);
  rows_ = rows;
}

void Engine::set_vector(int layer, int which, const void* values, size_t bytes) {
  Pointer* place = nullptr;
  size_t count = shape_.hidden;
  if (layer < 0 && which == 0) place = &positions_, count *= shape_.places;
  if (layer < 0 && (which == 1 || which == 2)) place = &embedding_norm_[which - 1];
  if (layer >= 0 && layer < shape_.layers && which >= 3 && which < 7) {
    Layer& own = layers_[layer];
    place = which < 5 ? &own.attention_norm[which - 3] : &own.output_norm[which - 5];
  }
  if (!place) throw std::invalid_argument("there is no vector " + std::to_string(which) + " of layer " + std::to_string(layer));
  if (bytes != count * 4)
    throw std::invalid_argument("vector " + std::to_string(which) + ": expected " + std::to_string(count) + " values of 4 bytes, got " + std::to_string(bytes) + " bytes");
  *place = upload(values, bytes);
}

void Engine::set_matrix(int layer, int which, const void* values, size_t bytes, const void* bias, size_t bias_bytes) {
  if (layer < 0 || layer >= shape_.layers || which < 0 || which >= PRODUCTS)
    throw std::invalid_argument("there is no matrix " + std::to_string(which) + " of layer " + std::to_string(layer));
  const size_t n = outputs(which), k = inputs(which);
  if (bytes != n * k * 2 || bias_bytes != n * 2)
    throw std::invalid_argument("matrix " + std::to_string(which) + ": expected " + std::to_string(n) + " x " + std::to_string(k) + " halves and a bias, got " + std::to_string(bytes) + " and " + std::to_string(bias_bytes) + " bytes");
  Matrix& matrix = layers_[layer].matrices[which];
  if (matrix.description) throw std::invalid_argument("matrix " + std::to_string(which) + " is set twice");
  matrix.values = upload(values, bytes);
  matrix.bias = upload(bias, bias_bytes);
  MatmulDescription description = nullptr;
  cuda_.check_other(cuda_.matmul_create(&description, COMPUTE_F32, TYPE_F32), "a product");
  held_.descriptions.push_back(description);
  const int transposed = TRANSPOSED, epilogue = which == WIDEN ? EPILOGUE_GELU_BIAS : EPILOGUE_BIAS;
  cuda_.check_other(cuda_.matmul_set(description, MATMUL_TRANSPOSE_A, &transposed, sizeof transposed), "a product");
  cuda_.check_other(cuda_.matmul_set(description, MATMUL_EPILOGUE, &epilogue, sizeof epilogue), "a product");
  cuda_.check_other(cuda_.matmul_set(description, MATMUL_BIAS, &matrix.bias, sizeof matrix.bias), "a product");
  matrix.description = description;
}

void Engine::complete() const {
  bool all = table_ && positions_ && embedding_norm_[0] && embedding_norm_[1];
  for (const Layer& layer : layers_) {
    for (const Matrix& matrix : layer.matrices) all = all && matrix.description;
    for (const Pointer* norm : {layer.attention_norm, layer.output_norm}) all = all && norm[0] && norm[1];
  }
  if (!all) throw std::invalid_argument("weights are missing");
}

void Engine::launch(Lane& lane, Function function, unsigned across, unsigned down, unsigned threads, void** arguments) const {
  cuda_.check(cuda_.launch(function, across, down, 1, threads, 1, 1, 0, lane.stream, arguments, nullptr), "a kernel");
}

void Engine::multiply(Lane& lane, const Products& products, int layer, Which which, Pointer in, Pointer residual, Pointer out) {
  const Matrix& matrix = layers_[layer].matrices[which];
  const float one = 1, times = residual ? 1 : 0;
  const auto at = [](Pointer pointer) { return reinterpret_cast<void*>(pointer); };
  cuda_.check_other(
      cuda_.matmul(held_.lt, matrix.description, &one, at(matrix.values), products.weights[which], at(in), products.in[which], &times, at(residual ? residual : out),
                   products.out[which], at(out), products.out[which], &products.algorithms[which], at(lane.workspace.there), WORKSPACE, lane.stream),
      "a product");
}

// The algorithm for batches of about so many tokens: asked for once for every power of two. It is the one that cuBLAS thinks
// best. The fastest of eight as measured was 3 % faster on an H100, and might be another after the next start, which would
// give other vectors, if only by fp16's rounding.
Algorithm Engine::algorithm(Which which, int tokens) {
  int size = 16;
  while (size < tokens) size *= 2;
  std::lock_guard<std::mutex> lock(algorithms_mutex_);
  for (const auto& known : algorithms_[which])
    if (known.first == size) return known.second;
  const Products products(*this, size);
  Preference preference = nullptr;
  cuda_.check_other(cuda_.preference_create(&preference), "cuBLAS");
  const size_t most = WORKSPACE;
  cuda_.preference_set(preference, PREFERENCE_WORKSPACE_BYTES, &most, sizeof most);
  Heuristic found;
  int count = 0;
  const int status = cuda_.heuristics(held_.lt, layers_[0].matrices[which].description, products.weights[which], products.in[which], products.out[which],
                                      products.out[which], preference, 1, &found, &count);
  cuda_.preference_destroy(preference);
  if (status || count < 1) throw CudaError("cuBLAS has no product of this shape, status " + std::to_string(status));
  algorithms_[which].emplace_back(size, found.algorithm);
  return found.algorithm;
}

// What a call brings, as it is copied to the device: tiles, ids, places, bounds.
struct Engine::Given {
  int tokens, sequences, tiles;
  size_t ids() const { return tiles * sizeof(Tile); }
  size_t places() const { return ids() + size_t(tokens) * 4; }
  size_t bounds() const { return places() + size_t(tokens) * 4; }
  size_t bytes() const { return bounds() + size_t(sequences + 1) * 4; }
};

// Everything between the tokens in the lane's memory and the vectors there; returns before it is done.
void Engine::forward(Lane& lane, const Given& given, const Products& products) {
  const size_t hidden = shape_.hidden;
  cuda_.check(cuda_.to_device(lane.input.there, lane.given.at, given.bytes(), lane.stream), "copying tokens");
  Pointer tiles = lane.input.there, ids = tiles + given.ids(), places = tiles + given.places(), bounds = tiles + given.bounds();
  int tokens = given.tokens, count = given.tiles;
  float eps = shape_.norm_eps;
  const unsigned by_token = blocks(tokens, WARPS);
  void* looked_up[] = {&ids, &places, &table_, &positions_, &embedding_norm_[0], &embedding_norm_[1], &eps, &lane.x.there, &tokens};
  launch(lane, embed_, by_token, 1, THREADS, looked_up);
  const auto normalise = [&](Pointer* norm) {
    void* arguments[] = {&lane.y.there, &norm[0], &norm[1], &eps, &lane.x.there, &tokens};
    launch(lane, normalise_, by_token, 1, THREADS, arguments);
  };
  for (int layer = 0; layer < shape_.layers; layer++) {
    multiply(lane, products, layer, QKV, lane.x.there, 0, lane.qkv.there);
    // What attention gives stands where the wide states will be.
    void* attended[] = {&lane.qkv.there, &lane.wide.there, &tiles, &count};
    launch(lane, attend_, blocks(count, WARPS), shape_.heads, THREADS, attended);
    multiply(lane, products, layer, ATTENTION_OUT, lane.wide.there, lane.x.there, lane.y.there);
    normalise(layers_[layer].attention_norm);
    multiply(lane, products, layer, WIDEN, lane.x.there, 0, lane.wide.there);
    multiply(lane, products, layer, NARROW, lane.wide.there, lane.x.there, lane.y.there);
    normalise(layers_[layer].output_norm);
  }
  int mean = shape_.mean, unit = shape_.normalise;
  void* pooled[] = {&lane.x.there, &bounds, &mean, &unit, &lane.out.there};
  launch(lane, pool_, unsigned(given.sequences), 1, 128, pooled);
  cuda_.check(cuda_.to_host(lane.vectors.at, lane.out.there, given.sequences * hidden * 4, lane.stream), "copying vectors");
}

// Whether `run` is now a graph of the same. Where it cannot be recorded, kernel by kernel has to do.
bool Engine::record(Lane& lane, const Given& given, const Products& products, GraphRun& run) {
  if (run || !lane.records) return run;
  Graph graph = nullptr;
  bool whole = !cuda_.capture_begin(lane.stream, CAPTURE_RELAXED);
  if (whole) {
    try {
      forward(lane, given, products);
    } catch (...) {  // kernel by kernel it will be said what
      whole = false;
    }
    whole = !cuda_.capture_end(lane.stream, &graph) && whole;
  }
  if (!whole || cuda_.graph_prepare(&run, graph, 0)) run = nullptr, lane.records = false;
  if (graph) cuda_.graph_destroy(graph);
  return run;
}

void Engine::run(const int64_t* ids, const int32_t* lengths, int sequences, float* vectors, uint16_t* states) {
  complete();
  int64_t tokens = 0, tiles = 0;
  const int each = queries(shape_);
  for (int i = 0; i < sequences; i++) {
    if (lengths[i] < 1 || lengths[i] > shape_.places)
      throw std::out_of_range("sequence " + std::to_string(i) + ": expected 1 to " + std::to_string(shape_.places) + " tokens, got " + std::to_string(lengths[i]));
    tokens += lengths[i];
    tiles += blocks(lengths[i], each);
  }
  if (!sequences) return;
  if (tokens > MOST_TOKENS) throw std::out_of_range("expected at most " + std::to_string(MOST_TOKENS) + " tokens at once, got " + std::to_string(tokens));
  for (int64_t i = 0; i < tokens; i++)
    if (ids[i] < 0 || ids[i] >= rows_) throw std::out_of_range("token " + std::to_string(i) + ": expected an id below " + std::to_string(rows_) + ", got " + std::to_string(ids[i]));

  const bool recorded = sequences == 1 && tokens <= RECORDED_TOKENS && !states;
  Given given{int(tokens), sequences, int(tiles)};
  if (recorded) {
    given.tokens = int(round_up(tokens, RECORDED_STEP));
    given.tiles = int(blocks(given.tokens, each));
  }
  const Current current(*this);
  Taken taken(*this);
  Lane& lane = *taken;
  const size_t hidden = shape_.hidden;
  Products products(*this, given.tokens);
  for (int which = 0; which < PRODUCTS; which++) products.algorithms[which] = algorithm(Which(which), given.tokens);
  try {
    lane.hold(shape_, given.tokens, sequences, given.bytes());
  } catch (const CudaError&) {  // what others hold and do not use now is in the way
    {
      std::lock_guard<std::mutex> lock(mutex_);
      idle_.clear();
    }
    lane.hold(shape_, given.tokens, sequences, given.bytes());
  }

  auto* tile = static_cast<Tile*>(lane.given.at);
  int* id = reinterpret_cast<int*>(tile + given.tiles);
  int *place = id + given.tokens, *bound = place + given.tokens, start = 0;
  const Tile* const end = tile + given.tiles;
  for (int i = 0; i < sequences; i++) {
    bound[i] = start;
    for (int query = 0; query < lengths[i] || (recorded && tile < end); query += each) *tile++ = {start, lengths[i], query, 0};
    for (int j = 0; j < lengths[i]; j++) id[start + j] = int(ids[start + j]), place[start + j] = j;
    start += lengths[i];
  }
  bound[sequences] = start;
  for (int i = start; i < given.tokens; i++) id[i] = place[i] = 0;  // beyond the text's end

  GraphRun* run = recorded ? &lane.recorded[given.tokens / RECORDED_STEP - 1] : nullptr;
  if (run && record(lane, given, products, *run))
    cuda_.check(cuda_.graph_launch(*run, lane.stream), "a recorded graph");
  else
    forward(lane, given, products);
  if (states) {
    lane.states.hold(tokens * hidden * 2);
    cuda_.check(cuda_.to_host(lane.states.at, lane.x.there, tokens * hidden * 2, lane.stream), "copying states");
  }
  lane.wait(tokens >= PATIENT_TOKENS);
  std::memcpy(vectors, lane.vectors.at, sequences * hidden * 4);
  if (states) std::memcpy(states, lane.states.at, tokens * hidden * 2);
  taken.give_back();
}

}  // namespace mexma::cuda

// One forward pass, the same for every kernel. Included by each kernel's file, inside a namespace
// of its own and after its instruction set was chosen, so that the compiler builds it once for each.
//
// Each file says first how many floats its processor adds at once, as `constexpr int LANES`: vectors
// twice as wide are taken apart by the compiler, number by number (4 sentences/s for 178 with AVX2).
//
// `Arithmetic` supplies: `Element` of an activation, `store(Element*, V[PARTS])` of 32 columns,
// `multiply` with an epilogue, `add_product`, `attention`, `enter` and `leave`; ROWS, which divides TILE:
// products are of multiples of so many rows.

#define NOINLINE __attribute__((noinline))  // so that profiles tell them apart

typedef float V __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
constexpr int PARTS = BLOCK / LANES;

static inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
static inline V spread(float x) { return V{} + x; }

// Always in the same order, so that a row's sum does not depend on where it stands.
static inline float sum(V v) {
  float lanes[LANES];
  store(lanes, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

static inline float from_half(uint16_t h) {
  // fp16 without hardware: exponent rebiased by a product, which also makes denormals right.
  uint32_t bits = (uint32_t(h) & 0x7fff) << 13;
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, 4);
  magnitude *= 0x1p112f;
  return h & 0x8000 ? -magnitude : magnitude;
}

static inline void widen_row(const Table& table, int64_t row, int hidden, float* out) {
  switch (table.kind) {
    case TableKind::f32:
      __builtin_memcpy(out, table.codes + size_t(row) * hidden * 4, size_t(hidden) * 4);
      return;
    case TableKind::bf16: {
      const uint8_t* values = table.codes + size_t(row) * hidden * 2;
      for (int i = 0; i < hidden; i++) {
        uint16_t value;
        __builtin_memcpy(&value, values + 2 * i, 2);
        uint32_t bits = uint32_t(value) << 16;
        __builtin_memcpy(out + i, &bits, 4);
      }
      return;
    }
    case TableKind::four_bits:
    case TableKind::eight_bits: {
      const bool four = table.kind == TableKind::four_bits;
      const int blocks = hidden / 32;
      const uint8_t* codes = table.codes + size_t(row) * (four ? hidden / 2 : hidden);
      const uint8_t* scales = table.scales + size_t(row) * blocks * 2;
      for (int b = 0; b < blocks; b++) {
        uint16_t half;
        __builtin_memcpy(&half, scales + 2 * b, 2);
        const float scale = from_half(half);
        float* to = out + 32 * b;
        if (four) {
          for (int i = 0; i < 16; i++) {
            const int code = codes[16 * b + i];
            to[2 * i] = float((code & 15) - 8) * scale;
            to[2 * i + 1] = float((code >> 4) - 8) * scale;
          }
        } else {
          for (int i = 0; i < 32; i++) to[i] = float(int(codes[32 * b + i]) - 128) * scale;
        }
      }
      return;
    }
  }
}

// Normalise one row into the layer input, and into the residual with the next product's bias added.
template <class A>
static inline void normalise(const Model& m, const Workspace& w, const float* row, int t, const Norm& norm,
                             const float* next_bias) {
  const int n = m.hidden;
  V total{};
  for (int i = 0; i < n; i += LANES) total += load(row + i);
  const V mean = spread(sum(total) / float(n));
  V squares{};
  for (int i = 0; i < n; i += LANES) {
    const V d = load(row + i) - mean;
    squares += d * d;
  }
  const V factor = spread(1.0f / __builtin_sqrtf(sum(squares) / float(n) + m.norm_eps));
  float* residual = w.residual + size_t(t) * m.padded_hidden;
  auto* x = static_cast<typename A::Element*>(w.x) + size_t(t) * BLOCK;
  for (int i = 0; i < m.padded_hidden; i += 32) {
    V part[PARTS];
    for (int j = 0; j < PARTS; j++) {
      const int c = i + LANES * j;
      if (c >= n) {
        part[j] = V{};
        store(residual + c, V{});
        continue;
      }
      part[j] = (load(row + c) - mean) * factor * load(norm.weight + c) + load(norm.bias + c);
      store(residual + c, next_bias ? part[j] + load(next_bias + c) : part[j]);
    }
    A::store(x + size_t(i / 32) * w.stride * BLOCK, part);
  }
}

template <class A>
NOINLINE static void embed(const Model& m, const Workspace& w, const Piece& piece, int from, int to, float* row) {
  const float* next_bias = m.layers[0].attention_out.bias;
  const Table& table = m.table;
  const size_t row_bytes = size_t(m.hidden) * (table.kind == TableKind::f32    ? 8
                                               : table.kind == TableKind::bf16 ? 4
                                               : table.kind == TableKind::eight_bits ? 2 : 1) / 2;
  for (int t = from; t < to; t++) {
    const uint8_t* codes = table.codes + size_t(piece.ids[t]) * row_bytes;
    for (size_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(codes + i);
    if (table.scales) __builtin_prefetch(table.scales + size_t(piece.ids[t]) * (m.hidden / 32) * 2);
  }
  int s = 0;
  for (int t = from; t < to; t++) {
    while (piece.starts[s + 1] <= t) s++;
    const float* position = m.positions + size_t(t - piece.starts[s]) * m.hidden;
    widen_row(table, piece.ids[t], m.hidden, row);
    for (int i = 0; i < m.hidden; i += LANES) store(row + i, load(row + i) + load(position + i));
    normalise<A>(m, w, row, t, m.embedding_norm, next_bias);
  }
}

template <class A>
NOINLINE static void normalise_rows(const Model& m, const Workspace& w, int from, int to, const Norm& norm,
                           const float* next_bias) {
  for (int t = from; t < to; t++)
    normalise<A>(m, w, w.residual + size_t(t) * m.padded_hidden, t, norm, next_bias);
}

// Each sequence's first row in the place of all of its rows, of some panels of 32 columns: what attention gave, and the residual.
template <class A>
NOINLINE static void keep_first_rows(const Model& m, const Workspace& w, const Piece& piece, int mixed_from, int mixed_to, int from, int to) {
  using Element = typename A::Element;
  for (int s = 1; s < piece.sequences; s++) {  // upwards, as no row lies before its place
    for (int b = mixed_from; b < mixed_to; b++) {
      Element* panel = static_cast<Element*>(w.mixed) + size_t(b) * w.stride * BLOCK;
      __builtin_memcpy(panel + size_t(s) * BLOCK, panel + size_t(piece.starts[s]) * BLOCK, sizeof(Element) * BLOCK);
    }
    for (int b = from; b < to; b++) {
      float* panel = w.residual + b * BLOCK;
      __builtin_memcpy(panel + size_t(s) * m.padded_hidden, panel + size_t(piece.starts[s]) * m.padded_hidden, sizeof(float) * BLOCK);
    }
  }
}

template <class A>
static void forward(const Model& m, const Workspace& w, const Piece& piece, const Team& team) {
  using Element = typename A::Element;
  const auto share = [&](int count, int rank) { return int(int64_t(count) * rank / team.size); };
  const auto wait = [&] {
    if (team.size > 1) team.wait(team.barrier);
  };
  char* scratch = w.scratch[team.rank];
  const auto whole = [](int count) { return (count + A::ROWS - 1) / A::ROWS * A::ROWS; };
  int rows = whole(piece.tokens), t0 = share(piece.tokens, team.rank), t1 = share(piece.tokens, team.rank + 1);
  const int h0 = share(m.heads, team.rank), h1 = share(m.heads, team.rank + 1);
  const int hidden_panels = m.padded_hidden / BLOCK, wide_panels = m.intermediate / BLOCK;
  const int n0 = share(hidden_panels, team.rank), n1 = share(hidden_panels, team.rank + 1);
  const int f0 = share(wide_panels, team.rank), f1 = share(wide_panels, team.rank + 1);
  const int d = m.head_blocks;
  auto* x = static_cast<Element*>(w.x);
  auto* wide = static_cast<Element*>(w.wide);
  auto* mixed = static_cast<Element*>(w.mixed);
  A::enter();
  embed<A>(m, w, piece, t0, t1, reinterpret_cast<float*>(scratch));
  wait();
  for (int l = 0; l < m.layer_count; l++) {
    const Layer& layer = m.layers[l];
    if (team.size == 1) {
      A::template multiply<false>(x, w.stride, rows, layer.qkv, 0, 3 * m.heads * d, wide, scratch);
    } else {
      for (int part = 0; part < 3; part++) {
        const int first = (part * m.heads + h0) * d;
        A::template multiply<false>(x, w.stride, rows, layer.qkv, first, first + (h1 - h0) * d, wide, scratch);
      }
    }
    for (int s = 0; s < piece.sequences; s++) {
      const int start = piece.starts[s], length = piece.starts[s + 1] - start;
      for (int h = h0; h < h1; h++) A::attention(m, wide, mixed, w.stride, start, length, h, scratch);
    }
    if (piece.first_only && l + 1 == m.layer_count) {  // what follows treats each row by itself
      keep_first_rows<A>(m, w, piece, h0 * d, h1 * d, n0, n1);
      rows = whole(piece.sequences), t0 = share(piece.sequences, team.rank), t1 = share(piece.sequences, team.rank + 1);
    }
    wait();
    A::add_product(mixed, w.stride, rows, layer.attention_out, n0, n1, w.residual, m.padded_hidden, scratch);
    wait();
    normalise_rows<A>(m, w, t0, t1, layer.attention_norm, layer.narrow.bias);
    wait();
    A::template multiply<true>(x, w.stride, rows, layer.widen, f0, f1, wide, scratch);
    wait();
    A::add_product(wide, w.stride, rows, layer.narrow, n0, n1, w.residual, m.padded_hidden, scratch);
    wait();
    normalise_rows<A>(m, w, t0, t1, layer.output_norm,
                      l + 1 < m.layer_count ? m.layers[l + 1].attention_out.bias : nullptr);
    wait();
  }
  A::leave();
}

// As kernels offer it.
template <class A>
static void run_forward(const Model& model, const Workspace& workspace, const Piece& piece, const Team& team) {
  forward<A>(model, workspace, piece, team);
}

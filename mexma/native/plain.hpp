// fp32 arithmetic written with the compiler's own vectors of LANES floats. Included after forward.hpp, in the same namespace.

typedef int32_t I __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline V largest(V a, V b) { return a > b ? a : b; }

// e^x for x <= 0, to the last bit or two; 0 below -87, NaN for NaN.
static inline V exp_negative(V x) {
  const V magic = spread(12582912.0f);
  V c = x < -87.0f ? spread(-87.0f) : x;
  const V n = (c * 1.44269504f + magic) - magic;
  const V f = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = spread(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const I power = (__builtin_convertvector(n, I) + 127) << 23;
  const V scaled = p * (V)power;
  const V finite = x < -87.0f ? V{} : scaled;
  return x == x ? finite : x;
}

// x times the normal distribution function; erf by Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
static inline V gelu_exact(V x) {
  const V z = (x < 0.0f ? -x : x) * 0.70710678f;
  const V t = 1.0f / (1.0f + 0.3275911f * z);
  V p = spread(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V tail = 0.5f * p * t * exp_negative(-z * z);  // of the distribution beyond |x|
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Attention of one head: scores row by row, 4 rows at a time.
template <class A>
struct RowAttention {

  static size_t bytes(int blocks, int length) {
    const size_t keys = (size_t(length) + 15) / 16 * 16;
    return (keys * 32 * blocks * 2 + 4 * keys + 4 * 32 * blocks) * 4;
  }

  static void run(const Model& m, const float* wide, float* mixed, int stride, int start, int length, int head,
                  char* scratch) {
    const int d = m.head_blocks, width = 32 * d, keys = (length + 15) / 16 * 16;
    const size_t step = size_t(stride) * BLOCK;
    const float* query = wide + size_t(head) * d * step + size_t(start) * BLOCK;
    const float* key = query + size_t(m.heads) * d * step;
    const float* value = key + size_t(m.heads) * d * step;
    float* out = mixed + size_t(head) * d * step + size_t(start) * BLOCK;
    auto* columns = reinterpret_cast<float*>(scratch);  // keys, [width, keys]
    float* values = columns + size_t(width) * keys;     // [keys, width]
    float* scores = values + size_t(width) * keys;      // [4, keys]
    float* queries = scores + 4 * keys;                 // [4, width]
    for (int t = 0; t < length; t++)
      for (int b = 0; b < d; b++)
        for (int c = 0; c < 32; c += LANES) {
          float lanes[LANES];
          store(lanes, load(key + b * step + t * BLOCK + c));
          for (int i = 0; i < LANES; i++) columns[size_t(32 * b + c + i) * keys + t] = lanes[i];
          store(values + size_t(t) * width + 32 * b + c, load(value + b * step + t * BLOCK + c));
        }
    for (int c = 0; c < width; c++)
      for (int t = length; t < keys; t++) columns[size_t(c) * keys + t] = 0;
    for (int first = 0; first < length; first += 4) {
      const int rows = length - first < 4 ? length - first : 4;
      for (int r = 0; r < 4; r++)
        for (int b = 0; b < d; b++)
          for (int c = 0; c < 32; c += LANES)
            store(queries + r * width + 32 * b + c, r < rows ? load(query + b * step + (first + r) * BLOCK + c) : V{});
      for (int j = 0; j < keys; j += 16) {
        V s[4][16 / LANES] = {};
        for (int c = 0; c < width; c++)
          for (int i = 0; i < 16 / LANES; i++) {
            const V k = load(columns + size_t(c) * keys + j + i * LANES);
            for (int r = 0; r < 4; r++) s[r][i] += queries[r * width + c] * k;
          }
        for (int r = 0; r < 4; r++)
          for (int i = 0; i < 16 / LANES; i++) store(scores + r * keys + j + i * LANES, s[r][i]);
      }
      for (int r = 0; r < rows; r++) {
        float* row = scores + r * keys;
        for (int j = length; j < keys; j++) row[j] = -__builtin_inff();
        V most = load(row);
        for (int j = LANES; j < keys; j += LANES) most = largest(most, load(row + j));
        float lanes[LANES];
        store(lanes, most);
        float top = lanes[0];
        for (int i = 1; i < LANES; i++) top = lanes[i] > top ? lanes[i] : top;
        V total{};
        for (int j = 0; j < keys; j += LANES) {
          const V p = exp_negative((load(row + j) - top) * 0.69314718f);
          store(row + j, p);
          total += p;
        }
        const V factor = spread(1.0f / sum(total));
        for (int j = 0; j < keys; j += LANES) store(row + j, load(row + j) * factor);
      }
      for (int b = 0; b < d; b++) {
        V sums[4][PARTS] = {};
        for (int j = 0; j < length; j++)
          for (int i = 0; i < PARTS; i++) {
            const V v = load(values + size_t(j) * width + 32 * b + i * LANES);
            for (int r = 0; r < 4; r++) sums[r][i] += scores[r * keys + j] * v;
          }
        for (int r = 0; r < rows; r++) A::store(out + b * step + (first + r) * BLOCK, sums[r]);
      }
    }
  }
};

// ROWS, and of their vectors of a panel AT_ONCE, are multiplied at once, as many as there are registers
// for. ROWS divides 16, AT_ONCE the vectors.
template <int ROWS_, int AT_ONCE>
struct Plain {
  static constexpr int ROWS = ROWS_;
  using Element = float;

  static inline void store(float* p, const V (&parts)[PARTS]) {
    for (int i = 0; i < PARTS; i++) *reinterpret_cast<V*>(p + i * LANES) = parts[i];
  }
  static void enter() {}
  static void leave() {}

  // AHEAD: fetch what comes behind this panel, the next one, into the second cache.
  template <bool AHEAD>
  static inline void block(const float* a, size_t a_step, const float* b, int k_blocks, V (&sums)[ROWS][PARTS]) {
    const size_t panel = size_t(k_blocks) * BLOCK * BLOCK;
    for (int first = 0; first < PARTS; first += AT_ONCE) {
      V part[ROWS][AT_ONCE];
      for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < AT_ONCE; i++) part[r][i] = sums[r][first + i];
      const float *rows = a, *columns = b + first * LANES;
      for (int block = 0; block < k_blocks; block++, rows += a_step)
        for (int k = 0; k < BLOCK; k++, columns += BLOCK) {
          if (AHEAD)
            for (int i = 0; i < AT_ONCE; i += 16 / LANES) __builtin_prefetch(columns + panel + i * LANES, 0, 2);
          V column[AT_ONCE];
          for (int i = 0; i < AT_ONCE; i++) column[i] = load(columns + i * LANES);
          for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < AT_ONCE; i++) part[r][i] += rows[r * BLOCK + k] * column[i];
        }
      for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < AT_ONCE; i++) sums[r][first + i] = part[r][i];
    }
  }

  template <bool ACTIVATE>
  static void multiply(const float* x, int stride, int rows, const Matrix& matrix, int from, int to, float* out, char*) {
    const size_t step = size_t(stride) * BLOCK;
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const float* b = static_cast<const float*>(matrix.packed) + size_t(panel) * matrix.k * BLOCK;
      const float* bias = matrix.bias + panel * BLOCK;
      for (int row = 0; row < rows; row += ROWS) {
        V sums[ROWS][PARTS];
        // By index: a deduced reference would forget that V may lie at any address.
        for (int r = 0; r < ROWS; r++)
          for (int i = 0; i < PARTS; i++) sums[r][i] = load(bias + i * LANES);
        if (row == ahead) block<true>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        else block<false>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        if (ACTIVATE)
          for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < PARTS; i++) sums[r][i] = gelu_exact(sums[r][i]);
        for (int r = 0; r < ROWS; r++) store(out + panel * step + (row + r) * BLOCK, sums[r]);
      }
    }
  }

  static void add_product(const float* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual,
                          int width, char*) {
    const size_t step = size_t(stride) * BLOCK;
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const float* b = static_cast<const float*>(matrix.packed) + size_t(panel) * matrix.k * BLOCK;
      for (int row = 0; row < rows; row += ROWS) {
        float* c = residual + size_t(row) * width + panel * BLOCK;
        V sums[ROWS][PARTS];
        for (int r = 0; r < ROWS; r++)
          for (int i = 0; i < PARTS; i++) sums[r][i] = load(c + size_t(r) * width + i * LANES);
        if (row == ahead) block<true>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        else block<false>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) store(c + size_t(r) * width, sums[r]);
      }
    }
  }

  static void attention(const Model& m, const float* wide, float* mixed, int stride, int start, int length, int head,
                        char* scratch) {
    RowAttention<Plain>::run(m, wide, mixed, stride, start, length, head, scratch);
  }
};

[[maybe_unused]] static size_t plain_packed_bytes(Product, int k, int n) { return size_t(k) * n * 4; }

[[maybe_unused]] static void plain_pack(Product, const float* matrix, int k, int n, void* packed) {
  auto* out = static_cast<float*>(packed);
  for (int panel = 0; panel < n / BLOCK; panel++)
    for (int row = 0; row < k; row++)
      for (int i = 0; i < BLOCK; i++) *out++ = matrix[size_t(row) * n + panel * BLOCK + i];
}

template <class A>
static size_t row_scratch_bytes(const Model& m, int longest) {
  const size_t attention = RowAttention<A>::bytes(m.head_blocks, longest), row = size_t(m.padded_hidden) * 4;
  return attention > row ? attention : row;
}

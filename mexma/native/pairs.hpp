// Products of pairs of bf16 in AVX-512, those of attention too, shared by the kernels that have them. Included
// after bf16.hpp, in the same namespace.

// Two bf16 side by side, as an instruction takes them for all columns.
inline __m512bh pair_at(const void* p) {
  int both;
  __builtin_memcpy(&both, p, 4);
  return (__m512bh)_mm512_set1_epi32(both);
}

// How what the next product multiplies is stored where a product or attention has computed it.
struct StorePairs {
  static inline void widened(void* to, __m512 low, __m512 high) { _mm512_storeu_si512(to, narrow(low, high)); }
  static inline void mixed(void* to, __m512 low, __m512 high) { _mm512_storeu_si512(to, narrow(low, high)); }
};

template <class Store>
struct Pairs {
  using Element = uint16_t;
  static constexpr int ROWS = 8;

  static inline void store(uint16_t* p, const V (&parts)[PARTS]) { _mm512_storeu_si512(p, narrow(as(parts[0]), as(parts[1]))); }
  static void enter() {}
  static void leave() {}

  // AHEAD: fetch what comes behind this panel, the next one, into the second cache.
  template <bool AHEAD>
  static inline void block(const uint16_t* a, size_t a_step, const char* b, int k_blocks, __m512 (&sums)[ROWS][2]) {
    const size_t panel = size_t(k_blocks) * 2048;
    for (int block = 0; block < k_blocks; block++, a += a_step, b += 2048)
      for (int pair = 0; pair < 16; pair++) {
        if (AHEAD) {
          _mm_prefetch(b + panel + pair * 128, _MM_HINT_T1);
          _mm_prefetch(b + panel + pair * 128 + 64, _MM_HINT_T1);
        }
        const __m512bh low = (__m512bh)_mm512_load_si512(b + pair * 64), high = (__m512bh)_mm512_load_si512(b + 1024 + pair * 64);
        for (int r = 0; r < ROWS; r++) {
          const __m512bh factor = pair_at(a + r * 32 + pair * 2);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], factor, low);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], factor, high);
        }
      }
  }

  template <bool ACTIVATE>
  static void multiply(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, uint16_t* out, char*) {
    const size_t step = size_t(stride) * BLOCK;
    const Gelu gelu(gelu_table());
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * matrix.k * 64;
      const __m512 bias[2] = {_mm512_loadu_ps(matrix.bias + panel * BLOCK), _mm512_loadu_ps(matrix.bias + panel * BLOCK + 16)};
      for (int row = 0; row < rows; row += ROWS) {
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++) sums[r][0] = bias[0], sums[r][1] = bias[1];
        if (row == ahead) block<true>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        else block<false>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) {
          uint16_t* to = out + panel * step + (row + r) * BLOCK;
          if (ACTIVATE) Store::widened(to, gelu(sums[r][0]), gelu(sums[r][1]));
          else _mm512_storeu_si512(to, narrow(sums[r][0], sums[r][1]));
        }
      }
    }
  }

  static void add_product(const uint16_t* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual,
                          int width, char*) {
    const size_t step = size_t(stride) * BLOCK;
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * matrix.k * 64;
      for (int row = 0; row < rows; row += ROWS) {
        float* c = residual + size_t(row) * width + panel * BLOCK;
        __m512 sums[ROWS][2];
        for (int r = 0; r < ROWS; r++) sums[r][0] = _mm512_loadu_ps(c + size_t(r) * width), sums[r][1] = _mm512_loadu_ps(c + size_t(r) * width + 16);
        if (row == ahead) block<true>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        else block<false>(x + row * BLOCK, step, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(c + size_t(r) * width, sums[r][0]), _mm512_storeu_ps(c + size_t(r) * width + 16, sums[r][1]);
      }
    }
  }

  // Scratch of attention: keys and values of one head as second factors, 16 keys at a time; of ROWS
  // queries scores [key group][ROWS][16] fp32 and weights [ROWS][keys] bf16.
  static size_t attention_bytes(int blocks, int length) {
    const size_t groups = (size_t(length) + 15) / 16;
    return groups * (2048 * blocks + ROWS * 64 + ROWS * 32);
  }

  static void attention(const Model& m, const uint16_t* wide, uint16_t* mixed, int stride, int start, int length, int head, char* scratch) {
    const int d = m.head_blocks, groups = (length + 15) / 16;
    const size_t block_bytes = size_t(stride) * ROW_BYTES;
    const char* query = reinterpret_cast<const char*>(wide) + size_t(start) * ROW_BYTES + size_t(head) * d * block_bytes;
    const char* key = query + size_t(m.heads) * d * block_bytes;
    const char* value = key + size_t(m.heads) * d * block_bytes;
    char* out = reinterpret_cast<char*>(mixed) + size_t(start) * ROW_BYTES + size_t(head) * d * block_bytes;
    char* keys = scratch;                         // [groups][d][16 pairs of components][16 keys]
    char* values = keys + groups * d * 1024;      // [groups][8 pairs of keys][d][32 columns]
    char* scores = values + groups * d * 1024;
    char* weights = scores + groups * ROWS * 64;
    for (int g = 0; g < groups; g++)
      for (int b = 0; b < d; b++) {
        transpose(key + b * block_bytes + g * 16 * ROW_BYTES, keys + (g * d + b) * 1024);
        for (int pair = 0; pair < 8; pair++) {
          char* to = values + ((g * 8 + pair) * d + b) * 128;
          pair_rows(value + b * block_bytes, 16 * g + 2 * pair, length, to, to + 64);
        }
      }
    const __mmask16 last = __mmask16(0xffffu >> (16 * groups - length));  // keys in the last group
    const __m512 never = _mm512_set1_ps(-__builtin_inff());
    for (int first = 0; first < length; first += ROWS) {
      const char* queries = query + first * ROW_BYTES;
      int g = 0;
      for (; g + 2 <= groups; g += 2) score<2>(queries, block_bytes, keys + g * d * 1024, d, scores + g * ROWS * 64);
      if (g < groups) score<1>(queries, block_bytes, keys + g * d * 1024, d, scores + g * ROWS * 64);
      const int rows = length - first < ROWS ? length - first : ROWS;
      float factors[ROWS];
      for (int r = 0; r < rows; r++) {
        char* row = scores + r * 64;
        char* end = row + (groups - 1) * ROWS * 64;
        _mm512_store_ps(end, _mm512_mask_blend_ps(last, never, _mm512_load_ps(end)));
        __m512 most = _mm512_load_ps(row);
        for (int i = 1; i < groups; i++) most = _mm512_max_ps(most, _mm512_load_ps(row + i * ROWS * 64));
        most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        __m512 total = _mm512_setzero_ps();
        for (int i = 0; i < groups; i++) {
          const __m512 weight = exp2(_mm512_sub_ps(_mm512_load_ps(row + i * ROWS * 64), most));
          total = _mm512_add_ps(total, weight);
          _mm256_store_si256(reinterpret_cast<__m256i*>(weights + (r * groups + i) * 32), (__m256i)_mm512_cvtneps_pbh(weight));
        }
        factors[r] = 1.0f / _mm512_reduce_add_ps(total);
      }
      for (int b = 0; b < d; b++) {
        __m512 sums[ROWS][2] = {};
        for (int pair = 0; pair < (length + 1) / 2; pair++) {
          const char* at = values + (pair * d + b) * 128;
          const __m512bh low = (__m512bh)_mm512_load_si512(at), high = (__m512bh)_mm512_load_si512(at + 64);
          for (int r = 0; r < ROWS; r++) {
            const __m512bh weight = pair_at(weights + r * groups * 32 + pair * 4);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], weight, low);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], weight, high);
          }
        }
        for (int r = 0; r < rows; r++) {
          const __m512 factor = _mm512_set1_ps(factors[r]);
          Store::mixed(out + b * block_bytes + (first + r) * ROW_BYTES, _mm512_mul_ps(sums[r][0], factor), _mm512_mul_ps(sums[r][1], factor));
        }
      }
    }
  }

  // Scores of ROWS queries and GROUPS groups of 16 keys. There is room behind the last token for all rows.
  template <int GROUPS>
  static inline void score(const char* queries, size_t block_bytes, const char* keys, int d, char* scores) {
    __m512 sums[GROUPS][ROWS] = {};
    for (int b = 0; b < d; b++)
      for (int pair = 0; pair < 16; pair++) {
        __m512bh columns[GROUPS];
        for (int i = 0; i < GROUPS; i++) columns[i] = (__m512bh)_mm512_load_si512(keys + (i * d + b) * 1024 + pair * 64);
        for (int r = 0; r < ROWS; r++) {
          const __m512bh factor = pair_at(queries + b * block_bytes + r * ROW_BYTES + pair * 4);
          for (int i = 0; i < GROUPS; i++) sums[i][r] = _mm512_dpbf16_ps(sums[i][r], factor, columns[i]);
        }
      }
    for (int i = 0; i < GROUPS; i++)
      for (int r = 0; r < ROWS; r++) _mm512_store_ps(scores + (i * ROWS + r) * 64, sums[i][r]);
  }
};

static size_t pairs_scratch_bytes(const Model& m, int longest) {
  const size_t attention = Pairs<StorePairs>::attention_bytes(m.head_blocks, longest), row = size_t(m.padded_hidden) * 4;
  return attention > row ? attention : row;
}

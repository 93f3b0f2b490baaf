// Products of whole numbers in AVX-512. Included after forward.hpp, in the same namespace.
//
// 32 weights of an output share a scale, as a compact artifact holds them, and so do a token's 32 neighbouring activations.
// So those weights are what they were, unless heads are padded to whole blocks and a block behind attention is of two of the
// artifact's; other weights are rounded. An activation is off by half a step of its 32 at most.

// 32 activations: codes, and their scale behind them.
//
// Words are signed: the largest of 32 is 32,767, of which weights are off by less than fp32's sums are. Bytes have no
// sign: one that attention gave is its code less ZERO, times the scale; one that gelu gave is nowhere far below zero, and
// is its code times the scale, plus LEAST.
constexpr int ZERO = 128;
constexpr float LEAST = -0.1701f;

// The largest of 32 magnitudes; NaN where any is, since they are compared as integers.
inline float largest_of(__m512 low, __m512 high) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const unsigned bits = _mm512_reduce_max_epu32(_mm512_max_epu32(
      _mm512_and_si512(magnitude, _mm512_castps_si512(low)), _mm512_and_si512(magnitude, _mm512_castps_si512(high))));
  float most;
  __builtin_memcpy(&most, &bits, 4);
  return most;
}

struct Words {
  static constexpr int STEPS = 16, SCALE_AT = 64;  // pairs of 32; bytes before the scale
  static constexpr float MOST = 32767;

  static inline __m512i dot(__m512i sums, __m512i activations, __m512i weights) { return _mm512_dpwssd_epi32(sums, activations, weights); }

  static inline void put(void* to, __m512 low, __m512 high) {
    const float most = largest_of(low, high), scale = most * (1 / MOST);
    const __m512 factor = _mm512_set1_ps(MOST / most);  // infinite for zeros: some codes, whose scale is zero
    auto* codes = static_cast<char*>(to);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(low, factor))));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(high, factor))));
    __builtin_memcpy(codes + SCALE_AT, &scale, 4);
  }
};

struct Bytes {
  static constexpr int STEPS = 8, SCALE_AT = 32;  // fours of 32; bytes before the scale

  static inline __m512i dot(__m512i sums, __m512i activations, __m512i weights) { return _mm512_dpbusd_epi32(sums, activations, weights); }

  template <bool SIGNED>
  static inline void put(void* to, __m512 low, __m512 high) {
    constexpr float MOST = SIGNED ? 127 : 255;
    if (!SIGNED) {  // gelu's pieces give less than LEAST below -50,000; in this order NaN stays NaN
      low = _mm512_max_ps(_mm512_setzero_ps(), _mm512_sub_ps(low, _mm512_set1_ps(LEAST)));
      high = _mm512_max_ps(_mm512_setzero_ps(), _mm512_sub_ps(high, _mm512_set1_ps(LEAST)));
    }
    const float most = largest_of(low, high), scale = most * (1 / MOST);
    const __m512 factor = _mm512_set1_ps(MOST / most);  // infinite for zeros: some codes, whose scale is zero
    const __m512i zero = _mm512_set1_epi32(SIGNED ? ZERO : 0);
    auto* codes = static_cast<char*>(to);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(_mm512_add_epi32(zero, _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)))));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtepi32_epi8(_mm512_add_epi32(zero, _mm512_cvtps_epi32(_mm512_mul_ps(high, factor)))));
    __builtin_memcpy(codes + SCALE_AT, &scale, 4);
  }
};

// Weights: panels of 32 columns, in them blocks of 32 rows: two halves of 16 columns, in them STEPS of as many rows as 4
// bytes hold; the columns' scales; what their sums begin with, int32, so that ZERO is no number. Behind the blocks what
// LEAST adds, by column.
template <class Codes>
struct Panels {
  static constexpr size_t SCALES = Codes::STEPS * 128, BEGIN = SCALES + 128, BLOCK_BYTES = BEGIN + 128, MORE_BYTES = 128;
  static size_t bytes(int k) { return size_t(k) / BLOCK * BLOCK_BYTES + MORE_BYTES; }
  static size_t packed_bytes(int k, int n) { return size_t(n) / BLOCK * bytes(k); }

  // zero: of activations. least: added to them.
  static void pack(const float* matrix, int k, int n, int zero, float least, void* packed) {
    constexpr int AT_ONCE = 32 / Codes::STEPS, CODE = 4 / AT_ONCE;  // rows of a step; bytes of a code
    auto* out = static_cast<char*>(packed);
    for (int panel = 0; panel < n / BLOCK; panel++) {
      auto* more = reinterpret_cast<float*>(out + bytes(k) - MORE_BYTES);
      for (int c = 0; c < BLOCK; c++) more[c] = 0;
      for (int block = 0; block < k / BLOCK; block++, out += BLOCK_BYTES)
        for (int c = 0; c < BLOCK; c++) {
          const float* column = matrix + size_t(block) * BLOCK * n + panel * BLOCK + c;
          const float scale = scale_of(column, n);
          int total = 0;
          for (int i = 0; i < BLOCK; i++) {
            // Of a scale that is denormal itself it may be more than 127.
            const float whole = scale > 0 ? std::nearbyint(column[size_t(i) * n] / scale) : 0;
            const auto code = static_cast<int16_t>(std::fmax(-127, std::fmin(127, whole)));
            total += code;
            __builtin_memcpy(out + ((c / 16 * Codes::STEPS + i / AT_ONCE) * 16 + c % 16) * 4 + i % AT_ONCE * CODE, &code, CODE);
          }
          reinterpret_cast<float*>(out + SCALES)[c] = scale;
          reinterpret_cast<int32_t*>(out + BEGIN)[c] = -zero * total;
          more[c] += least * scale * float(total);
        }
      out += MORE_BYTES;
    }
  }

  // The scale of a block's column: the one of which all weights are whole multiples, but for their last bits, where there
  // is one, else that which gives the largest the last number; NaN where a weight is not finite.
  static float scale_of(const float* column, int n) {
    float most = 0;
    for (int i = 0; i < BLOCK; i++) {
      if (!std::isfinite(column[size_t(i) * n])) return NAN;
      most = std::fmax(most, std::fabs(column[size_t(i) * n]));
    }
    for (int last = most > 0 ? 127 : 0; last; last--) {
      const float scale = most / float(last), times = 1 / scale;
      int i = 0;
      for (; i < BLOCK; i++) {
        const float code = column[size_t(i) * n] * times;
        if (!(std::fabs(code - std::nearbyint(code)) < 1e-3f)) break;
      }
      if (i == BLOCK) return scale;
    }
    return most / 127;
  }

  // AHEAD: fetch what comes behind this panel, the next one, into the second cache. SLOT: bytes from a row's activations
  // to the next row's.
  template <bool AHEAD, int SLOT, int ROWS>
  static inline void block(const char* a, size_t a_step, const char* b, int k_blocks, float (&sums)[ROWS][BLOCK]) {
    const size_t panel = size_t(k_blocks) * BLOCK_BYTES + MORE_BYTES;
    for (int block = 0; block < k_blocks; block++, a += a_step, b += BLOCK_BYTES) {
      __m512i whole[ROWS][2];
      for (int r = 0; r < ROWS; r++)
        whole[r][0] = _mm512_load_si512(b + BEGIN), whole[r][1] = _mm512_load_si512(b + BEGIN + 64);
      if (AHEAD)
        for (size_t line = 0; line < BLOCK_BYTES; line += 64) _mm_prefetch(b + panel + line, _MM_HINT_T1);
#pragma GCC unroll 16
      for (int step = 0; step < Codes::STEPS; step++) {
        const __m512i low = _mm512_load_si512(b + step * 64), high = _mm512_load_si512(b + (Codes::STEPS + step) * 64);
        for (int r = 0; r < ROWS; r++) {
          int four;
          __builtin_memcpy(&four, a + r * SLOT + step * 4, 4);
          const __m512i activations = _mm512_set1_epi32(four);
          whole[r][0] = Codes::dot(whole[r][0], activations, low);
          whole[r][1] = Codes::dot(whole[r][1], activations, high);
        }
      }
      const __m512 low = _mm512_load_ps(b + SCALES), high = _mm512_load_ps(b + SCALES + 64);
      for (int r = 0; r < ROWS; r++) {
        float scale;
        __builtin_memcpy(&scale, a + r * SLOT + Codes::SCALE_AT, 4);
        const __m512 factor = _mm512_set1_ps(scale);
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][0]), low), factor, _mm512_load_ps(sums[r])));
        _mm512_store_ps(sums[r] + 16, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[r][1]), high), factor, _mm512_load_ps(sums[r] + 16)));
      }
    }
  }

  // begin: what a row's sums of a panel begin with, its place (row, panel) in two vectors. end: is handed the sums.
  template <int SLOT, int ROWS, class Begin, class End>
  static inline void multiply(const void* x, int stride, int rows, const Matrix& matrix, int from, int to, const Begin& begin, const End& end) {
    const int ahead = rows > ROWS ? ROWS : 0;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * bytes(matrix.k);
      const char* more = b + bytes(matrix.k) - MORE_BYTES;
      for (int row = 0; row < rows; row += ROWS) {
        alignas(64) float sums[ROWS][BLOCK];
        for (int r = 0; r < ROWS; r++)
          for (int half = 0; half < 2; half++)
            _mm512_store_ps(sums[r] + 16 * half, _mm512_add_ps(_mm512_load_ps(more + 64 * half), begin(row + r, panel, half)));
        const char* a = static_cast<const char*>(x) + size_t(row) * SLOT;
        if (row == ahead) block<true, SLOT>(a, size_t(stride) * SLOT, b, matrix.k / BLOCK, sums);
        else block<false, SLOT>(a, size_t(stride) * SLOT, b, matrix.k / BLOCK, sums);
        for (int r = 0; r < ROWS; r++) end(row + r, panel, _mm512_load_ps(sums[r]), _mm512_load_ps(sums[r] + 16));
      }
    }
  }

  // Each row's sums onto its residual.
  template <int SLOT, int ROWS>
  static void add_product(const void* x, int stride, int rows, const Matrix& matrix, int from, int to, float* residual, int width) {
    const auto at = [&](int row, int panel) { return residual + size_t(row) * width + panel * BLOCK; };
    multiply<SLOT, ROWS>(
        x, stride, rows, matrix, from, to, [&](int row, int panel, int half) { return _mm512_loadu_ps(at(row, panel) + 16 * half); },
        [&](int row, int panel, __m512 low, __m512 high) { _mm512_storeu_ps(at(row, panel), low), _mm512_storeu_ps(at(row, panel) + 16, high); });
  }
};

// The products that end in a sum with the residual: what goes into them has few outliers.
inline bool in_bytes(Product product) { return product == Product::attention_out || product == Product::narrow; }

inline void pack_bytes(Product product, const float* matrix, int k, int n, void* packed) {
  const bool mixed = product == Product::attention_out;
  Panels<Bytes>::pack(matrix, k, n, mixed ? ZERO : 0, mixed ? 0 : LEAST, packed);
}

// bf16 arithmetic in AVX-512, shared by the kernels that multiply in bf16. Included after forward.hpp,
// in the same namespace; gelu's table is the file's own.

inline __m512 as(V v) { return (__m512)v; }

// Two vectors of 16 as 32 bf16 in order.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

constexpr size_t ROW_BYTES = 64;  // of a block of 32 columns

// 2^x for x <= 0, off by 3e-6 of it, and never less than 2^-126; NaN stays NaN.
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // below are denormals, and each costs a hundred cycles
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00960039552f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0559168938f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240237185f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693121995f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 16 keys of 32 components to pairs of components by keys, as a second factor: [16 pairs][16 keys][2].
inline void transpose(const char* keys, char* out) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(keys + i * ROW_BYTES);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 4; i++) {
      t[8 * half + i] = _mm512_shuffle_i32x4(r[8 * half + i], r[8 * half + 4 + i], 0x88);
      t[8 * half + 4 + i] = _mm512_shuffle_i32x4(r[8 * half + i], r[8 * half + 4 + i], 0xdd);
    }
  for (int i = 0; i < 8; i++) {
    const __m512i low = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    _mm512_store_si512(out + (i)*ROW_BYTES, low);
    _mm512_store_si512(out + (8 + i) * ROW_BYTES, high);
  }
}

// Rows `k` and `k + 1` of 32 columns as pairs, zeros from `length` on: columns 0 to 15 to `low`, the others to `high`.
inline void pair_rows(const char* rows, int k, int length, char* low, char* high) {
  const __m512i low_order = _mm512_set_epi16(
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high_order = _mm512_add_epi16(low_order, _mm512_set1_epi16(16));
  const __m512i first = k < length ? _mm512_loadu_si512(rows + k * ROW_BYTES) : _mm512_setzero_si512();
  const __m512i second = k + 1 < length ? _mm512_loadu_si512(rows + (k + 1) * ROW_BYTES) : _mm512_setzero_si512();
  _mm512_store_si512(low, _mm512_permutex2var_epi16(first, low_order, second));
  _mm512_store_si512(high, _mm512_permutex2var_epi16(first, high_order, second));
}

// gelu(x) = x * (1/2 + p(|x|) with x's sign). p, half of erf(|x| / sqrt 2), is in 32 pieces of degree
// 2, each around a multiple of 1/7, and off by 6e-6 at most: far below what rounding to bf16 does.
constexpr float GELU_END = 4.5f;
constexpr float GELU_PIECES_PER_UNIT = 7.0f;

struct Gelu {
  __m512 c0[2], c1[2], c2[2];

  explicit Gelu(const float (*table)[32]) {
    for (int i = 0; i < 2; i++) {
      c0[i] = _mm512_loadu_ps(table[0] + 16 * i);
      c1[i] = _mm512_loadu_ps(table[1] + 16 * i);
      c2[i] = _mm512_loadu_ps(table[2] + 16 * i);
    }
  }

  inline __m512 operator()(__m512 x) const {
    const __m512 magic = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: a sum's low bits are an integer
    const __m512 sign = _mm512_set1_ps(-0.0f);
    __m512 a = _mm512_andnot_ps(sign, x);
    a = _mm512_min_ps(_mm512_set1_ps(GELU_END * 0.99999f), a);  // in this order NaN stays NaN
    const __m512i piece = _mm512_castps_si512(_mm512_fmadd_ps(a, _mm512_set1_ps(GELU_PIECES_PER_UNIT), magic));
    const __m512 p0 = _mm512_permutex2var_ps(c0[0], piece, c0[1]);
    const __m512 p1 = _mm512_permutex2var_ps(c1[0], piece, c1[1]);
    const __m512 p2 = _mm512_permutex2var_ps(c2[0], piece, c2[1]);
    const __m512 p = _mm512_fmadd_ps(_mm512_fmadd_ps(p2, a, p1), a, p0);
    const __m512 signed_p = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(sign), _mm512_castps_si512(x), _mm512_castps_si512(p), 0xca));  // sign ? x : p
    return _mm512_fmadd_ps(x, signed_p, _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
  }
};

// Pairs of rows by columns, as both instruction sets take a second factor: panels of 32 columns, in
// them blocks of 32 rows, in them two halves of 16 columns, in them 16 pairs of rows.
static size_t bf16_packed_bytes(Product, int k, int n) { return size_t(k) * n * 2; }

static void bf16_pack(Product, const float* matrix, int k, int n, void* packed) {
  auto* out = static_cast<uint16_t*>(packed);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int panel = 0; panel < n / 32; panel++)
    for (int block = 0; block < k / 32; block++)
      for (int half = 0; half < 2; half++)
        for (int pair = 0; pair < 16; pair++, out += 32) {
          const float* row = matrix + size_t(block * 32 + pair * 2) * n + panel * 32 + half * 16;
          const __m512i both = narrow(_mm512_loadu_ps(row), _mm512_loadu_ps(row + n));
          _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, both));
        }
}

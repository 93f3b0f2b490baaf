// bf16 arithmetic in AVX-512, shared by the kernels that multiply in bf16. Included after forward.hpp,
// in the same namespace.

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

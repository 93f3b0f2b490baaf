// bf16 arithmetic in AVX-512, shared by the kernels that multiply in bf16. Included after forward.hpp,
// in the same namespace; gelu's table is the file's own.

inline __m512 as(V v) { return (__m512)v; }

// Two vectors of 16 as 32 bf16 in order.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

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
static size_t bf16_packed_bytes(int k, int n) { return size_t(k) * n * 2; }

static void bf16_pack(const float* matrix, int k, int n, void* packed) {
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

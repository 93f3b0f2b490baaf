// gelu in AVX-512 by pieces. Included in a kernel's namespace.

// gelu(x) = x * (1/2 + p(|x|) with x's sign). p, half of erf(|x| / sqrt 2), is in 32 pieces of degree
// 2, each around a multiple of 1/7, and off by 6e-6 at most: far below what rounding
// to bf16 or to 8 bits does.
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

// Kernel for processors with AMX: bf16 tiles of 16 x 32, fp32 sums; everything else in AVX-512.

#include "gelu.hpp"
#include "kernel.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include <immintrin.h>

namespace mexma {
namespace {

constexpr int LANES = 16;
#include "forward.hpp"
#include "bf16.hpp"
#include "gelu_pieces.hpp"

// Rows and columns of two neighbouring matrix blocks: 32 x 32 results in tiles 0 to 3.
constexpr size_t TILE_BYTES = 1024;

// The compiler does not know that tile loads read memory.
inline void fence() { __asm__ volatile("" ::: "memory"); }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// Tile instructions are assembly, which sanitizers do not see into: both ends of each row that one
// reads or writes are touched before.
inline void touch_rows(const void* base, long step) {
  const auto* row = static_cast<const volatile char*>(base);
  for (int i = 0; i < 16; i++, row += step) (void)row[0], (void)row[63];
}
inline void touch_rows_to_write(void* base, long step) {
  auto* row = static_cast<volatile char*>(base);
  for (int i = 0; i < 16; i++, row += step) row[0] = row[0], row[63] = row[63];
}
#undef _tile_loadd
#undef _tile_stored
#define _tile_loadd(tile, base, step) do { touch_rows(base, step); _tile_loadd_internal(tile, base, step); } while (0)
#define _tile_stored(tile, base, step) do { touch_rows_to_write(base, step); _tile_stored_internal(tile, base, step); } while (0)
#endif

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What remains to be done with a finished block while the next one is being multiplied: its sums lie
// in a buffer, [32 rows, 32 columns] fp32, and become a block of bf16.
template <bool ACTIVATE>
struct Epilogue {
  const char* sums = nullptr;
  char* out = nullptr;
  int row = 0, rows = 0;
  const Gelu& gelu;

  explicit Epilogue(const Gelu& g) : gelu(g) {}
  inline void step() {
    __m512 low = _mm512_load_ps(sums + row * 128), high = _mm512_load_ps(sums + row * 128 + 64);
    if (ACTIVATE) {
      low = gelu(low);
      high = gelu(high);
    }
    _mm512_storeu_si512(out + row * ROW_BYTES, narrow(low, high));
    row++;
  }
  inline void steps(int n) {
    for (int i = 0; i < n && row < rows; i++) step();
  }
  inline void finish() {
    while (row < rows) step();
  }
};

struct Nothing {
  inline void steps(int) {}
};

// Brings the next panel into the second cache while one is multiplied, a few lines at a time:
// all weights pass through once for each piece, and without this the tiles wait for them half the
// time. Panels of all matrices lie one after the other in the order in which they are used.
struct Ahead {
  const char* at;
  int lines;  // for each block of k

  Ahead(const char* panel, size_t panel_bytes, int row_blocks)
      : at(panel + panel_bytes), lines((32 + row_blocks - 1) / row_blocks) {}
  inline void step() {
    for (int i = 0; i < lines; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// Tiles 0 to 3 += a[32 rows] * b[32 columns] over all blocks of k. SECOND: whether rows 16 to 31 exist.
template <bool SECOND, class Side>
inline void multiply_block(const char* a, size_t a_step, const char* b, int k_blocks, Ahead& ahead, Side& side,
                           int side_steps) {
  for (int k = 0; k < k_blocks; k++) {
    _tile_loadd(4, b, ROW_BYTES);
    _tile_loadd(6, a, ROW_BYTES);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, b + TILE_BYTES, ROW_BYTES);
    _tile_dpbf16ps(1, 6, 5);
    if (SECOND) {
      _tile_loadd(7, a + TILE_BYTES, ROW_BYTES);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
    ahead.step();
    side.steps(side_steps);
    a += a_step;
    b += 2 * TILE_BYTES;
  }
}

struct Amx {
  static constexpr int ROWS = TILE;
  using Element = uint16_t;

  static inline void store(Element* p, const V (&parts)[PARTS]) { _mm512_storeu_si512(p, narrow(as(parts[0]), as(parts[1]))); }

  static void enter() {
    const TileConfig config;
    fence();
    _tile_loadconfig(&config);
  }
  static void leave() { _tile_release(); }

  // out = x * matrix + bias, or gelu of it, in panels `from` to `to`.
  template <bool ACTIVATE>
  NOINLINE static void multiply(const Element* x, int stride, int rows, const Matrix& matrix, int from, int to,
                       Element* out, char* scratch) {
    const int k_blocks = matrix.k / BLOCK;
    const size_t a_step = size_t(stride) * ROW_BYTES;
    const char* a = reinterpret_cast<const char*>(x);
    const Gelu gelu(gelu_table());
    Epilogue<ACTIVATE> side(gelu);
    char* sums = scratch;
    fence();
    const int side_steps = (32 + k_blocks - 1) / k_blocks;
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * k_blocks * 2 * TILE_BYTES;
      const float* bias = matrix.bias + panel * BLOCK;
      Ahead ahead(b, size_t(k_blocks) * 2 * TILE_BYTES, (rows + 31) / 32);
      char* column = reinterpret_cast<char*>(out) + size_t(panel) * a_step;
      for (int row = 0; row < rows; row += 32) {
        const bool second = row + 16 < rows;
        _tile_loadd(0, bias, 0);
        _tile_loadd(1, bias + 16, 0);
        if (second) {
          _tile_loadd(2, bias, 0);
          _tile_loadd(3, bias + 16, 0);
          multiply_block<true>(a + row * ROW_BYTES, a_step, b, k_blocks, ahead, side, side_steps);
        } else {
          multiply_block<false>(a + row * ROW_BYTES, a_step, b, k_blocks, ahead, side, side_steps);
        }
        side.finish();
        sums = sums == scratch ? scratch + 4096 : scratch;
        _tile_stored(0, sums, 128);
        _tile_stored(1, sums + 64, 128);
        if (second) {
          _tile_stored(2, sums + 16 * 128, 128);
          _tile_stored(3, sums + 16 * 128 + 64, 128);
        }
        side.sums = sums;
        side.out = column + row * ROW_BYTES;
        side.row = 0;
        side.rows = second ? 32 : 16;
      }
    }
    side.finish();
  }

  // residual += x * matrix, in panels `from` to `to`; the bias is in the residual already.
  NOINLINE static void add_product(const Element* x, int stride, int rows, const Matrix& matrix, int from, int to,
                          float* residual, int width, char*) {
    const int k_blocks = matrix.k / BLOCK;
    const size_t a_step = size_t(stride) * ROW_BYTES, c_step = size_t(width) * 4;
    const char* a = reinterpret_cast<const char*>(x);
    Nothing side;
    fence();
    for (int panel = from; panel < to; panel++) {
      const char* b = static_cast<const char*>(matrix.packed) + size_t(panel) * k_blocks * 2 * TILE_BYTES;
      Ahead ahead(b, size_t(k_blocks) * 2 * TILE_BYTES, (rows + 31) / 32);
      for (int row = 0; row < rows; row += 32) {
        char* c = reinterpret_cast<char*>(residual + size_t(row) * width + panel * BLOCK);
        _tile_loadd(0, c, c_step);
        _tile_loadd(1, c + 64, c_step);
        if (row + 16 < rows) {
          _tile_loadd(2, c + 16 * c_step, c_step);
          _tile_loadd(3, c + 16 * c_step + 64, c_step);
          multiply_block<true>(a + row * ROW_BYTES, a_step, b, k_blocks, ahead, side, 0);
          _tile_stored(2, c + 16 * c_step, c_step);
          _tile_stored(3, c + 16 * c_step + 64, c_step);
        } else {
          multiply_block<false>(a + row * ROW_BYTES, a_step, b, k_blocks, ahead, side, 0);
        }
        _tile_stored(0, c, c_step);
        _tile_stored(1, c + 64, c_step);
      }
    }
  }

  // Scratch of attention: scores [16, keys] fp32, weights [key blocks][16][32] bf16, keys and values of
  // one head as second factors, mixed values [16, head] and the weights' sums [16, 16].
  static size_t attention_bytes(int blocks, int length) {
    const size_t key_blocks = (length + 31) / 32;
    return key_blocks * (2 * TILE_BYTES + TILE_BYTES + 4 * TILE_BYTES * blocks) + (2 * blocks + 2) * TILE_BYTES;
  }

  NOINLINE static void attention(const Model& m, const Element* wide, Element* mixed, int stride, int start, int length,
                        int head, char* scratch) {
    const int d = m.head_blocks;
    const size_t block_bytes = size_t(stride) * ROW_BYTES;
    const char* base = reinterpret_cast<const char*>(wide) + size_t(start) * ROW_BYTES;
    const char* query = base + size_t(head) * d * block_bytes;
    const char* key = base + size_t(m.heads + head) * d * block_bytes;
    const char* value = base + size_t(2 * m.heads + head) * d * block_bytes;
    char* out = reinterpret_cast<char*>(mixed) + size_t(start) * ROW_BYTES + size_t(head) * d * block_bytes;
    const int tiles = (length + 15) / 16, blocks = (length + 31) / 32;
    char* scores = scratch;                            // [blocks][16 rows][32 keys] fp32
    char* weights = scores + blocks * 2 * TILE_BYTES;  // [blocks][16 rows][32 keys] bf16
    char* keys = weights + blocks * TILE_BYTES;        // [2 * blocks tiles][d]
    char* values = keys + 2 * blocks * d * TILE_BYTES; // [blocks][d][2]
    char* result = values + blocks * d * 2 * TILE_BYTES;
    char* sums = result + 2 * d * TILE_BYTES;
    char* ones = sums + TILE_BYTES;

    for (int j = 0; j < tiles; j++)
      for (int b = 0; b < d; b++) transpose(key + b * block_bytes + j * TILE_BYTES, keys + (j * d + b) * TILE_BYTES);
    for (int j = 0; j < blocks; j++)
      for (int b = 0; b < d; b++) {
        const char* from = value + b * block_bytes;
        char* to = values + (j * d + b) * 2 * TILE_BYTES;
        for (int pair = 0; pair < 16; pair++) {
          pair_rows(from, 32 * j + 2 * pair, length, to + pair * ROW_BYTES, to + TILE_BYTES + pair * ROW_BYTES);
        }
      }
    for (int i = 0; i < 16; i++) _mm512_store_si512(ones + i * ROW_BYTES, _mm512_set1_epi16(0x3f80));
    fence();
    // Keys beyond the end get a score of -inf.
    const int last = length - 32 * (blocks - 1);  // keys in the last block
    const __mmask16 low_mask = last >= 16 ? 0xffff : __mmask16((1u << last) - 1);
    const __mmask16 high_mask = last <= 16 ? 0 : last == 32 ? 0xffff : __mmask16((1u << (last - 16)) - 1);
    const __m512 never = _mm512_set1_ps(-__builtin_inff());

    for (int i = 0; i < tiles; i++) {
      const int rows = length - 16 * i < 16 ? length - 16 * i : 16;
      for (int j = 0; j < tiles; j++) {
        _tile_zero(0);
        for (int b = 0; b < d; b++) {
          _tile_loadd(6, query + b * block_bytes + i * TILE_BYTES, ROW_BYTES);
          _tile_loadd(4, keys + (j * d + b) * TILE_BYTES, ROW_BYTES);
          _tile_dpbf16ps(0, 6, 4);
        }
        _tile_stored(0, scores + (j / 2) * 2 * TILE_BYTES + (j % 2) * 64, 128);
      }
      // Softmax does not change when a constant is subtracted; the tile's largest score serves all its
      // rows, unless a row lies so far below that it would vanish.
      __m512 most = never;
      for (int j = 0; j < blocks; j++) {
        const bool end = j == blocks - 1;
        char* s = scores + j * 2 * TILE_BYTES;
        for (int r = 0; r < rows; r++) {
          __m512 low = _mm512_load_ps(s + r * 128), high = _mm512_load_ps(s + r * 128 + 64);
          if (end) {
            low = _mm512_mask_blend_ps(low_mask, never, low);
            high = _mm512_mask_blend_ps(high_mask, never, high);
            _mm512_store_ps(s + r * 128, low);
            _mm512_store_ps(s + r * 128 + 64, high);
          }
          most = _mm512_max_ps(most, _mm512_max_ps(low, high));
        }
      }
      mix(scores, weights, values, ones, result, sums, blocks, d, rows, _mm512_set1_ps(_mm512_reduce_max_ps(most)), false);
      __m512 least = _mm512_load_ps(sums);
      for (int r = 1; r < rows; r++) least = _mm512_min_ps(least, _mm512_load_ps(sums + r * ROW_BYTES));
      if (!(_mm512_cvtss_f32(least) >= 0x1p-64f))
        mix(scores, weights, values, ones, result, sums, blocks, d, rows, never, true);
      for (int r = 0; r < rows; r++) {
        const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(sums + r * ROW_BYTES));
        for (int b = 0; b < d; b++) {
          const char* p = result + (b * 2) * TILE_BYTES + r * ROW_BYTES;
          _mm512_storeu_si512(out + b * block_bytes + (16 * i + r) * ROW_BYTES,
                              narrow(_mm512_mul_ps(_mm512_load_ps(p), factor), _mm512_mul_ps(_mm512_load_ps(p + TILE_BYTES), factor)));
        }
      }
    }
  }

  // Weights of 16 queries, the values mixed by them, and their sums. own: subtract each row's own
  // largest score instead of `most`.
  static inline void mix(const char* scores, char* weights, const char* values, const char* ones, char* result,
                         char* sums, int blocks, int d, int rows, __m512 most, bool own) {
    for (int r = 0; r < rows; r++) {
      if (own) {
        for (int j = 0; j < blocks; j++) {
          const char* s = scores + j * 2 * TILE_BYTES + r * 128;
          const __m512 both = _mm512_max_ps(_mm512_load_ps(s), _mm512_load_ps(s + 64));
          most = j ? _mm512_max_ps(most, both) : both;
        }
        most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
      }
      for (int j = 0; j < blocks; j++) {
        const char* s = scores + j * 2 * TILE_BYTES + r * 128;
        const __m512 low = exp2(_mm512_sub_ps(_mm512_load_ps(s), most));
        const __m512 high = exp2(_mm512_sub_ps(_mm512_load_ps(s + 64), most));
        _mm512_store_si512(weights + j * TILE_BYTES + r * ROW_BYTES, narrow(low, high));
      }
    }
    fence();
    _tile_zero(3);
    _tile_loadd(7, ones, ROW_BYTES);
    for (int b = 0; b < d; b++) {
      _tile_zero(0);
      _tile_zero(1);
      for (int j = 0; j < blocks; j++) {
        _tile_loadd(6, weights + j * TILE_BYTES, ROW_BYTES);
        _tile_loadd(4, values + (j * d + b) * 2 * TILE_BYTES, ROW_BYTES);
        _tile_loadd(5, values + (j * d + b) * 2 * TILE_BYTES + TILE_BYTES, ROW_BYTES);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 6, 5);
        if (b == 0) _tile_dpbf16ps(3, 6, 7);
      }
      _tile_stored(0, result + b * 2 * TILE_BYTES, ROW_BYTES);
      _tile_stored(1, result + b * 2 * TILE_BYTES + TILE_BYTES, ROW_BYTES);
    }
    _tile_stored(3, sums, ROW_BYTES);
  }
};

size_t scratch_bytes(const Model& m, int longest) {
  const size_t attention = Amx::attention_bytes(m.head_blocks, longest), row = size_t(m.padded_hidden) * 4;
  size_t most = 8192;
  if (attention > most) most = attention;
  return row > most ? row : most;
}

}  // namespace

extern const Kernel amx_kernel;
const Kernel amx_kernel = {"amx", "bf16", 2, bf16_packed_bytes, bf16_pack, scratch_bytes, run_forward<Amx>};

}  // namespace mexma
#endif

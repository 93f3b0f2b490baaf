// What the parts of the engine agree on: plain data, no inline library code, because the files
// that include this are compiled for different instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mexma {

constexpr int BLOCK = 32;  // columns of a weight panel, and of a block of activations
constexpr int TILE = 16;   // rows of a tile; activations have room for whole tiles

// A matrix [k, n] packed for one kernel, both padded to multiples of 32.
struct Matrix {
  const void* packed = nullptr;
  const float* bias = nullptr;  // [n]
  int k = 0;
  int n = 0;
};

// Of a layer, in the order of use.
enum class Product : int { qkv = 0, attention_out = 1, widen = 2, narrow = 3 };

struct Norm {
  const float* weight = nullptr;  // [hidden]
  const float* bias = nullptr;    // [hidden]
};

struct Layer {
  Matrix qkv;  // queries, keys, values side by side; queries scaled by log2(e) / sqrt(head size)
  Matrix attention_out;
  Norm attention_norm;
  Matrix widen;
  Matrix narrow;
  Norm output_norm;
};

enum class TableKind : int { f32 = 0, four_bits = 1, eight_bits = 2, bf16 = 3 };

// Token vectors, as stored in the artifact: rows are widened as they are looked up.
struct Table {
  TableKind kind = TableKind::f32;
  const uint8_t* codes = nullptr;    // values or codes, row by row, at any alignment
  const uint8_t* scales = nullptr;   // fp16 [rows, hidden / 32]
  int64_t rows = 0;
};

struct Model {
  int hidden = 0;        // a multiple of 16
  int padded_hidden = 0; // a multiple of 32
  int heads = 0;
  int head_blocks = 0;   // blocks of 32 columns of a head
  int intermediate = 0;  // a multiple of 32
  int layer_count = 0;
  float norm_eps = 0;
  Table table;
  const float* positions = nullptr;  // [places, hidden], the segment's vector added
  int places = 0;
  Norm embedding_norm;
  const Layer* layers = nullptr;
};

// Threads that work on one piece together.
struct Team {
  int rank = 0;
  int size = 1;
  void (*wait)(void* barrier) = nullptr;
  void* barrier = nullptr;
};

// Sequences that run together, their tokens one after the other without padding.
struct Piece {
  const int64_t* ids = nullptr;     // [tokens]
  const int32_t* starts = nullptr;  // [sequences + 1]
  int sequences = 0;
  int tokens = 0;
  bool first_only = false;  // of the last layer's states only each sequence's first is wanted
};

// Where a piece is worked on. Activations are blocks of 32 columns: [blocks][stride rows][32].
struct Workspace {
  float* residual = nullptr;    // [stride, padded_hidden], row by row
  void* x = nullptr;            // layer input
  void* wide = nullptr;         // queries, keys and values; then the widened layer
  void* mixed = nullptr;        // what attention gives
  char* const* scratch = nullptr;  // one for each thread of the team
  int stride = 0;               // rows between blocks
};

struct Kernel {
  const char* name;
  const char* arithmetic;
  size_t element_bytes;  // of an activation
  size_t (*packed_bytes)(Product product, int k, int n);
  void (*pack)(Product product, const float* matrix, int k, int n, void* packed);
  size_t (*scratch_bytes)(const Model& model, int longest);
  // Leaves the last layer's states in `workspace.residual`, a row for each token or, with first_only, for each sequence.
  void (*forward)(const Model& model, const Workspace& workspace, const Piece& piece, const Team& team);
};

}  // namespace mexma

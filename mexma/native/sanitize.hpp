// What sanitizers cannot see by themselves, said to them; nothing of it is in other builds.
// `python -m tests.sanitize` builds with them.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace mexma {

// Memory that was asked for at once and handed out in parts: `close` all, then `open` each part, and
// whoever leaves his part is found.
inline void close_memory([[maybe_unused]] const char* data, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  if (data) ASAN_POISON_MEMORY_REGION(data, bytes);
#endif
}

inline void open_memory([[maybe_unused]] const char* data, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  if (data) ASAN_UNPOISON_MEMORY_REGION(data, bytes);
#endif
}

}  // namespace mexma

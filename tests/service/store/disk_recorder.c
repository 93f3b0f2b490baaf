/* Records what a process does to the files below one directory; loaded with LD_PRELOAD.

   RECORD_ROOT   the directory, absolute
   RECORD_LOG    the file that records go to

   A record is: kind (1 byte), descriptor (int32), number (int64), two byte strings, each with its length
   (uint32) before it. One lock is held while a path is found, around the call and its record, so the log
   has the order in which things happened, and the names that things had then. What is written to descriptor 1 is recorded too, as a mark.
   What it cannot record (mapped memory, copies inside the kernel) is found by disk.py, which compares. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int out = -1;
static pid_t own;
static char root[PATH_MAX];
static unsigned char tracked[1 << 16];

__attribute__((constructor)) static void start(void) {
  const char *log = getenv("RECORD_LOG"), *below = getenv("RECORD_ROOT");
  if (!log || !below) return;
  snprintf(root, sizeof root, "%s/", below);
  own = getpid();
  out = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (out < 0) abort();
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

static void all(const void *data, size_t size) {
  const char *at = data;
  while (size) {
    long done = syscall(SYS_write, out, at, size);
    if (done < 0) abort();
    at += done, size -= done;
  }
}

static void record(char kind, int fd, int64_t number, const void *a, size_t na, const void *b, size_t nb) {
  int32_t d = fd;
  uint32_t la = na, lb = nb;
  char head[1 + 4 + 8 + 4];
  memcpy(head, &kind, 1), memcpy(head + 1, &d, 4), memcpy(head + 5, &number, 8), memcpy(head + 13, &la, 4);
  all(head, sizeof head), all(a, na), all(&lb, 4), all(b, nb);
}

/* The absolute path of `path` seen from the directory `at`; whether it lies below the root. */
static int below(int at, const char *path, char full[PATH_MAX]) {
  char base[PATH_MAX] = "", link[64];
  if (out < 0) return 0;
  if (path[0] != '/') {
    if (at == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
      ssize_t n = readlink(link, base, sizeof base - 1);
      if (n < 0) return 0;
      base[n] = 0;
    }
    if ((size_t)snprintf(full, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) abort();
  } else {
    snprintf(full, PATH_MAX, "%s", path);
  }
  return !strncmp(full, root, strlen(root)) || !strncmp(full, root, strlen(root) - 1);
}

static int is_tracked(int fd) { return out >= 0 && fd >= 0 && fd < (1 << 16) && tracked[fd]; }

static int opened(int (*real)(int, const char *, int, ...), int at, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  struct stat seen;
  pthread_mutex_lock(&lock);
  if (!below(at, path, full)) {
    pthread_mutex_unlock(&lock);
    return real(at, path, flags, mode);
  }
  int existed = !fstatat(AT_FDCWD, full, &seen, 0);
  int fd = real(at, path, flags, mode), error = errno;
  if (fd >= 0) {
    if (fd >= (1 << 16)) abort();
    tracked[fd] = 1;
    record('o', fd, (existed ? 0 : 1) | (flags & O_TRUNC && existed ? 2 : 0), full, strlen(full), "", 0);
  }
  pthread_mutex_unlock(&lock);
  errno = error;
  return fd;
}

static int really_openat(int at, const char *path, int flags, ...) {
  REAL(openat);
  va_list more;
  va_start(more, flags);
  mode_t mode = va_arg(more, mode_t);
  va_end(more);
  return real(at, path, flags, mode);
}

#define MODE(flags, mode) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list more; \
    va_start(more, flags); \
    mode = va_arg(more, mode_t); \
    va_end(more); \
  }

int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(really_openat, AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(really_openat, AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, mode) return opened(really_openat, at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, mode) return opened(really_openat, at, path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(really_openat, AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(really_openat, AT_FDCWD, path, flags, 0); }

int close(int fd) {
  REAL(close);
  if (!is_tracked(fd)) return real(fd);
  pthread_mutex_lock(&lock);
  tracked[fd] = 0;
  record('c', fd, 0, "", 0, "", 0);
  int result = real(fd), error = errno;
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

#define LOCKED(call, recorded) \
  pthread_mutex_lock(&lock); \
  RECORDED(call, recorded)

#define RECORDED(call, recorded) \
  __auto_type result = call; \
  int error = errno; \
  if (result >= 0) recorded; \
  pthread_mutex_unlock(&lock); \
  errno = error; \
  return result

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (fd == 1 && out >= 0) {
    LOCKED(real(fd, data, size), record('m', fd, 0, data, result, "", 0));
  }
  if (!is_tracked(fd)) return real(fd, data, size);
  LOCKED(real(fd, data, size), record('w', fd, lseek(fd, 0, SEEK_CUR) - result, data, result, "", 0));
}

static ssize_t really_pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  if (!is_tracked(fd)) return real(fd, data, size, at);
  LOCKED(real(fd, data, size, at), record('w', fd, at, data, result, "", 0));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return really_pwrite(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return really_pwrite(fd, data, size, at); }

static int really_ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  if (!is_tracked(fd)) return real(fd, size);
  LOCKED(real(fd, size), record('t', fd, size, "", 0, "", 0));
}
int ftruncate(int fd, off_t size) { return really_ftruncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return really_ftruncate(fd, size); }

int fsync(int fd) {
  REAL(fsync);
  if (!is_tracked(fd)) return real(fd);
  LOCKED(real(fd), record('s', fd, 0, "", 0, "", 0));
}
int fdatasync(int fd) {
  REAL(fdatasync);
  if (!is_tracked(fd)) return real(fd);
  LOCKED(real(fd), record('s', fd, 0, "", 0, "", 0));
}

#define TWO(kind, from_at, from, to_at, to, call) \
  char a[PATH_MAX], b[PATH_MAX]; \
  pthread_mutex_lock(&lock); \
  int ours = below(from_at, from, a); \
  ours |= below(to_at, to, b); \
  if (!ours) { \
    pthread_mutex_unlock(&lock); \
    return call; \
  } \
  RECORDED(call, record(kind, 0, 0, a, strlen(a), b, strlen(b)))

int rename(const char *from, const char *to) {
  REAL(rename);
  TWO('r', AT_FDCWD, from, AT_FDCWD, to, real(from, to));
}
int renameat(int x, const char *from, int y, const char *to) {
  REAL(renameat);
  TWO('r', x, from, y, to, real(x, from, y, to));
}
int link(const char *from, const char *to) {
  REAL(link);
  TWO('l', AT_FDCWD, from, AT_FDCWD, to, real(from, to));
}
int linkat(int x, const char *from, int y, const char *to, int flags) {
  REAL(linkat);
  TWO('l', x, from, y, to, real(x, from, y, to, flags));
}

#define ONE(kind, at, path, call) \
  char a[PATH_MAX]; \
  pthread_mutex_lock(&lock); \
  if (!below(at, path, a)) { \
    pthread_mutex_unlock(&lock); \
    return call; \
  } \
  RECORDED(call, record(kind, 0, 0, a, strlen(a), "", 0))

int unlink(const char *path) {
  REAL(unlink);
  ONE('u', AT_FDCWD, path, real(path));
}
int unlinkat(int at, const char *path, int flags) {
  REAL(unlinkat);
  ONE('u', at, path, real(at, path, flags));
}
int rmdir(const char *path) {
  REAL(rmdir);
  ONE('u', AT_FDCWD, path, real(path));
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  ONE('d', AT_FDCWD, path, real(path, mode));
}
int mkdirat(int at, const char *path, mode_t mode) {
  REAL(mkdirat);
  ONE('d', at, path, real(at, path, mode));
}

/* The builder's thread may be at work as the process ends: what it has done is recorded whole, or not done. A child that
   could not start a program shares the lock. */
void _exit(int status) {
  if (getpid() == own) pthread_mutex_lock(&lock);
  syscall(SYS_exit_group, status);
  __builtin_unreachable();
}

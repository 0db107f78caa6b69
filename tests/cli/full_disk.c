// Preloaded into the program: while the file named by FULL_DISK_WHEN exists, writes to files below FULL_DISK_UNDER fail as on a full disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int fd) {
  const char* when = getenv("FULL_DISK_WHEN");
  const char* under = getenv("FULL_DISK_UNDER");
  if (!when || !under || access(when, F_OK) != 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return strncmp(path, under, strlen(under)) == 0;
}

ssize_t write(int fd, const void* data, size_t bytes) {
  ssize_t (*real)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  if (full(fd)) return errno = ENOSPC, -1;
  return real(fd, data, bytes);
}

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t at) {
  ssize_t (*real)(int, const void*, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
  if (full(fd)) return errno = ENOSPC, -1;
  return real(fd, data, bytes, at);
}

ssize_t writev(int fd, const struct iovec* pieces, int count) {
  ssize_t (*real)(int, const struct iovec*, int) = dlsym(RTLD_NEXT, "writev");
  if (full(fd)) return errno = ENOSPC, -1;
  return real(fd, pieces, count);
}

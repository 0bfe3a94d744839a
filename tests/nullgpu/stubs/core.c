#define _GNU_SOURCE
#include "nullgpu.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
long long ng_counts[NG_N];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char* arena;
static size_t arena_next;
static const size_t ARENA = (size_t)1 << 44;  // 16 TiB of addresses, never touched
static struct {
  char* p;
  size_t n;
} live[1 << 16];
static int n_live;
static struct {
  char* p;
  size_t n;
} pinned[1 << 16];
static int n_pinned;
static size_t used;
static const size_t GRAIN = 2 << 20;
static double env(const char* k, double d) {
  const char* s = getenv(k);
  return s ? atof(s) : d;
}
size_t ng_total(void) {
  static size_t t;
  if (!t) t = (size_t)(env("NULLGPU_GIB", 24) * (1ull << 30));
  return t;
}
static size_t context(void) { return (size_t)(env("NULLGPU_CONTEXT_MIB", 500) * (1 << 20)); }
// Processes that name the same file of zeros in NULLGPU_SHARED share the card: each has a row with its bytes there.
enum { PROCESSES = 64 };
static volatile struct {
  int pid;
  size_t used;
} * rows, *own;
static size_t others(void) {
  if (!rows) {
    const char* file = getenv("NULLGPU_SHARED");
    int fd = file ? open(file, O_RDWR) : -1;
    if (fd < 0) return 0;
    void* p = mmap(NULL, PROCESSES * sizeof(*rows), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return 0;
    rows = p;
  }
  size_t sum = 0;
  for (int i = 0; i < PROCESSES; i++) {
    int pid = rows[i].pid;
    if (pid && pid != getpid() && kill(pid, 0)) rows[i].pid = pid = 0;
    if (pid && pid != getpid()) sum += rows[i].used;
    if (!pid && (!own || own->pid != getpid()) && __sync_bool_compare_and_swap(&rows[i].pid, 0, getpid())) own = rows + i;
  }
  if (own) own->used = used + context();
  return sum;
}
size_t ng_used(void) { return used + context() + others(); }
static void base(void) {
  if (!arena) {
    arena = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) {
      perror("nullgpu arena");
      abort();
    }
  }
}
void* ng_reserve(size_t n) {
  pthread_mutex_lock(&lock);
  base();
  n = (n + GRAIN - 1) / GRAIN * GRAIN;
  void* p = arena + arena_next;
  arena_next += n;
  pthread_mutex_unlock(&lock);
  return p;
}
int ng_take(size_t n) {
  pthread_mutex_lock(&lock);
  int ok = ng_used() + n <= ng_total();
  if (ok) {
    used += n;
    others();
    ng_counts[NG_USED] = used;
    if ((long long)used > ng_counts[NG_PEAK]) ng_counts[NG_PEAK] = used;
  }
  pthread_mutex_unlock(&lock);
  return ok;
}
void ng_give(size_t n) {
  pthread_mutex_lock(&lock);
  used -= n;
  others();
  ng_counts[NG_USED] = used;
  pthread_mutex_unlock(&lock);
}
void* ng_alloc(size_t n) {
  n = (n + GRAIN - 1) / GRAIN * GRAIN;
  if (!ng_take(n)) return NULL;
  void* p = ng_reserve(n);
  pthread_mutex_lock(&lock);
  live[n_live].p = p;
  live[n_live++].n = n;
  ng_counts[NG_MALLOC]++;
  pthread_mutex_unlock(&lock);
  return p;
}
void ng_free(void* p) {
  if (!p) return;
  pthread_mutex_lock(&lock);
  size_t n = 0;
  for (int i = n_live - 1; i >= 0; i--)
    if (live[i].p == p) {
      n = live[i].n;
      live[i] = live[--n_live];
      ng_counts[NG_FREE]++;
      break;
    }
  pthread_mutex_unlock(&lock);
  if (n) ng_give(n);
}
int ng_kind(const void* p) {  // 2 device, 1 pinned, 0 pageable
  if (arena && (char*)p >= arena && (char*)p < arena + ARENA) return 2;
  int found = 0;
  pthread_mutex_lock(&lock);
  for (int i = n_pinned - 1; i >= 0 && !found; i--) found = (char*)p >= pinned[i].p && (char*)p < pinned[i].p + pinned[i].n;
  pthread_mutex_unlock(&lock);
  return found;
}
void ng_host_register(void* p, size_t n) {
  pthread_mutex_lock(&lock);
  pinned[n_pinned].p = p;
  pinned[n_pinned++].n = n;
  pthread_mutex_unlock(&lock);
}
void ng_host_unregister(void* p) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_pinned; i++)
    if (pinned[i].p == p) {
      pinned[i] = pinned[--n_pinned];
      break;
    }
  pthread_mutex_unlock(&lock);
}
// pages come as they are touched; fresh ones are zero
void* ng_host_alloc(size_t n) {
  void* p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return NULL;
  ng_host_register(p, n);
  return p;
}
void ng_host_free(void* p) {
  size_t n = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_pinned; i++)
    if (pinned[i].p == p) {
      n = pinned[i].n;
      pinned[i] = pinned[--n_pinned];
      break;
    }
  pthread_mutex_unlock(&lock);
  if (n) munmap(p, n);
}
void ng_sync(const char* what) { ng_counts[NG_SYNC]++; }
int ng_attribute(int a) {
  static int major, minor;
  if (!major) {
    int cc = (int)env("NULLGPU_CC", 80);
    major = cc / 10;
    minor = cc % 10;
  }
  switch (a) {
    case 1:
      return 1024;
    case 2:
    case 3:
      return 1024;
    case 4:
      return 64;
    case 5:
      return 2147483647;
    case 6:
    case 7:
      return 65535;
    case 8:
      return 49152;
    case 9:
      return 65536;
    case 10:
      return 32;
    case 12:
      return 65536;
    case 13:
      return 1410000;
    case 14:
      return 512;
    case 15:
      return 1;
    case 16:
      return major == 9 ? 132 : major == 8 && minor == 0 ? 108 : major == 8 && minor == 9 ? 128 : 82;
    case 19:
      return 1;
    case 31:
      return 1;
    case 33:
      return 0;
    case 34:
      return 0;
    case 36:
      return 1215000;
    case 37:
      return 5120;
    case 38:
      return 40 << 20;
    case 39:
      return major == 8 && minor ? 1536 : 2048;
    case 40:
      return 3;
    case 41:
      return 1;
    case 75:
      return major;
    case 76:
      return minor;
    case 78:
      return 1;
    case 81:
      return major == 9 ? 233472 : minor == 0 ? 167936 : 102400;
    case 82:
      return 65536;
    case 83:
      return 1;
    case 86:
      return 1;
    case 87:
      return 32;
    case 88:
      return 1;
    case 89:
      return 1;
    case 95:
      return 1;
    case 97:
      return major == 9 ? 232448 : minor == 0 ? 166912 : 101376;
    case 102:
      return 1;
    case 106:
      return 32;
    case 111:
      return 1024;
    case 115:
      return 1;
    default:
      return 0;
  }
}
__attribute__((visibility("default"))) long long nullgpu_count(int i) { return ng_counts[i]; }
__attribute__((visibility("default"))) void nullgpu_reset_peak(void) { ng_counts[NG_PEAK] = ng_counts[NG_USED]; }

#pragma once
#include <stddef.h>
enum {
  NG_LAUNCH,
  NG_SYNC,
  NG_H2D_PINNED,
  NG_H2D_PAGEABLE,
  NG_H2D_BYTES,
  NG_D2H,
  NG_D2H_BYTES,
  NG_D2D,
  NG_GEMM,
  NG_MALLOC,
  NG_FREE,
  NG_HOSTALLOC,
  NG_GRAPHS,
  NG_GRAPHLAUNCH,
  NG_MANAGED,
  NG_PEAK,
  NG_USED,
  NG_OPERATIONS,
  NG_N
};
extern long long ng_counts[NG_N];
void* ng_alloc(size_t n);
void ng_free(void* p);
size_t ng_total(void);
size_t ng_used(void);
int ng_kind(const void* p);
void* ng_host_alloc(size_t n);
void ng_host_free(void* p);
void ng_host_register(void* p, size_t n);
void ng_host_unregister(void* p);
void ng_sync(const char* what);
int ng_attribute(int a);
void* ng_reserve(size_t n);
int ng_take(size_t n);
void ng_give(size_t n);

// The driver, as far as anyone asks.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include "nullgpu.h"
typedef int R;
typedef unsigned long long DP;
static void* handle(void) { return calloc(1, 256); }
static void* one(void) {
  static void* h;
  if (!h) h = handle();
  return h;
}
R cuInit(unsigned f) { return 0; }
R cuDriverGetVersion(int* v) {
  *v = 13000;
  return 0;
}
R cuDeviceGetCount(int* n) {
  *n = 1;
  return 0;
}
R cuDeviceGet(int* d, int i) {
  *d = i;
  return 0;
}
R cuDeviceGetName(char* s, int n, int d) {
  snprintf(s, n, "NULL GPU");
  return 0;
}
R cuDeviceTotalMem_v2(size_t* n, int d) {
  *n = ng_total();
  return 0;
}
R cuDeviceGetAttribute(int* v, int a, int d) {
  *v = ng_attribute(a);
  return 0;
}
R cuDeviceComputeCapability(int* a, int* b, int d) {
  *a = ng_attribute(75);
  *b = ng_attribute(76);
  return 0;
}
R cuDeviceGetUuid(char* u, int d) {
  for (int i = 0; i < 16; i++) u[i] = i + 1;
  return 0;
}
R cuDeviceGetUuid_v2(char* u, int d) { return cuDeviceGetUuid(u, d); }
R cuDevicePrimaryCtxRetain(void** c, int d) {
  *c = one();
  return 0;
}
R cuDevicePrimaryCtxGetState(int d, unsigned* f, int* active) {
  if (f) *f = 0;
  *active = 1;
  return 0;
}
R cuCtxGetCurrent(void** c) {
  *c = one();
  return 0;
}
R cuCtxGetDevice(int* d) {
  *d = 0;
  return 0;
}
R cuCtxGetDevice_v2(int* d, void* c) {
  *d = 0;
  return 0;
}
R cuCtxGetApiVersion(void* c, unsigned* v) {
  *v = 13000;
  return 0;
}
R cuCtxSynchronize(void) {
  ng_sync("ctx");
  return 0;
}
R cuStreamSynchronize(void* s) {
  ng_sync("stream");
  return 0;
}
R cuModuleLoadData(void** m, const void* p) {
  *m = handle();
  return 0;
}
R cuModuleLoadDataEx(void** m, const void* p, unsigned n, void* o, void** v) {
  *m = handle();
  return 0;
}
R cuModuleLoad(void** m, const char* p) {
  *m = handle();
  return 0;
}
R cuModuleGetFunction(void** f, void* m, const char* n) {
  *f = handle();
  return 0;
}
R cuModuleGetGlobal_v2(DP* p, size_t* n, void* m, const char* s) {
  if (p) *p = (DP)ng_reserve(1 << 20);
  if (n) *n = 1 << 20;
  return 0;
}
R cuLibraryLoadData(void** l, const void* c, void* o, void** v, unsigned n, void* lo, void** lv, unsigned ln) {
  *l = handle();
  return 0;
}
R cuLibraryGetKernel(void** k, void* l, const char* n) {
  *k = handle();
  return 0;
}
R cuKernelGetFunction(void** f, void* k) {
  *f = k;
  return 0;
}
R cuFuncGetAttribute(int* v, int a, void* f) {
  *v = a == 0 ? 1024 : a == 4 ? 32 : a == 8 ? ng_attribute(97) : 0;
  return 0;
}
R cuKernelGetAttribute(int* v, int a, void* f, int d) { return cuFuncGetAttribute(v, a, f); }
R cuFuncGetModule(void** m, void* f) {
  *m = one();
  return 0;
}
R cuOccupancyMaxActiveClusters(int* n, void* f, void* c) {
  *n = 16;
  return 0;
}
R cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int b, size_t m) {
  *n = 2;
  return 0;
}
R cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* f, int b, size_t m, unsigned fl) {
  *n = 2;
  return 0;
}
R cuLaunchKernel(void* f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void* s, void** p, void** x) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
R cuLaunchKernelEx(void* c, void* f, void** p, void** x) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
R cuLaunchCooperativeKernel(void* f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned m, void* s,
                            void** p) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
R cuGetErrorString(R e, const char** s) {
  *s = "nullgpu driver error";
  return 0;
}
R cuGetErrorName(R e, const char** s) {
  *s = "nullgpu driver error";
  return 0;
}
R cuMemGetInfo_v2(size_t* f, size_t* t) {
  *t = ng_total();
  *f = ng_total() - ng_used();
  return 0;
}
R cuMemAlloc_v2(DP* p, size_t n) {
  *p = (DP)ng_alloc(n);
  return *p ? 0 : 2;
}
R cuMemFree_v2(DP p) {
  ng_free((void*)p);
  return 0;
}
R cuPointerGetAttribute(void* v, int a, DP p) {
  int k = ng_kind((void*)p);
  if (a == 2) *(int*)v = k == 2 ? 2 : 1;
  else if (a == 3) *(DP*)v = p;
  else if (a == 9) *(int*)v = 0;
  else memset(v, 0, 4);
  return (k || a == 2 || a == 3 || a == 9) ? 0 : 1;
}
R cuMemGetAllocationGranularity(size_t* g, const void* p, int o) {
  *g = 2 << 20;
  return 0;
}
R cuMemAddressReserve(DP* p, size_t n, size_t al, DP a, unsigned long long f) {
  *p = (DP)ng_reserve(n);
  return 0;
}
R cuMemCreate(DP* h, size_t n, const void* p, unsigned long long f) {
  if (!ng_take(n)) return 2;
  size_t* x = handle();
  *x = n;
  *h = (DP)(uintptr_t)x;
  ng_counts[NG_MALLOC]++;
  return 0;
}
R cuMemRelease(DP h) {
  size_t* x = (size_t*)(uintptr_t)h;
  if (x && *x) {
    ng_give(*x);
    *x = 0;
    ng_counts[NG_FREE]++;
  }
  return 0;
}
R cuMemMap(DP p, size_t n, size_t o, DP h, unsigned long long f) { return 0; }
R cuMemUnmap(DP p, size_t n) { return 0; }
static int nothing(void) { return 0; }
R cuGetProcAddress_v2(const char* s, void** f, int v, uint64_t fl, int* st) {
  char v2[256];
  snprintf(v2, sizeof v2, "%s_v2", s);
  *f = dlsym(RTLD_DEFAULT, v2);
  if (!*f) *f = dlsym(RTLD_DEFAULT, s);
  if (!*f) *f = (void*)nothing;
  if (st) *st = 0;
  return 0;
}
R cuGetProcAddress(const char* s, void** f, int v, uint64_t fl) { return cuGetProcAddress_v2(s, f, v, fl, 0); }
R cuGetExportTable(const void** t, const void* id) { return 500; }

// A CUDA runtime without a device: memory is counted, kernels are counted and not run, what is read back is zero (one byte: 1).
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "nullgpu.h"

static __thread cudaError_t last = cudaSuccess;
static cudaError_t fail(cudaError_t e) {
  last = e;
  return e;
}
cudaError_t cudaGetLastError(void) {
  cudaError_t e = last;
  last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError(void) { return last; }
const char* cudaGetErrorString(cudaError_t e) { return e == 0 ? "no error" : e == 2 ? "out of memory" : "nullgpu error"; }
const char* cudaGetErrorName(cudaError_t e) { return e == 0 ? "cudaSuccess" : e == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorNull"; }

cudaError_t cudaGetDeviceCount(int* n) {
  if (getenv("NULLGPU_OLD_DRIVER")) {
    *n = 0;
    return fail(cudaErrorInsufficientDriver);
  }
  *n = 1;
  return 0;
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return 0;
}
cudaError_t cudaSetDevice(int d) { return d == 0 ? 0 : fail(cudaErrorInvalidDevice); }
cudaError_t cudaDriverGetVersion(int* v) {
  *v = 13000;
  return 0;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = 13000;
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int d) {
  *v = ng_attribute((int)a);
  return 0;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* a, int* b) {
  *a = 0;
  *b = -5;
  return 0;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int a, int b) {
  *can = 0;
  return 0;
}
cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:01:00.0");
  return 0;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "NULL GPU sm_%d%d", ng_attribute(75), ng_attribute(76));
  p->totalGlobalMem = ng_total();
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = ng_attribute(75);
  p->minor = ng_attribute(76);
  p->textureAlignment = 512;
  p->multiProcessorCount = ng_attribute(16);
  p->unifiedAddressing = 1;
  p->memoryBusWidth = 5120;
  p->l2CacheSize = 40 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerMultiprocessor = ng_attribute(81);
  p->regsPerMultiprocessor = 65536;
  p->managedMemory = 1;
  p->concurrentManagedAccess = 1;
  p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = ng_attribute(97);
  p->reservedSharedMemPerBlock = 1024;
  p->concurrentKernels = 1;
  p->asyncEngineCount = 3;
  p->canMapHostMemory = 1;
  p->maxBlocksPerMultiProcessor = 32;
  for (int i = 0; i < 16; i++) ((char*)&p->uuid)[i] = i + 1;
  return 0;
}
// ---- memory
cudaError_t cudaMalloc(void** p, size_t n) {
  *p = ng_alloc(n);
  return *p ? 0 : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  ng_free(p);
  return 0;
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned f) {
  ng_counts[NG_MANAGED] += n;
  *p = calloc(1, n);
  return 0;
}
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *t = ng_total();
  *f = ng_total() - ng_used();
  return 0;
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned f) {
  *p = ng_host_alloc(n);
  ng_counts[NG_HOSTALLOC]++;
  return *p ? 0 : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void* p) {
  ng_host_free(p);
  return 0;
}
cudaError_t cudaHostRegister(void* p, size_t n, unsigned f) {
  ng_host_register(p, n);
  return 0;
}
cudaError_t cudaHostUnregister(void* p) {
  ng_host_unregister(p);
  return 0;
}
cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned f) {
  *d = h;
  return 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  int k = ng_kind(p);
  a->type = k == 2 ? cudaMemoryTypeDevice : k == 1 ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->devicePointer = k ? (void*)p : NULL;
  a->hostPointer = k == 1 ? (void*)p : NULL;
  return 0;
}
static void copy(void* dst, const void* src, size_t n, int async) {
  int d = ng_kind(dst), s = ng_kind(src);
  if (d == 2 && s == 2) {
    ng_counts[NG_D2D]++;
    return;
  }
  if (d == 2) {
    ng_counts[s == 1 && async ? NG_H2D_PINNED : NG_H2D_PAGEABLE]++;
    ng_counts[NG_H2D_BYTES] += n;
    if (!async) ng_counts[NG_SYNC]++;
    return;
  }
  if (s == 2) {
    ng_counts[NG_D2H]++;
    ng_counts[NG_D2H_BYTES] += n;
    if (!async || d == 0) ng_sync("d2h");
    if (n < ((size_t)64 << 20)) memset(dst, 0, n);  // larger ones go to fresh pages, which are zero
    if (n == 1) *(char*)dst = 1;
    else if (n > 8 && n % 8 == 0 && n < ((size_t)64 << 20)) {
      static int k = -1;
      if (k < 0) k = getenv("NULLGPU_TOKEN") ? atoi(getenv("NULLGPU_TOKEN")) : 0;
      if (k)
        for (size_t i = 0; i < n; i += 8) ((char*)dst)[i] = k;
    }
    return;
  }
  memcpy(dst, src, n);
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, enum cudaMemcpyKind k) {
  copy(d, s, n, 0);
  return 0;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  copy(d, s, n, 1);
  return 0;
}
cudaError_t cudaMemcpyPeerAsync(void* d, int a, const void* s, int b, size_t n, cudaStream_t st) { return 0; }
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t st) {
  for (size_t i = 0; i < h; i++) copy((char*)d + i * dp, (const char*)s + i * sp, w, 1);
  return 0;
}
cudaError_t cudaMemset(void* d, int v, size_t n) {
  if (ng_kind(d) != 2) memset(d, v, n);
  else ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t s) { return cudaMemset(d, v, n); }
cudaError_t cudaGetSymbolAddress(void** p, const void* s) {
  *p = ng_alloc(2 << 20);
  return 0;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int d) {
  *p = (cudaMemPool_t)malloc(16);
  return 0;
}
// ---- streams and events
static void* handle(void) { return calloc(1, 64); }
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  *s = handle();
  return 0;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned f) {
  *s = handle();
  return 0;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int p) {
  *s = handle();
  return 0;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int* p) {
  *p = 0;
  return 0;
}
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* p) {
  *p = 0;
  return 0;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  ng_sync("stream");
  return 0;
}
cudaError_t cudaDeviceSynchronize(void) {
  ng_sync("device");
  return 0;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  ng_sync("event");
  return 0;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = handle();
  return 0;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned f) {
  *e = handle();
  return 0;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return 0;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  free(s);
  return 0;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = 1.0f;
  return 0;
}
static int capturing = 0;
static unsigned long long capture_id = 0;
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  capturing = 1;
  capture_id++;
  ng_counts[NG_GRAPHS]++;
  return 0;
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t* d, const cudaGraphEdgeData* e, size_t n,
                                          enum cudaStreamCaptureMode m) {
  return cudaStreamBeginCapture(s, m);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  capturing = 0;
  *g = handle();
  return 0;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus* st) {
  *st = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return 0;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus* st, unsigned long long* id, cudaGraph_t* g,
                                     const cudaGraphNode_t** d, const cudaGraphEdgeData** e, size_t* n) {
  static cudaGraph_t one;
  if (!one) one = handle();
  *st = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = capture_id;
  if (g) *g = one;
  if (d) *d = NULL;
  if (e) *e = NULL;
  if (n) *n = 0;
  return 0;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* m) { return 0; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long f) {
  *e = handle();
  return 0;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long f) {
  *e = handle();
  return 0;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* n) {
  *n = 1;
  if (nodes) nodes[0] = handle();
  return 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  ng_counts[NG_GRAPHLAUNCH]++;
  return 0;
}
// ---- kernels
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t m, cudaStream_t s) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** a, size_t m, cudaStream_t s) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t m, cudaStream_t s) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t m, cudaStream_t s) {
  ng_counts[NG_LAUNCH]++;
  return 0;
}
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) {
  *k = (cudaKernel_t)f;
  return 0;
}
static __thread struct {
  dim3 g, b;
  size_t m;
  void* s;
} call;
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t m, void* s) {
  call.g = g;
  call.b = b;
  call.m = m;
  call.s = s;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* m, void* s) {
  *g = call.g;
  *b = call.b;
  *m = call.m;
  *(void**)s = call.s;
  return 0;
}
void** __cudaRegisterFatBinary(void* p) { return handle(); }
char __cudaInitModule(void** h) { return 1; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void* f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  int capability = 10 * ng_attribute(75) + ng_attribute(76);
  a->ptxVersion = a->binaryVersion = capability == 89 ? 86 : capability;  // torch has no kernels for 8.9, and runs those for 8.6
  a->maxDynamicSharedSizeBytes = ng_attribute(97);
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int b, size_t m) {
  *n = 2;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int b, size_t m, unsigned fl) {
  *n = 2;
  return 0;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t* l, const void* c, enum cudaJitOption* o, void** ov, unsigned n, enum cudaLibraryOption* lo,
                                void** lv, unsigned ln) {
  *l = handle();
  return 0;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t* k, cudaLibrary_t l, const char* name) {
  *k = handle();
  return 0;
}
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned v, unsigned long long fl,
                                             enum cudaDriverEntryPointQueryResult* r) {
  char v2[256];
  snprintf(v2, sizeof v2, "%s_v2", name);
  void* lib = dlopen("libcuda.so.1", RTLD_NOW);
  *f = lib ? dlsym(lib, v2) : NULL;
  if (!*f && lib) *f = dlsym(lib, name);
  if (!*f) {
    if (getenv("NULLGPU_VERBOSE")) fprintf(stderr, "nullgpu: no %s\n", name);
    *f = (void*)nothing;
  }
  if (r) *r = cudaDriverEntryPointSuccess;
  return 0;
}
cudaError_t cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long fl, enum cudaDriverEntryPointQueryResult* r) {
  return cudaGetDriverEntryPointByVersion(name, f, 0, fl, r);
}

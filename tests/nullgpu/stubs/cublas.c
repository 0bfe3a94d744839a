// No products: they are counted.
#include <stdlib.h>
#include <string.h>
#include "nullgpu.h"
static void* handle(void) { return calloc(1, 256); }
int cublasCreate_v2(void** h) {
  *h = handle();
  return 0;
}
int cublasGetMathMode(void* h, int* m) {
  *m = 0;
  return 0;
}
int cublasGetPointerMode_v2(void* h, int* m) {
  *m = 0;
  return 0;
}
int cublasGetVersion_v2(void* h, int* v) {
  *v = 130100;
  return 0;
}
int cublasGetProperty(int k, int* v) {
  *v = k == 0 ? 13 : 1;
  return 0;
}
const char* cublasGetStatusString(int s) { return "nullgpu cublas"; }
const char* cublasGetStatusName(int s) { return "nullgpu cublas"; }
#define GEMM(name)        \
  int name(void) {        \
    ng_counts[NG_GEMM]++; \
    return 0;             \
  }
GEMM(cublasGemmEx)
GEMM(cublasGemmStridedBatchedEx) GEMM(cublasSgemm_v2) GEMM(cublasSgemmEx) GEMM(cublasSgemmStridedBatched) GEMM(cublasDgemm_v2)
    GEMM(cublasSgemv_v2) GEMM(cublasGemmBatchedEx)

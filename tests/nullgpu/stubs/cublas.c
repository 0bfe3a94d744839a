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
// 2 m n k operations each
static int product(long long m, long long n, long long k, long long batch) {
  ng_counts[NG_GEMM]++;
  ng_counts[NG_OPERATIONS] += 2 * m * n * k * batch;
  return 0;
}
#define GEMM(name) \
  int name(void* h, int a, int b, int m, int n, int k) { return product(m, n, k, 1); }
GEMM(cublasGemmEx)
GEMM(cublasSgemm_v2)
GEMM(cublasSgemmEx)
GEMM(cublasDgemm_v2)
int cublasSgemv_v2(void* h, int a, int m, int n) { return product(m, n, 1, 1); }
int cublasGemmStridedBatchedEx(void* h, int ta, int tb, int m, int n, int k, void* alpha, void* a, int at, int lda, long long sa, void* b,
                               int bt, int ldb, long long sb, void* beta, void* c, int ct, int ldc, long long sc, int batch) {
  return product(m, n, k, batch);
}
int cublasSgemmStridedBatched(void* h, int ta, int tb, int m, int n, int k, void* alpha, void* a, int lda, long long sa, void* b, int ldb,
                              long long sb, void* beta, void* c, int ldc, long long sc, int batch) {
  return product(m, n, k, batch);
}

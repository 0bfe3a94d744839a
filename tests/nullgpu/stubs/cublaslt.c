#include <stdlib.h>
#include <string.h>
#include <cublasLt.h>
#include "nullgpu.h"
static void* handle(void) { return calloc(1, 256); }
cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) {
  *h = handle();
  return 0;
}
size_t cublasLtGetVersion(void) { return 130100; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
cublasStatus_t cublasLtGetProperty(libraryPropertyType k, int* v) {
  *v = k == 0 ? 13 : 1;
  return 0;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t c, cudaDataType_t s) {
  *d = handle();
  return 0;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
  free((void*)d);
  return 0;
}
typedef struct {
  uint64_t rows, columns;
  int batch;
} Layout;
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* d, cudaDataType t, uint64_t r, uint64_t c, int64_t ld) {
  Layout* made = handle();
  made->rows = r, made->columns = c, made->batch = 1;
  *d = (cublasLtMatrixLayout_t)made;
  return 0;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t d, cublasLtMatrixLayoutAttribute_t name, const void* value,
                                                size_t n) {
  if (name == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) ((Layout*)d)->batch = *(const int*)value;
  return 0;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t d) {
  free((void*)d);
  return 0;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* d) {
  *d = handle();
  return 0;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t d) {
  free((void*)d);
  return 0;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t p, int want, cublasLtMatmulHeuristicResult_t r[], int* n) {
  memset(r, 0, sizeof(r[0]) * want);
  for (int i = 0; i < want; i++) r[i].state = 0;
  *n = want ? 1 : 0;
  return 0;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void* al, const void* A, cublasLtMatrixLayout_t a,
                              const void* B, cublasLtMatrixLayout_t b, const void* be, const void* C, cublasLtMatrixLayout_t c, void* D,
                              cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* g, void* w, size_t ws, cudaStream_t s) {
  const Layout *left = (const Layout*)a, *out = (const Layout*)d;
  ng_counts[NG_GEMM]++;
  // the left matrix is m x k or k x m, whichever is transposed
  ng_counts[NG_OPERATIONS] += 2 * left->rows * left->columns * out->columns * out->batch;
  return 0;
}

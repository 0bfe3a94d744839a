#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "nullgpu.h"
typedef int R;
R nvmlInit_v2(void) { return 0; }
R nvmlInit(void) { return 0; }
R nvmlInitWithFlags(unsigned f) { return 0; }
R nvmlShutdown(void) { return 0; }
R nvmlDeviceGetCount_v2(unsigned* n) {
  *n = 1;
  return 0;
}
R nvmlDeviceGetCount(unsigned* n) {
  *n = 1;
  return 0;
}
R nvmlDeviceGetHandleByIndex_v2(unsigned i, void** h) {
  *h = (void*)0x10;
  return 0;
}
R nvmlDeviceGetHandleByUUID(const char* u, void** h) {
  *h = (void*)0x10;
  return 0;
}
R nvmlDeviceGetHandleByPciBusId_v2(const char* u, void** h) {
  *h = (void*)0x10;
  return 0;
}
R nvmlDeviceGetName(void* h, char* s, unsigned n) {
  snprintf(s, n, "NULL GPU");
  return 0;
}
R nvmlDeviceGetUUID(void* h, char* s, unsigned n) {
  snprintf(s, n, "GPU-01020304-0506-0708-090a-0b0c0d0e0f10");
  return 0;
}
R nvmlSystemGetDriverVersion(char* s, unsigned n) {
  snprintf(s, n, "580.00");
  return 0;
}
R nvmlSystemGetCudaDriverVersion_v2(int* v) {
  *v = 13000;
  return 0;
}
R nvmlSystemGetNVMLVersion(char* s, unsigned n) {
  snprintf(s, n, "13.580.00");
  return 0;
}
R nvmlDeviceGetCudaComputeCapability(void* h, int* a, int* b) {
  *a = ng_attribute(75);
  *b = ng_attribute(76);
  return 0;
}
R nvmlDeviceGetMemoryInfo(void* h, unsigned long long* m) {
  m[0] = ng_total();
  m[1] = ng_total() - ng_used();
  m[2] = ng_used();
  return 0;
}
R nvmlDeviceGetMemoryInfo_v2(void* h, char* m) {
  unsigned long long* q = (unsigned long long*)(m + 8);
  q[0] = ng_total();
  q[1] = 0;
  q[2] = ng_total() - ng_used();
  q[3] = ng_used();
  return 0;
}
const char* nvmlErrorString(R e) { return "nullgpu nvml"; }
R nvmlDeviceGetComputeRunningProcesses(void* h, unsigned* n, void* p) {
  *n = 0;
  return 0;
}

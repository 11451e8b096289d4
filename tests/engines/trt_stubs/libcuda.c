/* A driver that knows one GPU. Build with -DINIT=n, -DCOUNT=n, -DMEMINFO=n to make a call fail. */
#include <stddef.h>
#include <string.h>

#ifndef INIT
#define INIT 0
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef MEMINFO
#define MEMINFO 0
#endif

static int retained, pushed;

int contexts(void) { return retained + pushed; }
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return device == 7 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &retained; retained++; return device == 7 ? 0 : 101; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return device == 7 ? 0 : 101; }
int cuCtxPushCurrent_v2(void *context) { pushed++; return context == &retained ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { pushed--; *context = &retained; return 0; }

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = (size_t)50 << 30;
    *total = (size_t)64 << 30;
    return pushed ? MEMINFO : 201;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device == 7 ? 0 : 101;
}

int cuGetErrorName(int status, const char **name) {
    *name = status == 34 ? "CUDA_ERROR_STUB_LIBRARY" : status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : NULL;
    return *name == NULL;
}

/* A CUDA driver of host memory: the calls that device_cuda.py makes, for its bindings to find. Copies wait for
   cuStreamSynchronize; whatever needs a current context fails without one (201, CUDA_ERROR_INVALID_CONTEXT). */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
static char context, stream;
static int current, live;
static struct { void *to; const void *from; size_t nbytes; } queue[64];
static int queued;
static struct { int parts, live; void *to[8]; const void *from[8]; size_t nbytes[8]; } graphs[8], *recorded;
static int made;

static int new_memory(void **memory, size_t nbytes) {
    if (!current) return 201;
    if (nbytes > (1u << 30)) return 2;
    *memory = aligned_alloc(256, (nbytes + 255) / 256 * 256);
    live++;
    return 0;
}
static int old_memory(void *memory) {
    if (!current) return 201;
    free(memory);
    live--;
    return 0;
}
static int copy(void *to, const void *from, size_t nbytes, void *on) {
    if (!current) return 201;
    if (on != &stream || queued == 64) return 400;
    if (recorded) {
        int part = recorded->parts++;
        recorded->to[part] = to, recorded->from[part] = from, recorded->nbytes[part] = nbytes;
        return 0;
    }
    queue[queued].to = to, queue[queued].from = from, queue[queued++].nbytes = nbytes;
    return 0;
}

int cuGetErrorString(int status, const char **text) { *text = status == 2 ? "out of memory" : "error"; return 0; }
int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return number ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return live ? 1 : device; }
int cuCtxPushCurrent_v2(void *pushed) { current++; return pushed == &context ? 0 : 201; }
int cuCtxPopCurrent_v2(void **popped) { if (!current) return 201; current--; *popped = &context; return 0; }
int cuMemAlloc_v2(address *memory, size_t nbytes) { return new_memory((void **)memory, nbytes); }
int cuMemFree_v2(address memory) { return old_memory((void *)memory); }
int cuMemHostAlloc(void **memory, size_t nbytes, unsigned flags) { return flags ? 1 : new_memory(memory, nbytes); }
int cuMemFreeHost(void *memory) { return old_memory(memory); }
int cuStreamCreate(void **made, unsigned flags) { *made = &stream; return flags > 1; }
int cuStreamDestroy_v2(void *gone) { return gone == &stream ? 0 : 400; }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t n, void *on) { return copy((void *)to, from, n, on); }
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t n, void *on) { return copy(to, (void *)from, n, on); }
int cuStreamSynchronize(void *on) {
    for (int i = 0; i < queued; i++) memcpy(queue[i].to, queue[i].from, queue[i].nbytes);
    queued = 0;
    return current && on == &stream ? 0 : 400;
}

int cuStreamBeginCapture_v2(void *on, int mode) {
    if (!current || on != &stream || mode != 1 || recorded) return 400;
    recorded = &graphs[made++];
    return 0;
}
int cuStreamEndCapture(void *on, void **graph) {
    if (!recorded || on != &stream) return 401;
    *graph = recorded, recorded = 0;
    return 0;
}
int cuGraphInstantiateWithFlags(void **runnable, void *graph, unsigned long long flags) {
    *runnable = graph, live++;
    return flags != 0;
}
int cuGraphDestroy(void *graph) { return graph == 0; }
int cuGraphExecDestroy(void *graph) { live--; return graph == 0; }
int cuGraphLaunch(void *graph, void *on) {
    if (recorded) return 906;
    for (int i = 0, n = ((__typeof__(recorded))graph)->parts; i < n; i++) {
        __typeof__(recorded) g = graph;
        int status = copy(g->to[i], g->from[i], g->nbytes[i], on);
        if (status) return status;
    }
    return 0;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    char newer[128];
    snprintf(newer, sizeof newer, "%s_v2", name);
    *found = dlsym(self, newer);
    if (!*found) *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}

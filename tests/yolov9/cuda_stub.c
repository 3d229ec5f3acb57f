/* A CUDA driver whose device is the host: memory is memory, streams run at once, graphs are recorded and replayed.
   As strict as the real one in what our code could get wrong: a call in a thread without a current context fails, and so
   does a copy beyond an allocation. Loaded by tests in place of libcuda.so.1. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, MAX_OPS = 64, MAX_BLOCKS = 4096 };
#define API __attribute__((visibility("default")))

typedef int (*Work)(void);
typedef struct { void *to; const void *from; size_t size; Work work; } Op;
typedef struct { Op ops[MAX_OPS]; int count; } Graph;
typedef struct { Graph *capturing; } Stream;
typedef struct { uint64_t start; size_t size; } Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block blocks[MAX_BLOCKS];
static int objects, retained, launches;
static char failing[64];
static int failing_code;
static __thread int current;

static int enter(const char *name) {
    if (!strcmp(name, failing)) { failing[0] = 0; return failing_code; }
    return current ? OK : INVALID_CONTEXT;
}
#define ENTER(name) do { int code = enter(name); if (code) return code; } while (0)

static int add_block(void *start, size_t size) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (!blocks[i].size) { blocks[i] = (Block){(uint64_t)start, size}; break; }
    pthread_mutex_unlock(&lock);
    return OK;
}
static int drop_block(uint64_t start) {
    int code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].size && blocks[i].start == start) { blocks[i].size = 0; code = OK; break; }
    pthread_mutex_unlock(&lock);
    if (!code) free((void *)start);
    return code;
}
static int inside(uint64_t start, size_t size) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BLOCKS && !found; i++)
        found = blocks[i].size && start >= blocks[i].start && start + size <= blocks[i].start + blocks[i].size;
    pthread_mutex_unlock(&lock);
    return found;
}
static int run(Op op) {
    if (op.work) return op.work();
    memcpy(op.to, op.from, op.size);
    return OK;
}
static int put(Stream *stream, Op op) {
    if (!stream->capturing) return run(op);
    if (stream->capturing->count == MAX_OPS) return INVALID_VALUE;
    stream->capturing->ops[stream->capturing->count++] = op;
    return OK;
}

/* For tests. */
API int stub_live(void) {
    int live = objects + retained;
    for (int i = 0; i < MAX_BLOCKS; i++) live += blocks[i].size != 0;
    return live;
}
API int stub_launches(void) { return launches; }
API void stub_fail(const char *name, int code) { strncpy(failing, name, sizeof failing - 1); failing_code = code; }
API void stub_forget_context(void) { current = 0; }
API int stub_enqueue(Stream *stream, Work work) { return put(stream, (Op){.work = work}); }

API int cuInit(unsigned flags) { (void)flags; return OK; }
API int cuGetErrorName(int code, const char **name) {
    *name = code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : 0;
    return *name ? OK : INVALID_VALUE;
}
API int cuGetErrorString(int code, const char **text) {
    *text = code == 2 ? "out of memory" : 0;
    return *text ? OK : INVALID_VALUE;
}
API int cuDeviceGetCount(int *count) { *count = 1; return OK; }
API int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
API int cuDeviceGetName(char *name, int size, int device) { (void)device; strncpy(name, "Stub GPU", size); return OK; }
API int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    *value = which == 75 ? 8 : which == 76 ? 9 : -1;
    return OK;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &retained; retained++; return OK; }
API int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; retained--; return OK; }
API int cuCtxSetCurrent(void *context) { current = context == &retained; return OK; }
static int allocate(uint64_t *pointer, size_t size) {
    void *memory = 0;
    if (!size || posix_memalign(&memory, 256, size)) return INVALID_VALUE;
    memset(memory, 0xA5, size);
    *pointer = (uint64_t)memory;
    return add_block(memory, size);
}
API int cuMemAlloc_v2(uint64_t *pointer, size_t size) { ENTER("cuMemAlloc_v2"); return allocate(pointer, size); }
API int cuMemFree_v2(uint64_t pointer) { ENTER("cuMemFree_v2"); return drop_block(pointer); }
API int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    (void)flags;
    uint64_t address;
    ENTER("cuMemHostAlloc");
    int code = allocate(&address, size);
    *pointer = (void *)address;
    return code;
}
API int cuMemFreeHost(void *pointer) { ENTER("cuMemFreeHost"); return drop_block((uint64_t)pointer); }
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) {
    ENTER("cuMemcpyHtoDAsync_v2");
    if (!inside(to, size) || !inside((uint64_t)from, size)) return INVALID_VALUE;
    return put(stream, (Op){(void *)to, from, size, 0});
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
    ENTER("cuMemcpyDtoHAsync_v2");
    if (!inside((uint64_t)to, size) || !inside(from, size)) return INVALID_VALUE;
    return put(stream, (Op){to, (const void *)from, size, 0});
}
API int cuStreamCreate(Stream **stream, unsigned flags) {
    ENTER("cuStreamCreate");
    if (flags != 1) return INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    objects++;
    return OK;
}
API int cuStreamDestroy_v2(Stream *stream) { ENTER("cuStreamDestroy_v2"); free(stream); objects--; return OK; }
API int cuStreamSynchronize(Stream *stream) {
    ENTER("cuStreamSynchronize");
    return stream->capturing ? INVALID_VALUE : OK;
}
API int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER("cuStreamBeginCapture_v2");
    if (mode != 1 || stream->capturing) return INVALID_VALUE;
    stream->capturing = calloc(1, sizeof(Graph));
    objects++;
    return OK;
}
API int cuStreamEndCapture(Stream *stream, Graph **graph) {
    Graph *recorded = stream->capturing;
    stream->capturing = 0; /* whatever goes wrong */
    int code = enter("cuStreamEndCapture");
    if (code) { free(recorded); objects--; return code; }
    *graph = recorded;
    return recorded ? OK : INVALID_VALUE;
}
API int cuEventCreate(void **event, unsigned flags) {
    ENTER("cuEventCreate");
    if (flags != 3) return INVALID_VALUE;
    *event = malloc(1);
    objects++;
    return OK;
}
API int cuEventDestroy_v2(void *event) { ENTER("cuEventDestroy_v2"); free(event); objects--; return OK; }
API int cuEventRecord(void *event, Stream *stream) {
    (void)event;
    ENTER("cuEventRecord");
    return stream->capturing ? INVALID_VALUE : OK;
}
API int cuEventSynchronize(void *event) { (void)event; ENTER("cuEventSynchronize"); return OK; }
API int cuGraphInstantiateWithFlags(Graph **made, Graph *graph, unsigned long long flags) {
    ENTER("cuGraphInstantiateWithFlags");
    if (flags) return INVALID_VALUE;
    *made = malloc(sizeof **made);
    **made = *graph;
    objects++;
    return OK;
}
API int cuGraphLaunch(Graph *graph, Stream *stream) {
    ENTER("cuGraphLaunch");
    (void)stream;
    __sync_fetch_and_add(&launches, 1);
    for (int i = 0; i < graph->count; i++) {
        int code = run(graph->ops[i]);
        if (code) return code;
    }
    return OK;
}
API int cuGraphExecDestroy(Graph *graph) { ENTER("cuGraphExecDestroy"); free(graph); objects--; return OK; }
API int cuGraphDestroy(Graph *graph) { ENTER("cuGraphDestroy"); free(graph); objects--; return OK; }

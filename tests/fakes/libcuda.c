/* A CUDA driver of one device, as far as the agent asks it. Misbehaves as NIBBLED_FAKE_CUDA says:
 *   no-device, init-fails, no-context, no-attributes, integrated, hang, crash; anything else is a dedicated GPU.
 * Names, types and numbers as in cuda.h; a device is known by the number 7 and a context by its address. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201,
       UNKNOWN = 999 };
enum { DEVICE = 7 };

static int initialised, retained;
static int context;
static void *current;

static int is(const char *mode) {
    const char *asked = getenv("NIBBLED_FAKE_CUDA");
    return asked != NULL && strcmp(asked, mode) == 0;
}

int cuInit(unsigned flags) {
    if (is("hang")) sleep(60);
    if (is("crash")) abort();
    if (is("no-device")) return NO_DEVICE;
    if (is("init-fails")) return UNKNOWN;
    initialised = flags == 0;
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGet(int *device, int ordinal) {
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal != 0) return INVALID_VALUE;
    *device = DEVICE;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    if (device != DEVICE || length < 32) return INVALID_VALUE;
    snprintf(name, (size_t)length, "%s", is("integrated") ? "Orin" : "NVIDIA RTX A2000");
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    if (device != DEVICE) return INVALID_VALUE;
    *bytes = (size_t)12 << 30;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != DEVICE || is("no-attributes")) return INVALID_VALUE;
    switch (attribute) {
        case 18: *value = is("integrated"); return SUCCESS;
        case 36: *value = 6001000; return SUCCESS;
        case 37: *value = 192; return SUCCESS;
        case 75: *value = 8; return SUCCESS;
        case 76: *value = is("integrated") ? 7 : 6; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void **made, int device) {
    if (is("no-context")) return OUT_OF_MEMORY;
    if (is("integrated")) abort(); /* costs hundreds of megabytes of the memory that it would tell of */
    if (device != DEVICE) return INVALID_VALUE;
    *made = &context;
    retained++;
    return SUCCESS;
}

int cuCtxSetCurrent(void *given) {
    if (given != &context || retained != 1) return INVALID_CONTEXT;
    current = given;
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    if (current != &context) return INVALID_CONTEXT;
    *free_bytes = (size_t)9 << 30;
    *total_bytes = (size_t)12 << 30;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    if (device != DEVICE || retained != 1) return INVALID_CONTEXT;
    retained--;
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return SUCCESS;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return SUCCESS;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
        case UNKNOWN: *name = "CUDA_ERROR_UNKNOWN"; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

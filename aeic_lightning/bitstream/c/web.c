/* The sender for WebAssembly, of pixels in memory. The page puts what it needs behind `__heap_base`:
 *
 *     const {encode, aeic_memory, memory, __heap_base} = instance.exports
 *     encode(pixels, width, height, position, work, aeic_memory(width, height), out, most)   bytes at `out`, or an error */
#include "aeic_sender.h"

/* What no C library is there to give. */
void *memcpy(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

void *memmove(void *to, const void *from, size_t count) {
    if ((uintptr_t)to < (uintptr_t)from)
        for (size_t i = 0; i < count; i++) ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    else
        while (count--) ((uint8_t *)to)[count] = ((const uint8_t *)from)[count];
    return to;
}

void *memset(void *at, int value, size_t count) {
    for (size_t i = 0; i < count; i++) ((uint8_t *)at)[i] = (uint8_t)value;
    return at;
}

typedef struct {
    const uint8_t *pixels;
    size_t row;
} frame;

static int read_row(void *context, int row, uint8_t *to) {
    const frame *f = context;
    for (size_t i = 0; i < f->row; i++) to[i] = f->pixels[(size_t)row * f->row + i];
    return 0;
}

long encode(const uint8_t *pixels, int width, int height, int position, void *work, size_t size, uint8_t *out,
            size_t most) {
    frame f = {pixels, 3 * (size_t)width};
    aeic_image image = {width, height, read_row, &f};
    return aeic_encode(&image, position, work, size, out, most);
}

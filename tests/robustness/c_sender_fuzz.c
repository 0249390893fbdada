/* libFuzzer on the sender in C: sizes, a row that fails, position, memory and room from the first ten bytes, pixels from the
 * rest. In the folder that `export --c` wrote, with AddressSanitizer and UndefinedBehaviorSanitizer:
 *
 *     clang -O2 -g -I. -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -std=c99 FUZZ.c aeic_sender.c -o fuzz
 *     ./fuzz -max_total_time=100 -max_len=4000 */
#include "aeic_sender.h"

#include <stdlib.h>

typedef struct {
    const uint8_t *pixels;
    size_t count;
    int width, fails;
} source;

static int read_row(void *context, int row, uint8_t *to) {
    const source *s = context;
    size_t bytes = 3 * (size_t)s->width;
    for (size_t i = 0; i < bytes; i++) to[i] = s->count ? s->pixels[((size_t)row * bytes + i) % s->count] : 0;
    return s->fails == row;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t count) {
    if (count < 10) return 0;
    int width = 1 + (data[0] | data[1] << 8) % 90, height = 1 + (data[2] | data[3] << 8) % 330;
    source s = {data + 10, count - 10, width, data[4] < 20 ? data[5] : -1};
    aeic_image image = {width, height, read_row, &s};
    size_t size = (data[8] & 1 ? aeic_memory : aeic_memory_once)(width, height);
    size_t most = data[8] & 2 ? 20000 : 16 * (size_t)data[9];
    void *memory = malloc(size);
    uint8_t *out = malloc(most + AEIC_SLACK);
    aeic_encode(&image, data[6] < 40 ? -1 : data[7], memory, size, out, most);
    free(memory);
    free(out);
    return 0;
}

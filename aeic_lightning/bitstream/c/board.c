/* The sender on a Cortex-M7 with 512 KB of RAM: a camera frame in RAM, the stream in RAM, no operating system.
 *
 * QEMU's board mps2-an500 stands for the device (`make board`). Its debugger interface (semihosting) reads frame.ppm of
 * at most WIDTH x HEIGHT pixels and writes frame.aeic; a device takes the frame from its camera instead. */
#include "aeic_sender.h"

enum { WIDTH = 320, HEIGHT = 240, WORK = 200 * 1024, STACK = 8192, MOST = 65536 };

static uint8_t frame[WIDTH * HEIGHT * 3 + 32], out[MOST + AEIC_SLACK];
static uint64_t work[WORK / 8];
static uint32_t stack[STACK / 4];

int main(void);
void _start(void) { main(); }

const struct {
    uint32_t *top;
    void (*start)(void);
} vectors __attribute__((section(".vectors"), used)) = {stack + STACK / 4, _start};

static int host(int call, const void *arguments) {
    register int r0 __asm__("r0") = call;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

enum { OPEN = 1, CLOSE = 2, WRITE0 = 4, WRITE = 5, READ = 6, EXIT = 0x20 };

static int host_open(const char *name, int mode, size_t length) {
    uintptr_t arguments[3] = {(uintptr_t)name, (uintptr_t)mode, length};
    return host(OPEN, arguments);
}

static int host_move(int call, int file, const void *data, size_t count) { /* returns the bytes that are left */
    uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)data, count};
    return host(call, arguments);
}

static void quit(int status) {
    uintptr_t arguments[2] = {0x20026, (uintptr_t)status};
    host(EXIT, arguments);
    for (;;) {
    }
}

static void say(const char *what, uint32_t number) {
    char text[12], *at = text + 11;
    *at = 0;
    *--at = '\n';
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    host(WRITE0, what);
    host(WRITE0, at);
}

static const uint8_t *pixels;
static int width;

static int read_row(void *context, int row, uint8_t *to) {
    (void)context;
    for (int i = 0; i < 3 * width; i++) to[i] = pixels[(size_t)row * 3 * (size_t)width + (size_t)i];
    return 0;
}

/* "P6\nW H\n255\n", without comments. */
static int number(const uint8_t **at) {
    int value = 0;
    while (**at < '0') ++*at;
    while (**at >= '0') value = 10 * value + *(*at)++ - '0';
    return value;
}

/* A timer of 25 MHz. With `-icount shift=0` an instruction takes a nanosecond, a tick 40 of them. */
static volatile uint32_t *const timer = (volatile uint32_t *)0x40000000;

int main(void) {
    int file = host_open("frame.ppm", 1, 9);
    if (file < 0) quit(2);
    host_move(READ, file, frame, sizeof frame);
    const uint8_t *at = frame + 2;
    aeic_image image = {0, 0, read_row, 0};
    image.width = width = number(&at), image.height = number(&at);
    number(&at);
    pixels = at + 1;
    if (image.width > WIDTH || image.height > HEIGHT) quit(3);
    for (int i = 0; i < STACK / 4 - 256; i++) stack[i] = 0x5a5a5a5a;
    timer[1] = timer[2] = 0xffffffff;
    timer[0] = 1;
    long bytes = aeic_encode(&image, aeic_levels() ? 128 : 0, work, sizeof work, out, MOST);
    uint32_t ticks = 0xffffffff - timer[1];
    if (bytes < 0) quit(4);
    int used = 0;
    while (stack[used] == 0x5a5a5a5a) used++;
    file = host_open("frame.aeic", 5, 10);
    if (file < 0 || host_move(WRITE, file, out, (size_t)bytes)) quit(5);
    uintptr_t arguments[1] = {(uintptr_t)file};
    host(CLOSE, arguments);
    say("bytes ", (uint32_t)bytes);
    say("working memory ", (uint32_t)aeic_memory(image.width, image.height));
    say("stack ", STACK - 4 * (uint32_t)used);
    say("instructions a pixel ", 40 * (ticks / (uint32_t)(image.width * image.height)));
    quit(0);
    return 0;
}

/* ./send photo.ppm photo.aeic [--bpp R | --bytes N | --level L | --position P]
 *
 * A command line around aeic_sender.c for machines with an operating system. The rate on the command line is the only
 * floating-point number here, computed as Python computes it. */
#include "aeic_sender.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_JPEG
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS AEIC_LARGEST_SIDE
#include "stb_image.h"
#endif

static int fail(const char *what, const char *path) {
    fprintf(stderr, "error: %s: %s\n", path, what);
    return 2;
}

typedef struct {
    FILE *file;
    long start;
    int width;
    const uint8_t *pixels; /* of a whole picture in memory, in place of the file */
} source;

static int read_row(void *context, int row, uint8_t *pixels) {
    source *s = context;
    size_t bytes = 3 * (size_t)s->width;
    if (s->pixels) {
        memcpy(pixels, s->pixels + (size_t)row * bytes, bytes);
        return 0;
    }
    return fseek(s->file, s->start + (long)((size_t)row * bytes), SEEK_SET) || fread(pixels, 1, bytes, s->file) != bytes;
}

/* A number of the header, after blanks and comments; -1 if there is none. */
static long ppm_number(FILE *file) {
    int c = fgetc(file);
    while (isspace(c) || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = fgetc(file);
        c = fgetc(file);
    }
    long value = -1;
    for (; c >= '0' && c <= '9'; c = fgetc(file)) {
        value = (value < 0 ? 0 : value) * 10 + c - '0';
        if (value > 1000000) return -1;
    }
    return isspace(c) ? value : -1;
}

/* NULL, or what is wrong. */
static const char *open_photo(source *s, aeic_image *image) {
    uint8_t magic[2] = {0, 0};
    if (fread(magic, 1, 2, s->file) != 2) return "it is empty or cannot be read";
    if (magic[0] == 'P' && magic[1] == '6') {
        long width = ppm_number(s->file), height = ppm_number(s->file), most = ppm_number(s->file);
        if (width < 1 || height < 1 || most != 255) return "a damaged header, or other than 8 bits a channel";
        if (width > AEIC_LARGEST_SIDE || height > AEIC_LARGEST_SIDE) return "more than 8192 pixels a side";
        s->start = ftell(s->file);
        image->width = (int)width, image->height = (int)height;
        return NULL;
    }
#ifdef WITH_JPEG
    if (magic[0] == 0xFF && magic[1] == 0xD8) {
        int channels;
        rewind(s->file);
        s->pixels = stbi_load_from_file(s->file, &image->width, &image->height, &channels, 3);
        return s->pixels ? NULL : stbi_failure_reason();
    }
    return "neither PPM (P6) nor JPEG";
#else
    return "not a PPM (P6); this build reads no other format";
#endif
}

static long clipped(double value) { return value < 0 ? -1 : value < 1e9 ? (long)value : 1000000000; }

static int write_stream(const aeic_image *image, int position, void *memory, size_t size, uint8_t *out, size_t most,
                        const char *path) {
    if (!memory || !out) return fail("not enough memory", path);
    long bytes = aeic_encode(image, position, memory, size, out, most);
    if (bytes == AEIC_TOO_LARGE) return fail("not written, as the smallest stream of this model is larger", path);
    if (bytes < 0) return fail("not written, as the photograph cannot be read to its end", path);
    FILE *target = fopen(path, "wb");
    int failed = !target || fwrite(out, 1, (size_t)bytes, target) != (size_t)bytes;
    if ((target && fclose(target)) || failed) return fail("it cannot be written", path);
    printf("%s  %ld bytes  %zu bytes of working memory\n", path, bytes, size);
    return 0;
}

int main(int count, char **words) {
    const char *option = count == 5 ? words[3] : "";
    if (count != 3 && count != 5) return fail("send PHOTO STREAM [--bpp R | --bytes N | --level L | --position P]", "usage");
    source s = {fopen(words[1], "rb"), 0, 0, NULL};
    aeic_image image = {0, 0, read_row, &s};
    if (!s.file) return fail("it cannot be opened", words[1]);
    const char *wrong = open_photo(&s, &image);
    if (wrong) return fail(wrong, words[1]);
    s.width = image.width;

    size_t most = 4 * (size_t)image.width * (size_t)image.height + 65536;
    int levels = aeic_levels(), position = -1;
    double middle = (levels - 1) / 2.0, level = middle;
    if (count == 5) {
        char *end;
        double value = strtod(words[4], &end);
        if (*end || end == words[4] || !(value >= 0) || value > 1e18) return fail("not a number of at least 0", words[4]);
        if (!strcmp(option, "--bpp") || !strcmp(option, "--bytes")) {
            long bytes = clipped(option[3] == 'p' ? value * image.height * image.width / 8 : value);
            if ((size_t)bytes < most) most = (size_t)bytes;
        } else if (!strcmp(option, "--position") && levels && value <= 255) position = (int)value;
        else if (!strcmp(option, "--level") && levels && value <= levels - 1) level = value, option = "";
        else return fail("no such option, or no such level in this model", option);
    }
    if (!*option && levels) {
        double at = level * 255 / (levels - 1);
        position = (int)at;
        if (at - position > 0.5 || (at - position == 0.5 && position % 2)) position++;
    }
    size_t size = (position < 0 && levels ? aeic_memory_once : aeic_memory)(image.width, image.height);
    void *memory = malloc(size);
    uint8_t *out = malloc(most + AEIC_SLACK);
    int status = write_stream(&image, position, memory, size, out, most, words[2]);
    free(memory);
    free(out);
#ifdef WITH_JPEG
    free((void *)s.pixels);
#endif
    fclose(s.file);
    return status;
}

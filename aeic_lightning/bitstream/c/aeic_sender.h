/* Photographs to .aeic streams, in integers: C99, no floating point, no heap, no library.
 *
 * The streams are those of the model that this was exported from, in every byte. */
#ifndef AEIC_SENDER_H
#define AEIC_SENDER_H

#include <stddef.h>
#include <stdint.h>

#define AEIC_LARGEST_SIDE 8192

#define AEIC_SLACK 32 /* bytes that the range coder may write beyond the stream before it is cut */

/* What `aeic_encode` returns in place of a number of bytes. */
enum {
    AEIC_BAD_SIZE = -1,  /* a side is not 1 to AEIC_LARGEST_SIDE pixels */
    AEIC_NO_MEMORY = -2, /* `memory` is shorter than `aeic_memory` says */
    AEIC_TOO_LARGE = -3, /* the stream, or that of each position, has more than `most` bytes */
    AEIC_NO_PIXELS = -4, /* `read_row` failed */
    AEIC_BAD_LEVEL = -5  /* the dial has no such position */
};

/* The photograph. `read_row` writes 3 * width bytes (red, green, blue) of a row from 0 to height - 1, and returns 0
 * unless it fails. Rows are asked for in rising order, then up to 63 of them again, for the reflected border; and once
 * more from the top for each position that a bisection tries, unless there is `aeic_memory_once`. */
typedef struct {
    int width, height;
    int (*read_row)(void *context, int row, uint8_t *pixels);
    void *context;
} aeic_image;

/* Rate levels of the model: 0 if it has one rate, else the dial has positions 0 (smallest streams) to 255. */
int aeic_levels(void);

/* Bytes of working memory that an image takes, whatever its height; 0 for a size that no stream holds. */
size_t aeic_memory(int width, int height);

/* As much with room for all of y, which grows with the height: with it a bisection reads the photograph once. */
size_t aeic_memory_once(int width, int height);

/* Writes the stream to `out` and returns its number of bytes, or an error.
 *
 * position  of the dial, or -1: the highest whose stream has at most `most` bytes, found by bisection
 * memory    `size` bytes, at least what `aeic_memory` says, aligned for uint64_t
 * out       at least `most` + AEIC_SLACK bytes */
long aeic_encode(const aeic_image *image, int position, void *memory, size_t size, uint8_t *out, size_t most);

#endif

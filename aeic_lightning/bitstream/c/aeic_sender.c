/* The sender: docs/integer_sender.md describes the arithmetic, docs/bitstream.md the stream. */
#include "aeic_sender.h"

/* As in <string.h>, which compilers for bare machines come without. */
void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *at, int value, size_t count);

/* ---------------------------------------------------------------- the model, written by `export --c` */

enum { UNSHUFFLE, SHUFFLE, POINTWISE, DEPTHWISE };

typedef struct {
    uint8_t kind;
    uint8_t size;     /* factor or kernel */
    uint8_t adds;     /* the input of the block, that of the layer two below, is added */
    uint8_t zero;     /* of the input: the byte that stands for 0 */
    uint8_t zero_out; /* of the output */
    uint16_t in, out; /* channels */
    int32_t low, high;
    const int8_t *weight; /* pointwise [out][in], depthwise [kernel * kernel][out] */
    const int32_t *bias;  /* includes what `zero` adds to the sums */
    const uint8_t *shift;
} layer;

typedef struct {
    int32_t low;                /* first symbol; the last is the escape */
    uint32_t symbols;           /* with the escape */
    const uint32_t *cumulative; /* of each symbol, then 2^24 */
} table;

@MODEL@
/* ---------------------------------------------------------------- arithmetic */

/* Towards minus infinity, which C leaves to the compiler for negative numbers. */
static int32_t shifted(int32_t value, int shift) { return value < 0 ? ~(~value >> shift) : value >> shift; }

static int32_t clamped(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

static int32_t rounded(int32_t value, int shift) { return shifted(value + ((int32_t)1 << shift >> 1), shift); }

/* value / 2^shift, halves to the even number. */
static int32_t rounded_to_even(int32_t value, int shift) {
    int32_t half = (int32_t)1 << (shift - 1), result = rounded(value, shift);
    return (value & (2 * half - 1)) == half && (result & 1) ? result - 1 : result;
}

static uint8_t as_byte(int32_t value, int zero) { return (uint8_t)(clamped(value, -zero, 255 - zero) + zero); }

/* ---------------------------------------------------------------- memory */

typedef struct {
    uint8_t *base; /* NULL: only count */
    size_t used;
} arena;

static void *take(arena *a, size_t bytes) {
    void *at = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 7) & ~(size_t)7;
    return at;
}

/* ---------------------------------------------------------------- networks, a row at a time */

enum { AT_ONCE = 4 }; /* pixels of a pointwise layer: a weight is read once for all */

typedef struct {
    const layer *layer;
    int width, height; /* of the output */
    uint8_t *out;      /* one row */
    int16_t *wide;     /* the same of a last layer, whose values do not fit a byte */
    uint8_t *ring;     /* depthwise: `size` rows of the input with their borders, and one row of zeros */
    int32_t *sums;
    const uint8_t *below;
    int next; /* row of the input */
} node;

typedef struct network {
    node nodes[MOST_LAYERS];
    int count;
    int16_t *values; /* of the pixels that a pointwise layer takes at once */
    const uint8_t *(*source)(void *context, int row); /* NULL where it fails */
    void *context;
} network;

static void build(network *net, arena *a, const layer *layers, int count, int width, int height, int ends_wide) {
    int most = 0;
    for (int i = 0; i < count; i++)
        if (layers[i].kind == POINTWISE && layers[i].in > most) most = layers[i].in;
    net->count = count;
    net->values = take(a, sizeof(int16_t) * AT_ONCE * (size_t)most);
    for (int i = 0; i < count; i++) {
        const layer *l = &layers[i];
        node *n = &net->nodes[i];
        memset(n, 0, sizeof *n);
        n->layer = l;
        if (l->kind == UNSHUFFLE) width /= l->size, height /= l->size;
        if (l->kind == SHUFFLE) width *= l->size, height *= l->size;
        n->width = width, n->height = height;
        if (ends_wide && i == count - 1) n->wide = take(a, sizeof(int16_t) * (size_t)width * l->out);
        else n->out = take(a, (size_t)width * l->out);
        if (l->kind == DEPTHWISE) {
            size_t bytes = (size_t)(l->size + 1) * (size_t)(width + l->size - 1) * l->in;
            n->ring = take(a, bytes);
            n->sums = take(a, sizeof(int32_t) * l->in);
            if (a->base) memset(n->ring, l->zero, bytes);
        }
    }
}

static const uint8_t *ring_row(const node *n, int row) {
    const layer *l = n->layer;
    int slot = row < 0 || row >= n->height ? l->size : row % l->size;
    return n->ring + (size_t)slot * (size_t)(n->width + l->size - 1) * l->in;
}

static void unshuffle(const node *n, const uint8_t *below, int line) {
    const layer *l = n->layer;
    int size = l->size, in = l->in;
    for (int x = 0; x < n->width; x++)
        for (int k = 0; k < size; k++, below += in) {
            uint8_t *out = n->out + (size_t)x * l->out + line * size + k;
            for (int c = 0; c < in; c++) out[c * size * size] = below[c];
        }
}

static void shuffle(const node *n, const uint8_t *below, int line) {
    const layer *l = n->layer;
    int size = l->size;
    for (int x = 0; x < n->width; x++) {
        const uint8_t *in = below + (size_t)(x / size) * l->in + line * size + x % size;
        for (int c = 0; c < l->out; c++) n->out[(size_t)x * l->out + c] = in[c * size * size];
    }
}

/* What a layer makes of a sum. */
static int32_t scaled(const layer *l, int32_t sum, int output) {
    return clamped(rounded(sum, l->shift[output]), l->low, l->high);
}

static void depthwise(const node *n, int row) {
    const layer *l = n->layer;
    int size = l->size, channels = l->in;
    for (int x = 0; x < n->width; x++) {
        memcpy(n->sums, l->bias, sizeof(int32_t) * (size_t)channels);
        const int8_t *weight = l->weight;
        for (int i = 0; i < size; i++) {
            const uint8_t *in = ring_row(n, row + i - size / 2) + (size_t)x * channels;
            for (int j = 0; j < size; j++, in += channels, weight += channels)
                for (int c = 0; c < channels; c++) n->sums[c] += weight[c] * in[c];
        }
        for (int c = 0; c < channels; c++) {
            n->out[(size_t)x * channels + c] = (uint8_t)(scaled(l, n->sums[c], c) + l->zero_out);
        }
    }
}

static int32_t product(const layer *l, const uint8_t *in, int output) {
    const int8_t *weight = l->weight + (size_t)output * l->in;
    int32_t sum = l->bias[output];
    for (int k = 0; k < l->in; k++) sum += weight[k] * in[k];
    return scaled(l, sum, output);
}

static void products(const layer *l, const int16_t *in, int output, int32_t *sums) {
    const int8_t *weight = l->weight + (size_t)output * l->in;
    const int16_t *in1 = in + l->in, *in2 = in1 + l->in, *in3 = in2 + l->in;
    int32_t sum0 = l->bias[output], sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for (int k = 0; k < l->in; k++) {
        int16_t w = weight[k];
        sum0 += w * in[k], sum1 += w * in1[k], sum2 += w * in2[k], sum3 += w * in3[k];
    }
    sums[0] = sum0, sums[1] = sum1, sums[2] = sum2, sums[3] = sum3;
}

static void pointwise(const node *n, int16_t *values, const uint8_t *in, const uint8_t *base) {
    const layer *l = n->layer;
    for (int x = 0; x < n->width; x += AT_ONCE) {
        int count = n->width - x < AT_ONCE ? n->width - x : AT_ONCE, used = count * l->in;
        for (int k = 0; k < used; k++) values[k] = *in++;
        for (int k = used; k < AT_ONCE * l->in; k++) values[k] = 0;
        for (int o = 0; o < l->out; o++) {
            int32_t sums[AT_ONCE];
            products(l, values, o, sums);
            for (int i = 0; i < count; i++) {
                size_t at = (size_t)(x + i) * l->out + (size_t)o;
                int32_t value = scaled(l, sums[i], o);
                if (n->wide) n->wide[at] = (int16_t)value;
                else if (base) n->out[at] = (uint8_t)clamped(value + base[at], 0, 255);
                else n->out[at] = (uint8_t)(value + l->zero_out);
            }
        }
    }
}

/* A row of the output of layer `i`, or of the source for -1; rows are asked for in rising order. */
static const uint8_t *pull(network *net, int i, int row) {
    if (i < 0) return net->source(net->context, row);
    node *n = &net->nodes[i];
    const layer *l = n->layer;
    const uint8_t *below = NULL, *base = NULL;
    switch (l->kind) {
    case UNSHUFFLE:
        for (int line = 0; line < l->size; line++) {
            if (!(below = pull(net, i - 1, row * l->size + line))) return NULL;
            unshuffle(n, below, line);
        }
        break;
    case SHUFFLE:
        if (row % l->size == 0 && !(n->below = pull(net, i - 1, row / l->size))) return NULL;
        shuffle(n, n->below, row % l->size);
        break;
    case DEPTHWISE:
        for (; n->next <= row + l->size / 2 && n->next < n->height; n->next++) {
            if (!(below = pull(net, i - 1, n->next))) return NULL;
            uint8_t *slot = n->ring + (ring_row(n, n->next) - n->ring) + (size_t)(l->size / 2) * l->in;
            memcpy(slot, below, (size_t)n->width * l->in);
        }
        depthwise(n, row);
        break;
    default:
        if (!(below = pull(net, i - 1, row))) return NULL;
        if (l->adds && i >= 2) {
            const node *first = &net->nodes[i - 2];
            base = ring_row(first, row) + (size_t)(first->layer->size / 2) * first->layer->in;
        }
        pointwise(n, net->values, below, base);
    }
    return n->wide ? (const uint8_t *)n->wide : n->out;
}

/* ---------------------------------------------------------------- SHA-256 (FIPS 180-4) */

typedef struct {
    uint32_t state[8];
    uint8_t block[64];
    uint64_t bytes;
} sha256;

static const uint32_t SHA_ROUNDS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turned(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static void sha_block(sha256 *s) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)s->block[4 * i] << 24 | (uint32_t)s->block[4 * i + 1] << 16 |
               (uint32_t)s->block[4 * i + 2] << 8 | s->block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, s->state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t a = v[0], e = v[4];
        uint32_t one = v[7] + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & v[5]) ^ (~e & v[6])) +
                       SHA_ROUNDS[i] + w[i];
        uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) s->state[i] += v[i];
}

static void sha_start(sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->state, start, sizeof start);
    s->bytes = 0;
}

static void sha_add(sha256 *s, const uint8_t *data, size_t count) {
    while (count--) {
        s->block[s->bytes++ % 64] = *data++;
        if (s->bytes % 64 == 0) sha_block(s);
    }
}

static void sha_add_int32(sha256 *s, int32_t value) {
    uint32_t bits = (uint32_t)value;
    uint8_t bytes[4] = {(uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16), (uint8_t)(bits >> 24)};
    sha_add(s, bytes, 4);
}

static void sha_end(sha256 *s, uint8_t *digest) {
    uint64_t bits = 8 * s->bytes;
    uint8_t end = 0x80, zero = 0, length[8];
    sha_add(s, &end, 1);
    while (s->bytes % 64 != 56) sha_add(s, &zero, 1);
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(bits >> (56 - 8 * i));
    sha_add(s, length, 8);
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(s->state[i / 4] >> (24 - i % 4 * 8));
}

/* ---------------------------------------------------------------- range coder */

/* Two coders share the room: that of y writes upwards from its start, that of z downwards from its end. */
typedef struct {
    uint8_t *out;
    size_t used, size;
    int full;
} room;

typedef struct {
    uint64_t low, range;
    room *room;
    int down;
    size_t count; /* bytes written */
} coder;

static uint8_t *byte_at(const coder *c, size_t i) { return c->room->out + (c->down ? c->room->size - 1 - i : i); }

static void carry(coder *c) {
    size_t i = c->count;
    while (i > 0 && ++*byte_at(c, --i) == 0) {
    }
}

static void put_bytes(coder *c, uint64_t value, int count) {
    if (c->room->used + (size_t)count > c->room->size) {
        c->room->full = 1;
        return;
    }
    c->room->used += (size_t)count;
    for (int i = 0; i < count; i++) *byte_at(c, c->count++) = (uint8_t)(value >> (56 - 8 * i));
}

static void put(coder *c, uint32_t start, uint32_t count) {
    uint64_t scale = c->range >> 24, before = c->low;
    if (c->room->full) return;
    c->low += scale * start;
    if (c->low < before) carry(c);
    c->range = scale * count;
    if (c->range >> 32) return;
    put_bytes(c, c->low, 4);
    c->low <<= 32;
    c->range <<= 32;
}

/* One of `size` equally likely numbers; the last takes what is left over. */
static void put_uniform(coder *c, uint32_t value, uint32_t size) {
    uint32_t each = ((uint32_t)1 << 24) / size, start = value * each;
    put(c, start, value == size - 1 ? ((uint32_t)1 << 24) - start : each);
}

/* Of the numbers in the last interval, that with the most zero bytes at its end, without them. */
static void finish(coder *c) {
    for (int zeros = 8; zeros >= 0; zeros--) {
        uint64_t mask = zeros == 8 ? UINT64_MAX : ((uint64_t)1 << 8 * zeros) - 1;
        uint64_t up = (0 - c->low) & mask; /* to the next multiple of 2^(8 zeros) */
        if (up >= c->range) continue;
        uint64_t value = c->low + up;
        if (value < c->low) carry(c);
        put_bytes(c, value, 8 - zeros);
        break;
    }
    for (; c->count > 0 && *byte_at(c, c->count - 1) == 0; c->count--) c->room->used--;
}

/* ---------------------------------------------------------------- the stream */

enum { BAND = Z_STRIDE }; /* rows of y that are coded together, those of a row of z */

typedef struct {
    const aeic_image *image;
    int padded_width;
    int h, w, zh, zw; /* positions of y and of z */
    int position;     /* of the dial */
    network g_a, h_a, h_s;
    uint8_t *pixels, *y_bytes, *z_bytes; /* a row of what each of them takes */
    int16_t *y;       /* [row][x][channel], 6 binary digits after the point: the last `kept` rows */
    int kept, made;   /* rows of y */
    int16_t *z;       /* a row of symbols [channel][x] */
    uint8_t *hidden;  /* of a band [row][x][channel], what the last layer of h_s takes */
    uint8_t *level;   /* of a band [channel][row][x]: of the table; SKIPPED; or with ESCAPES */
    uint64_t *tables; /* of each channel of y: a bit for each table that it has symbols of */
    uint16_t *gain;   /* of each channel of y */
    uint8_t *gain_shift;
    coder y_coder, z_coder;
    sha256 *z_hash; /* NULL where no check is wanted */
} job;

enum { ESCAPES = 64, SKIPPED = 255 };

/* Where position `i` of a padded side lies in the image: reflected without the edge, again and again. */
static int reflected(int i, int side) {
    int turn = 2 * (side - 1);
    if (turn == 0) return 0;
    i %= turn;
    return i < side ? i : turn - i;
}

static const uint8_t *pixel_row(void *context, int row) {
    job *j = context;
    const aeic_image *image = j->image;
    if (image->read_row(image->context, reflected(row, image->height), j->pixels)) return NULL;
    for (int x = image->width; x < j->padded_width; x++)
        memcpy(j->pixels + 3 * (size_t)x, j->pixels + 3 * (size_t)reflected(x, image->width), 3);
    return j->pixels;
}

static int16_t *kept_row(const job *j, int row) { return j->y + (size_t)(row % j->kept * j->w) * Y_CHANNELS; }

/* y in steps of 1/256 of the quantiser. */
static int32_t scaled_y(const job *j, int32_t y, int channel) {
    if (LEVELS == 0) return 4 * y;
    return clamped(rounded(y * (int32_t)j->gain[channel], j->gain_shift[channel]), -LARGEST_Y, LARGEST_Y);
}

/* What h_a takes; g_a runs as far as it is needed. */
static const uint8_t *y_row(void *context, int row) {
    job *j = context;
    memset(j->y_bytes, 128, (size_t)j->zw * Z_STRIDE * Y_CHANNELS);
    if (row >= j->h) return j->y_bytes;
    int16_t *y = kept_row(j, row);
    if (row == j->made) {
        const uint8_t *made = pull(&j->g_a, G_A_LAYERS - 1, row);
        if (!made) return NULL;
        memcpy(y, made, sizeof(int16_t) * (size_t)j->w * Y_CHANNELS);
        j->made++;
    }
    for (int x = 0; x < j->w; x++)
        for (int c = 0; c < Y_CHANNELS; c++, y++)
            j->y_bytes[x * Y_CHANNELS + c] = as_byte(rounded(scaled_y(j, *y, c), 5), 128);
    return j->y_bytes;
}

/* The gains at the dial's position: logarithms between those of two levels, to the base 2 in steps of 1/256. */
static void set_gains(job *j) {
    if (LEVELS == 0) return;
    int at = j->position * (LEVELS - 1), below = at / 255;
    if (below > LEVELS - 2) below = LEVELS - 2;
    int share = at - 255 * below;
    for (int c = 0; c < Y_CHANNELS; c++) {
        const int16_t *steps = LOG_GAINS + below * Y_CHANNELS + c;
        int log = (steps[0] * (255 - share) + steps[Y_CHANNELS] * share + 255 * 4096) / 255; /* 16 octaves up */
        j->gain[c] = POWERS_OF_TWO[log % 256];
        j->gain_shift[c] = (uint8_t)(12 + 16 - log / 256);
    }
}

/* Of position `at` of a band. */
static int32_t mean_of(const job *j, int channel, size_t at) {
    return product(&H_S[H_S_LAYERS - 1], j->hidden + at * HIDDEN, channel);
}

static int32_t scale_of(const job *j, int channel, size_t at) {
    return product(&H_S[H_S_LAYERS - 1], j->hidden + at * HIDDEN, Y_CHANNELS + channel) + 256;
}

/* `top` is the first row of the band. */
static int32_t residual_of(const job *j, int top, int channel, size_t at) {
    int row = (int)(at / (size_t)j->w), x = (int)(at % (size_t)j->w);
    int32_t y = kept_row(j, top + row)[x * Y_CHANNELS + channel];
    return rounded_to_even(scaled_y(j, y, channel) - mean_of(j, channel, at), 8);
}

static int is_outside(const table *t, int32_t value) { return value < t->low || value >= t->low + (int32_t)t->symbols - 1; }

static void put_symbol(coder *c, const table *t, int32_t value) {
    uint32_t index = is_outside(t, value) ? t->symbols - 1 : (uint32_t)(value - t->low);
    put(c, t->cumulative[index], t->cumulative[index + 1] - t->cumulative[index]);
}

/* What follows the groups for a value outside of its table: all lengths come first, then all signs, then the rest. */
static void put_escape(coder *c, const table *t, int32_t value, int part) {
    int32_t last = t->low + (int32_t)t->symbols - 2;
    uint32_t distance = (uint32_t)(value < t->low ? t->low - value : value - last), length = 0;
    while (distance >> (length + 1)) length++;
    if (part == 0) put_uniform(c, length, 17);
    else if (part == 1) put_uniform(c, value < t->low, 2);
    else if (length) put_uniform(c, distance - ((uint32_t)1 << length), (uint32_t)1 << length);
}

static void put_z(const job *j, coder *c) {
    int escapes = 0;
    for (int part = -1; part < (escapes ? 3 : 0); part++)
        for (int channel = 0; channel < Z_CHANNELS; channel++)
            for (int x = 0; x < j->zw; x++) {
                const table *t = &Z_TABLES[channel];
                int32_t value = j->z[channel * j->zw + x];
                escapes |= is_outside(t, value);
                if (part < 0) put_symbol(c, t, value);
                else if (is_outside(t, value)) put_escape(c, t, value, part);
            }
}

/* A band of y, by table, of each by channel: first all symbols, then, where there are escapes, the three parts of these. */
static void put_y(const job *j, coder *c, int top, size_t positions, int escapes) {
    for (int part = -1; part < (escapes ? 3 : 0); part++)
        for (int level = 0; level < Y_TABLES_COUNT; level++)
            for (int channel = 0; channel < Y_CHANNELS; channel++) {
                if (!(j->tables[channel] >> level & 1)) continue;
                const uint8_t *of = j->level + (size_t)channel * positions;
                for (size_t at = 0; at < positions; at++) {
                    if (part < 0 ? (of[at] & ~ESCAPES) != level : of[at] != (level | ESCAPES)) continue;
                    int32_t residual = residual_of(j, top, channel, at);
                    if (part < 0) put_symbol(c, &Y_TABLES[level], residual);
                    else put_escape(c, &Y_TABLES[level], residual, part);
                }
            }
}

/* What h_s takes; a row of z is made and coded when it is needed first. */
static const uint8_t *z_row(void *context, int row) {
    job *j = context;
    const int16_t *z = (const int16_t *)(const void *)pull(&j->h_a, H_A_LAYERS - 1, row);
    if (!z) return NULL;
    for (int c = 0; c < Z_CHANNELS; c++)
        for (int x = 0; x < j->zw; x++) {
            int32_t symbol = rounded_to_even(z[x * Z_CHANNELS + c] - Z_MEDIANS[c], 6), z_hat = symbol * 64 + Z_MEDIANS[c];
            j->z[c * j->zw + x] = (int16_t)symbol;
            j->z_bytes[x * Z_CHANNELS + c] = as_byte(rounded(z_hat, 3), 128);
            if (j->z_hash) sha_add_int32(j->z_hash, z_hat);
        }
    put_z(j, &j->z_coder);
    return j->z_bytes;
}

static int level_of(int32_t scale) {
    int level = 0;
    for (int step = 32; step; step /= 2)
        if (level + step < 64 && LEVEL_BOUNDS[level + step - 1] <= scale) level += step;
    return level;
}

/* A band of y: the positions that its first `rows` rows have. */
static void put_band(job *j, int top, size_t positions, sha256 *hash) {
    int escapes = 0;
    memset(j->tables, 0, sizeof(uint64_t) * Y_CHANNELS);
    for (int channel = 0; channel < Y_CHANNELS; channel++)
        for (size_t at = 0; at < positions; at++) {
            uint8_t *level = &j->level[(size_t)channel * positions + at];
            int32_t scale = scale_of(j, channel, at), residual = 0;
            *level = SKIPPED;
            if (scale >= SKIP_THRESHOLD) {
                residual = residual_of(j, top, channel, at);
                *level = (uint8_t)level_of(scale);
                j->tables[channel] |= (uint64_t)1 << *level;
                if (is_outside(&Y_TABLES[*level], residual)) *level |= ESCAPES, escapes = 1;
            }
            if (hash) sha_add_int32(hash, residual * 256 + mean_of(j, channel, at));
        }
    put_y(j, &j->y_coder, top, positions, escapes);
}

/* z and y at a position of the dial, into the two coders; the check of the latents if it is wanted. 0 unless it fails. */
static int put_latents(job *j, uint8_t *check) {
    sha256 hashes[2];
    for (int i = 0; i < 2; i++) sha_start(&hashes[i]);
    j->z_hash = check ? hashes : NULL;
    set_gains(j);
    for (int top = 0; top < j->h; top += BAND) {
        int rows = j->h - top < BAND ? j->h - top : BAND;
        for (int row = 0; row < rows; row++) {
            const uint8_t *hidden = pull(&j->h_s, H_S_LAYERS - 2, top + row);
            if (!hidden) return -1;
            memcpy(j->hidden + (size_t)(row * j->w) * HIDDEN, hidden, (size_t)j->w * HIDDEN);
        }
        put_band(j, top, (size_t)(rows * j->w), check ? hashes + 1 : NULL);
    }
    finish(&j->z_coder);
    finish(&j->y_coder);
    if (check) {
        uint8_t digests[64];
        for (int i = 0; i < 2; i++) sha_end(&hashes[i], digests + 32 * i);
        sha_start(hashes);
        sha_add(hashes, digests, 64);
        sha_end(hashes, digests);
        memcpy(check, digests, 3);
    }
    return 0;
}

static size_t put_varint(uint8_t *out, int value) {
    size_t count = 0;
    for (; value >= 128; value >>= 7) out[count++] = (uint8_t)(value & 127) | 128;
    out[count++] = (uint8_t)value;
    return count;
}

/* Behind the bytes of y those of z, and their number, to be read backwards. Returns how many bytes these are in all. */
static size_t join(const job *j, const room *r) {
    size_t y = j->y_coder.count, z = j->z_coder.count;
    uint8_t *from = r->out + r->size - z, number[3];
    for (size_t i = 0; i < z / 2; i++) {
        uint8_t first = from[i];
        from[i] = from[z - 1 - i];
        from[z - 1 - i] = first;
    }
    memmove(r->out + y, from, z);
    size_t count = put_varint(number, (int)z), end = y + z + count;
    for (size_t i = 0; i < count; i++) r->out[end - 1 - i] = number[i];
    return end;
}

/* The whole file, or AEIC_TOO_LARGE; without its checks where only its size matters. */
static long put_file(job *j, int position, uint8_t *out, size_t most, int checks) {
    size_t front = 1;
    out[0] = 0xAF;
    front += put_varint(out + front, j->image->height - 1);
    front += put_varint(out + front, j->image->width - 1);
    memcpy(out + front, FINGERPRINT, 2);
    front += 2;
    uint8_t *file_check = out + front, *back = file_check + 3;
    size_t start = front + 6 + (LEVELS > 0);
    if (most < start) return AEIC_TOO_LARGE;
    room r = {out + start, 0, most - start + 16, 0};
    coder y = {0, UINT64_MAX, &r, 0, 0}, z = {0, UINT64_MAX, &r, 1, 0};
    j->position = position, j->y_coder = y, j->z_coder = z;
    if (put_latents(j, checks ? back : NULL)) return AEIC_NO_PIXELS;
    if (LEVELS > 0) back[3] = (uint8_t)position;
    if (r.full) return AEIC_TOO_LARGE;
    size_t end = start + join(j, &r);
    if (end > most) return AEIC_TOO_LARGE;
    if (checks) {
        sha256 sha;
        uint8_t digest[32];
        sha_start(&sha);
        sha_add(&sha, FINGERPRINT, 32);
        sha_add(&sha, out, front);
        sha_add(&sha, back, end - front - 3);
        sha_end(&sha, digest);
        memcpy(file_check, digest, 3);
    }
    return (long)end;
}

/* The last row of its input that a row of a network's output takes, away from the borders. */
static int reach(const layer *layers, int count, int row) {
    while (count--) {
        const layer *l = &layers[count];
        if (l->kind == DEPTHWISE) row += l->size / 2;
        if (l->kind == UNSHUFFLE) row = row * l->size + l->size - 1;
        if (l->kind == SHUFFLE) row /= l->size;
    }
    return row;
}

/* Sizes of a job, which starts at the top of the image, and its memory, in which it lies itself; with NULL, how much memory
 * that is. With `whole`, y is kept, and made once. */
static size_t lay_out(job *j, uint8_t *memory, int whole) {
    arena a = {memory, 0};
    take(&a, sizeof *j);
    const aeic_image *image = j->image;
    int width = (image->width + PADDING - 1) / PADDING * PADDING, height = (image->height + PADDING - 1) / PADDING * PADDING;
    enum { FAR = 1024 * BAND };
    j->padded_width = width;
    j->h = height / STRIDE, j->w = width / STRIDE;
    j->zh = (j->h + Z_STRIDE - 1) / Z_STRIDE, j->zw = (j->w + Z_STRIDE - 1) / Z_STRIDE;
    j->kept = reach(H_A, H_A_LAYERS, reach(H_S, H_S_LAYERS - 1, FAR + BAND - 1)) - FAR + 1;
    if (whole || j->kept > j->h) j->kept = j->h;
    if (j->kept < j->h) j->made = 0;
    size_t band = (size_t)(BAND * j->w);
    j->y = take(&a, sizeof(int16_t) * (size_t)(j->kept * j->w) * Y_CHANNELS);
    j->pixels = take(&a, 3 * (size_t)width);
    j->y_bytes = take(&a, (size_t)j->zw * Z_STRIDE * Y_CHANNELS);
    j->z_bytes = take(&a, (size_t)j->zw * Z_CHANNELS);
    j->z = take(&a, sizeof(int16_t) * (size_t)j->zw * Z_CHANNELS);
    j->hidden = take(&a, band * HIDDEN);
    j->level = take(&a, band * Y_CHANNELS);
    j->tables = take(&a, sizeof(uint64_t) * Y_CHANNELS);
    j->gain = take(&a, sizeof(uint16_t) * Y_CHANNELS);
    j->gain_shift = take(&a, Y_CHANNELS);
    build(&j->g_a, &a, G_A, G_A_LAYERS, width, height, 1);
    build(&j->h_a, &a, H_A, H_A_LAYERS, j->zw * Z_STRIDE, j->zh * Z_STRIDE, 1);
    build(&j->h_s, &a, H_S, H_S_LAYERS - 1, j->zw, j->zh, 0);
    j->g_a.source = pixel_row, j->h_a.source = y_row, j->h_s.source = z_row;
    j->g_a.context = j->h_a.context = j->h_s.context = j;
    return a.used;
}

static int fits(const aeic_image *image) {
    return image->width >= 1 && image->height >= 1 && image->width <= AEIC_LARGEST_SIDE &&
           image->height <= AEIC_LARGEST_SIDE;
}

int aeic_levels(void) { return LEVELS; }

static size_t memory_of(int width, int height, int whole) {
    aeic_image image = {width, height, NULL, NULL};
    job j;
    j.image = &image;
    return fits(&image) ? lay_out(&j, NULL, whole) : 0;
}

size_t aeic_memory(int width, int height) { return memory_of(width, height, 0); }

size_t aeic_memory_once(int width, int height) { return memory_of(width, height, 1); }

long aeic_encode(const aeic_image *image, int position, void *memory, size_t size, uint8_t *out, size_t most) {
    job *j = memory;
    if (!fits(image)) return AEIC_BAD_SIZE;
    if (position < -1 || position > 255) return AEIC_BAD_LEVEL;
    if (size < sizeof *j) return AEIC_NO_MEMORY;
    j->image = image, j->made = 0;
    if (size < lay_out(j, NULL, 0)) return AEIC_NO_MEMORY;
    int whole = size >= lay_out(j, NULL, 1);
    if (position < 0 && LEVELS > 0) {
        int low = -1, high = 256; /* the stream at `low` fits, that at `high` does not */
        while (high - low > 1) {
            int middle = low < 0 ? 0 : (low + high) / 2;
            lay_out(j, memory, whole);
            long bytes = put_file(j, middle, out, most, 0);
            if (bytes >= 0) low = middle;
            else if (bytes == AEIC_NO_PIXELS || middle == 0) return bytes;
            else high = middle;
        }
        position = low;
    }
    lay_out(j, memory, whole);
    return put_file(j, position, out, most, 1);
}

/* AetherNet's arithmetic for processors.

This file is compiled once for each instruction set, with VARIANT as the last part of
every function's name; level.c says which of them a processor has. It uses the vector
extensions of clang and gcc, no intrinsics and no library.

    image (channels, H, W)
      | aether_first     3x3 convolution, image to map
      | aether_block     depthwise K x K, LayerNorm, gated feed-forward, + its input
      | aether_norm      LayerNorm, in place
      | aether_conv      3x3 convolutions, map to map
      | aether_tail      last convolution and PixelShuffle, map to image
    image (channels, scale * H, scale * W)

Words
    L       numbers in a vector (LANES): 16 for AVX-512, 8 for AVX2, 4 for NEON and
            WebAssembly
    group   L neighbouring channels; the last one is filled up with zeros
    map     features as [group][row][column][L], float32. `row` and `plane` are the
            distances between rows and between groups, in floats. A pointer to a map
            points to row 0, column 0 of group 0. The caller keeps zeros around it:
            `margin` rows above, between two groups and below, `margin` columns left
            of a row, which are those right of the row before.
    panel   2 L output channels of a product: the weights that stay in the nearest
            cache while a tile of pixels passes
    tile    TILE_ROWS x TILE_COLUMNS pixels, what `aether_block` takes through a whole
            block at a time; between its steps a tile is [group][pixel][L]
    lane    one number of a vector

Why this blocking
    A vector unit is busy when some eight sums or more are independent, and every load
    is used more than once. PIXELS pixels x 2 vectors of sums do that, and fit into the
    registers: 12 of the 16 of AVX2, 24 of the 32 of AVX-512 and NEON. One step loads
    2 vectors of weights and PIXELS single numbers for 2 * PIXELS multiply-adds. The
    depthwise convolution takes 2 rows x PIXELS columns, so that what is loaded of the
    input is used for both rows.
    A tile of 96 pixels with its hidden features (108 KiB with 96 and 192 channels)
    stays in the second cache, one panel of weights (6 or 12 KiB) in the first.
    In the first product a panel holds L gate columns and the L main columns that
    belong to them: GELU and the gate work on sums that are still in registers.

Every function takes a rectangle, rows [y0, y1) and columns [x0, x1), so that threads
can share the work. It writes inside its rectangle only. It may read, and compute with,
up to PIXELS pixels and rows more than it needs; the caller allocates them.
Nothing is checked here: `library.py` does. The web page calls these functions, too,
with what `publish/page_model.py` writes.
*/

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
/* Pixels of a row that are computed together, see "Why this blocking". */
#ifndef PIXELS
#if LANES == 8
#define PIXELS 6
#else
#define PIXELS 12
#endif
#endif

#define L LANES
#define TILE_COLUMNS 24
#define TILE_ROWS 4
#define TILE (TILE_ROWS * TILE_COLUMNS)
#define LINE 48 /* pixels that a convolution takes at a time */
#define CONV_KERNEL 3
#define LEAKY_SLOPE 0.01f /* of the LeakyReLU */

#define PASTE(name, variant) aether_##name##_##variant
#define NAME_OF(name, variant) PASTE(name, variant)
#define NAME(name) NAME_OF(name, VARIANT)

typedef float vec __attribute__((vector_size(4 * L), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * L), aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#ifndef APART
#define APART static __attribute__((noinline))
#endif
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_TAPS _Pragma("clang loop unroll_count(13)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_TAPS _Pragma("GCC unroll 13")
#endif
/* The compiler takes the pointer for changed, so it does not move the next loads up into
registers that it does not have: it would keep sums in memory instead. */
#define HIDE(p) __asm__("" : "+r"(p))

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t parts(int64_t all, int64_t one) { return (all + one - 1) / one; }

INLINE vec broadcast(float a) { return a - (vec){0}; }

INLINE vec least(vec a, vec b) {
  ivec m = a < b;
  return (vec)((m & (ivec)a) | (~m & (ivec)b));
}

INLINE vec most(vec a, vec b) {
  ivec m = a > b;
  return (vec)((m & (ivec)a) | (~m & (ivec)b));
}

INLINE float sum(vec v) {
  float part[L];
  UNROLL for (int i = 0; i < L; i++) part[i] = v[i];
  UNROLL for (int half = L / 2; half; half /= 2)
    UNROLL for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

/* x * Phi(x), the exact GELU. erf(z) is the rational function that Eigen
(`generic_fast_erf_float`) and XLA use, a polynomial of degree 9 over
one of degree 10, for |z| up to 3.83, where erf is 1 in float32. */
INLINE vec gelu(vec x) {
  const vec bound = broadcast(3.832506856900711f);
  vec z = least(most(x * 0.70710678118654752f, -bound), bound), t = z * z;
  vec p = 0.00022905065861350646f * t + 0.0034082910107109506f;
  vec q = -1.1791602954361697e-7f * t + 0.000023547966471313185f;
  q = q * t + 0.0010179625278914885f;
  p = p * t + 0.050955695062380861f;
  q = q * t + 0.014070470171167667f;
  p = p * t + 0.18520832239976145f;
  q = q * t + 0.11098505178285362f;
  p = p * t + 1.128379143519084f;
  q = q * t + 0.49746925110067538f;
  p = p * z;
  q = q * t + 1.0f;
  vec half = x * 0.5f;
  return half * (p / q) + half;
}

/* ---- Products ------------------------------------------------------------------ */

/* Adds the products of `lanes` input channels: pixel i of `a` is at a + i * step, the
weights are [lane][2 L]. */
INLINE void add_lanes(vec c[PIXELS][2], const float *a, size_t step, const float *b,
                      int64_t lanes) {
  for (int64_t k = 0; k < lanes; k++, b += 2 * L) {
    const vec b0 = LOAD(b), b1 = LOAD(b + L);
    UNROLL for (int i = 0; i < PIXELS; i++) {
      const vec x = broadcast(a[i * step + k]);
      c[i][0] += x * b0;
      c[i][1] += x * b1;
    }
  }
}

/* The same with all lanes of a group. */
INLINE void add_group(vec c[PIXELS][2], const float *a, size_t step, const float *b) {
  UNROLL for (int k = 0; k < L; k++, b += 2 * L) {
    HIDE(b);
    const vec b0 = LOAD(b), b1 = LOAD(b + L);
    UNROLL for (int i = 0; i < PIXELS; i++) {
      const vec x = broadcast(a[i * step + k]);
      c[i][0] += x * b0;
      c[i][1] += x * b1;
    }
  }
}

/* PIXELS pixels of a tile times a panel [channel][2 L], on top of a bias [2 L]. */
INLINE void product(vec c[PIXELS][2], const float *a, int64_t channels, const float *b,
                    const float *bias) {
  UNROLL for (int i = 0; i < PIXELS; i++) {
    c[i][0] = LOAD(bias);
    c[i][1] = LOAD(bias + L);
  }
  for (int64_t g = 0; g < channels / L; g++, a += TILE * L, b += 2 * L * L)
    add_group(c, a, L, b);
  add_lanes(c, a, L, b, channels % L);
}

/* ---- The block ----------------------------------------------------------------- */

/* 2 rows x PIXELS columns of one group, K x K depthwise; weights [ky][kx][L]. Row r of
the input is row r of the kernel for the first row, r - 1 for the second. */
INLINE void depthwise(const float *in, size_t row, int64_t kernel, const float *w,
                      const float *bias, float *t) {
  const size_t w_row = (size_t)kernel * L;
  vec a[PIXELS], b[PIXELS];
  UNROLL for (int i = 0; i < PIXELS; i++) a[i] = b[i] = LOAD(bias);
  const float *p = in, *q = w;
  UNROLL_TAPS for (int64_t kx = 0; kx < kernel; kx++, p += L, q += L) {
    HIDE(p);
    const vec w0 = LOAD(q);
    UNROLL for (int i = 0; i < PIXELS; i++) a[i] += LOAD(p + i * L) * w0;
  }
  for (int64_t r = 1; r < kernel; r++) {
    p = in + r * row;
    q = w + (r - 1) * w_row;
    UNROLL_TAPS for (int64_t kx = 0; kx < kernel; kx++, p += L, q += L) {
      HIDE(p);
      const vec w1 = LOAD(q), w0 = LOAD(q + w_row);
      UNROLL for (int i = 0; i < PIXELS; i++) {
        const vec x = LOAD(p + i * L);
        a[i] += x * w0;
        b[i] += x * w1;
      }
    }
  }
  p = in + kernel * row;
  q = w + (kernel - 1) * w_row;
  UNROLL_TAPS for (int64_t kx = 0; kx < kernel; kx++, p += L, q += L) {
    HIDE(p);
    const vec w1 = LOAD(q);
    UNROLL for (int i = 0; i < PIXELS; i++) b[i] += LOAD(p + i * L) * w1;
  }
  UNROLL for (int i = 0; i < PIXELS; i++) {
    STORE(t + i * L, a[i]);
    STORE(t + (TILE_COLUMNS + i) * L, b[i]);
  }
}

INLINE void depthwise_all(const float *in, size_t row, int64_t kernel, const float *w,
                          const float *bias, float *t, int64_t rows, int64_t columns) {
  for (int64_t y = 0; y < rows; y += 2)
    for (int64_t x = 0; x < columns; x += PIXELS)
      depthwise(in + y * row + x * L, row, kernel, w, bias,
                t + (y * TILE_COLUMNS + x) * L);
}

/* One group of a tile. The kernels of the known variants have loops of known length,
which saves a third of this function's time. */
APART void depthwise_tile(const float *in, size_t row, int64_t kernel, const float *w,
                          const float *bias, float *t, int64_t rows, int64_t columns) {
  if (kernel == 11)
    depthwise_all(in, row, 11, w, bias, t, rows, columns);
  else if (kernel == 13)
    depthwise_all(in, row, 13, w, bias, t, rows, columns);
  else
    depthwise_all(in, row, kernel, w, bias, t, rows, columns);
}

/* The lanes of the last group that hold channels: ones, then zeros. */
INLINE vec used_lanes(int64_t channels) {
  vec mask;
  for (int i = 0; i < L; i++) mask[i] = i < channels - (parts(channels, L) - 1) * L;
  return mask;
}

/* Mean over the channels of one pixel, whose groups are `apart` floats apart, and what
to multiply by for a variance of one. */
INLINE void moments(const float *q, size_t apart, int64_t channels, vec mask, float eps,
                    vec *mean, vec *inverse) {
  const int64_t last = parts(channels, L) - 1;
  vec total = LOAD(q), square = {0};
  for (int64_t g = 1; g <= last; g++) total += LOAD(q + g * apart);
  *mean = broadcast(sum(total) / (float)channels);
  for (int64_t g = 0; g < last; g++) {
    const vec d = LOAD(q + g * apart) - *mean;
    square += d * d;
  }
  const vec d = (LOAD(q + last * apart) - *mean) * mask;
  square += d * d;
  const float variance = sum(square) / (float)channels;
  *inverse = broadcast(1.0f / __builtin_sqrtf(variance + eps));
}

/* LayerNorm of a tile without scale and shift, which the next product holds. */
APART void norm_tile(float *t, int64_t channels, float eps, int64_t rows,
                     int64_t columns) {
  const vec mask = used_lanes(channels);
  const int64_t groups = parts(channels, L);
  for (int64_t y = 0; y < rows; y++)
    for (int64_t x = 0; x < columns; x++) {
      float *q = t + (y * TILE_COLUMNS + x) * L;
      vec mean, inverse;
      moments(q, TILE * L, channels, mask, eps, &mean, &inverse);
      for (int64_t g = 0; g < groups; g++, q += TILE * L)
        STORE(q, (LOAD(q) - mean) * inverse);
    }
}

/* One panel of the first product: GELU(gate) * main, L hidden channels. */
APART void expand_panel(const float *t, int64_t channels, const float *panel,
                        const float *bias, float *h, int64_t rows, int64_t columns) {
  for (int64_t y = 0; y < rows; y++)
    for (int64_t x = 0; x < columns; x += PIXELS) {
      const size_t pixel = (size_t)(y * TILE_COLUMNS + x) * L;
      vec c[PIXELS][2];
      product(c, t + pixel, channels, panel, bias);
      UNROLL for (int i = 0; i < PIXELS; i++)
        STORE(h + pixel + i * L, gelu(c[i][0]) * c[i][1]);
    }
}

/* One panel of the second product, and the residual: out = in + product. `second` says
whether the panel's second half belongs to the map. */
APART void project_panel(const float *h, int64_t hidden, const float *panel,
                         const float *bias, const float *in, float *out, size_t row,
                         size_t plane, int second, int64_t rows, int64_t columns) {
  for (int64_t y = 0; y < rows; y++)
    for (int64_t x = 0; x < columns; x += PIXELS) {
      vec c[PIXELS][2];
      product(c, h + (y * TILE_COLUMNS + x) * L, hidden, panel, bias);
      const size_t at = y * row + x * L;
      const int64_t n = columns - x;
      UNROLL for (int i = 0; i < PIXELS; i++) if (i < n) {
        STORE(out + at + i * L, LOAD(in + at + i * L) + c[i][0]);
        if (second)
          STORE(out + plane + at + i * L, LOAD(in + plane + at + i * L) + c[i][1]);
      }
    }
}

/* A whole block: out = in + last(GELU(gate(n)) * main(n)), n = LayerNorm(depthwise(in)).

in, out          maps of `channels`, which do not overlap; margin kernel / 2
depthwise_w      [group][kernel][kernel][L], bias [group][L]
expand_w         [panel][channel][L gate, L main], bias [panel][2 L]: LayerNorm's scale
                 and shift are in them
project_w        [panel][hidden][2 L], bias [panel][2 L]
scratch          TILE * L * (groups of channels + groups of hidden) floats */
EXPORT void NAME(block)(const float *restrict in, float *restrict out, int64_t row,
                        int64_t plane, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                        int64_t channels, int64_t hidden, int64_t kernel,
                        const float *depthwise_w, const float *depthwise_b,
                        const float *expand_w, const float *expand_b,
                        const float *project_w, const float *project_b, float eps,
                        float *restrict scratch) {
  const int64_t groups = parts(channels, L), hidden_groups = parts(hidden, L);
  const int64_t radius = kernel / 2;
  float *t = scratch, *h = scratch + groups * TILE * L;
  for (int64_t x = x0; x < x1; x += TILE_COLUMNS)
    for (int64_t y = y0; y < y1; y += TILE_ROWS) {
      const int64_t rows = smaller(y1 - y, TILE_ROWS);
      const int64_t columns = smaller(x1 - x, TILE_COLUMNS);
      const float *corner = in + (y - radius) * row + (x - radius) * L;
      for (int64_t g = 0; g < groups; g++)
        depthwise_tile(corner + g * plane, row, kernel,
                       depthwise_w + g * kernel * kernel * L, depthwise_b + g * L,
                       t + g * TILE * L, rows, columns);
      norm_tile(t, channels, eps, rows, parts(columns, PIXELS) * PIXELS);
      for (int64_t j = 0; j < hidden_groups; j++)
        expand_panel(t, channels, expand_w + j * channels * 2 * L, expand_b + j * 2 * L,
                     h + j * TILE * L, rows, columns);
      const size_t here = y * row + x * L;
      for (int64_t j = 0; j < groups; j += 2)
        project_panel(h, hidden, project_w + j * hidden * L, project_b + j * L,
                      in + j * plane + here, out + j * plane + here, row, plane,
                      j + 1 < groups, rows, columns);
    }
}

/* LayerNorm with scale and shift, [group][L] each, zero in unused lanes; in place. */
EXPORT void NAME(norm)(float *map, int64_t row, int64_t plane, int64_t y0, int64_t y1,
                       int64_t x0, int64_t x1, int64_t channels, const float *scale,
                       const float *shift, float eps) {
  const vec mask = used_lanes(channels);
  const int64_t groups = parts(channels, L);
  for (int64_t y = y0; y < y1; y++)
    for (int64_t x = x0; x < x1; x++) {
      float *q = map + y * row + x * L;
      vec mean, inverse;
      moments(q, plane, channels, mask, eps, &mean, &inverse);
      for (int64_t g = 0; g < groups; g++, q += plane) {
        const vec normal = (LOAD(q) - mean) * inverse;
        STORE(q, normal * LOAD(scale + g * L) + LOAD(shift + g * L));
      }
    }
}

/* ---- Convolutions -------------------------------------------------------------- */

/* One panel of a K x K convolution for n <= LINE pixels, into sums [pixel][2 L].

in       corner of the first pixel's window; the next pixel's is `step` floats on
weights  [ky][group][kx][lane][2 L], of the panel; the last group has only the lanes
         that hold channels
One row of the kernel at a time: its weights, 18 KiB with 96 channels and K = 3, are
read from the second cache once for all pixels of the line. */
INLINE void conv_line(const float *in, size_t step, size_t row, size_t plane,
                      int64_t channels, int64_t kernel, const float *weights,
                      const float *bias, float *sums, int64_t n) {
  const int64_t full = channels / L, rest = channels % L;
  for (int64_t ky = 0; ky < kernel; ky++) {
    for (int64_t x = 0; x < n; x += PIXELS) {
      float *s = sums + x * 2 * L;
      vec c[PIXELS][2];
      UNROLL for (int i = 0; i < PIXELS; i++) {
        const float *from = ky ? s + i * 2 * L : bias;
        c[i][0] = LOAD(from);
        c[i][1] = LOAD(from + L);
      }
      const float *a = in + ky * row + x * step, *b = weights;
      for (int64_t g = 0; g < full; g++, a += plane)
        for (int64_t kx = 0; kx < kernel; kx++, b += 2 * L * L)
          add_group(c, a + kx * L, step, b);
      for (int64_t kx = 0; rest && kx < kernel; kx++, b += 2 * L * rest)
        add_lanes(c, a + kx * L, step, b, rest);
      UNROLL for (int i = 0; i < PIXELS; i++) {
        STORE(s + i * 2 * L, c[i][0]);
        STORE(s + i * 2 * L + L, c[i][1]);
      }
    }
    weights += kernel * channels * 2 * L;
  }
}

/* Along a row. */
APART void conv_row(const float *in, size_t row, size_t plane, int64_t channels,
                    int64_t kernel, const float *weights, const float *bias,
                    float *sums, int64_t n) {
  conv_line(in, L, row, plane, channels, kernel, weights, bias, sums, n);
}

/* Down a column. */
APART void conv_column(const float *in, size_t row, size_t plane, int64_t channels,
                       int64_t kernel, const float *weights, const float *bias,
                       float *sums, int64_t n) {
  conv_line(in, row, row, plane, channels, kernel, weights, bias, sums, n);
}

enum { PLAIN, ADD, LEAKY };

/* One group of n pixels of sums [pixel][2 L] into a map. */
INLINE void store_group(float *out, const float *sums, int64_t n, int64_t mode) {
  for (int64_t i = 0; i < n; i++) {
    vec v = LOAD(sums + i * 2 * L);
    if (mode == ADD) v += LOAD(out + i * L);
    if (mode == LEAKY) v = most(v, v * LEAKY_SLOPE);
    STORE(out + i * L, v);
  }
}

/* 3x3 convolution between maps of the same `row` and `plane`; margin 1.

mode     0: out = conv(in); 1: out += conv(in); 2: out = LeakyReLU(conv(in))
weights  [panel][ky][group][kx][lane][2 L] as in `conv_line`, bias [panel][2 L]
sums     scratch of (LINE + PIXELS) * 2 * L floats, here and below: not on the stack,
         where Windows wants help from its C library for more than 4 KiB */
EXPORT void NAME(conv)(const float *restrict in, float *restrict out, int64_t row,
                       int64_t plane, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                       int64_t channels, int64_t out_channels, const float *weights,
                       const float *bias, int64_t mode, float *restrict sums) {
  const int64_t groups = parts(out_channels, L), size = 9 * channels * 2 * L;
  for (int64_t y = y0; y < y1; y++)
    for (int64_t x = x0; x < x1; x += LINE) {
      const int64_t n = smaller(x1 - x, LINE);
      const float *corner = in + (y - 1) * row + (x - 1) * L;
      for (int64_t j = 0; j < groups; j++) {
        if (j % 2 == 0)
          conv_row(corner, row, plane, channels, CONV_KERNEL, weights + j / 2 * size,
                   bias + j * L, sums, n);
        store_group(out + j * plane + y * row + x * L, sums + j % 2 * L, n, mode);
      }
    }
}

/* The first convolution, 3x3: image (channels, height, width), row after row, minus
`mean`, to a map. Weights as in `conv`.
scratch  sums, and groups of channels * 3 * (LINE + 2 + PIXELS) * L floats */
EXPORT void NAME(first)(const float *restrict image, float *restrict out, int64_t row,
                        int64_t plane, int64_t height, int64_t width, int64_t y0,
                        int64_t y1, int64_t x0, int64_t x1, int64_t channels,
                        int64_t out_channels, float mean, const float *weights,
                        const float *bias, float *restrict scratch) {
  const int64_t groups = parts(out_channels, L), size = 9 * channels * 2 * L;
  const int64_t patch_row = (LINE + 2 + PIXELS) * L, patch_plane = 3 * patch_row;
  float *sums = scratch + parts(channels, L) * patch_plane;
  for (float *p = scratch; p < sums; p++) *p = 0;
  for (int64_t y = y0; y < y1; y++)
    for (int64_t x = x0; x < x1; x += LINE) {
      const int64_t n = smaller(x1 - x, LINE);
      for (int64_t c = 0; c < channels; c++)
        for (int64_t r = 0; r < 3; r++) {
          const int64_t from_y = y + r - 1;
          const int row_inside = from_y >= 0 && from_y < height;
          const float *line = image + (c * height + (row_inside ? from_y : 0)) * width;
          float *p = scratch + c / L * patch_plane + r * patch_row + c % L;
          for (int64_t i = 0; i < n + 2; i++) {
            const int64_t from_x = x + i - 1;
            const int inside = row_inside && from_x >= 0 && from_x < width;
            p[i * L] = inside ? line[from_x] - mean : 0;
          }
        }
      for (int64_t j = 0; j < groups; j++) {
        if (j % 2 == 0)
          conv_row(scratch, patch_row, patch_plane, channels, CONV_KERNEL,
                   weights + j / 2 * size, bias + j * L, sums, n);
        store_group(out + j * plane + y * row + x * L, sums + j % 2 * L, n, PLAIN);
      }
    }
}

/* Where the last convolution's sums go. */
struct picture {
  float *data; /* (channels, scale * height, scale * width) */
  int64_t height, width, channels, scale;
  float mean;
};

/* PixelShuffle: sums of output channel (c, sy, sx) of the map's pixel (y, x) become
image[c, scale * y + sy, scale * x + sx]. `down`: the pixels are below each other. */
APART void shuffle(const struct picture *to, int64_t panel, const float *sums, int64_t y,
                   int64_t x, int64_t n, int down) {
  const int64_t s = to->scale, wide = s * to->width;
  const int64_t step = down ? s * wide : s;
  const int64_t end = smaller(to->channels * s * s, (panel + 1) * 2 * L);
  for (int64_t k = panel * 2 * L; k < end; k++) {
    const int64_t c = k / (s * s), sy = k / s % s, sx = k % s;
    float *out =
        to->data + (c * s * to->height + s * y + sy) * wide + s * x + sx;
    const float *from = sums + (k - panel * 2 * L);
    for (int64_t i = 0; i < n; i++) out[i * step] = from[i * 2 * L] + to->mean;
  }
}

/* First, last, or both, of `size`: bits 1 and 2. */
INLINE int64_t edge(int64_t at, int64_t size) {
  return (at == 0) | (int64_t)(at == size - 1) << 1;
}

/* Everything behind the last activation: one K x K convolution (K is 3 or 5) and a
PixelShuffle, plus `mean`. `in` is a map of `channels` with margin K / 2.

The network pads with zeros on every grid on its way to the output's, which the one
convolution cannot do for the outermost pixels; they have weights of their own.
weights[edge of y * 4 + edge of x]  for those pixels, [panel][ky][group][kx][lane][2 L];
biases[...]                         [panel][2 L]; null where no pixel has that edge */
EXPORT void NAME(tail)(const float *restrict in, float *restrict image, int64_t row,
                       int64_t plane, int64_t height, int64_t width, int64_t y0,
                       int64_t y1, int64_t x0, int64_t x1, int64_t channels,
                       int64_t image_channels, int64_t scale, int64_t kernel, float mean,
                       const float *const *weights, const float *const *biases,
                       float *restrict sums) {
  const struct picture to = {image, height, width, image_channels, scale, mean};
  const int64_t panels = parts(image_channels * scale * scale, 2 * L);
  const int64_t size = kernel * kernel * channels * 2 * L, radius = kernel / 2;
  in -= radius * row + radius * L; /* the corner of each pixel's window */
  const int64_t left = x0 == 0, right = x1 == width && width > 1;
  for (int64_t y = y0; y < y1; y++)
    for (int64_t x = x0 + left; x < x1 - right; x += LINE) {
      const int64_t n = smaller(x1 - right - x, LINE), at = edge(y, height) * 4;
      for (int64_t j = 0; j < panels; j++) {
        conv_row(in + y * row + x * L, row, plane, channels, kernel,
                 weights[at] + j * size, biases[at] + j * 2 * L, sums, n);
        shuffle(&to, j, sums, y, x, n, 0);
      }
    }
  for (int64_t side = 0; side < 2; side++) {
    if (!(side ? right : left)) continue;
    const int64_t x = side ? width - 1 : 0;
    for (int64_t y = y0, n; y < y1; y += n) {
      const int64_t at = edge(y, height) * 4 + edge(x, width);
      for (n = 1; n < LINE && y + n < y1 && edge(y + n, height) == edge(y, height);) n++;
      for (int64_t j = 0; j < panels; j++) {
        conv_column(in + y * row + x * L, row, plane, channels, kernel,
                    weights[at] + j * size, biases[at] + j * 2 * L, sums, n);
        shuffle(&to, j, sums, y, x, n, 1);
      }
    }
  }
}

/* What the processor can do at most: `rounds` times PIXELS * 2 * L * 8 multiply-adds that
read and write registers only. For benchmarks. */
EXPORT void NAME(peak)(int64_t rounds, float *out) {
  vec c[PIXELS][2], a = LOAD(out), b = LOAD(out + L);
  UNROLL for (int i = 0; i < PIXELS; i++) c[i][0] = c[i][1] = a + (float)i;
  for (int64_t r = 0; r < rounds; r++) {
    UNROLL for (int k = 0; k < 8; k++) {
      UNROLL for (int i = 0; i < PIXELS; i++) {
        c[i][0] = c[i][0] * a + b;
        c[i][1] = c[i][1] * b + a;
      }
    }
  }
  UNROLL for (int i = 1; i < PIXELS; i++) {
    c[0][0] += c[i][0];
    c[0][1] += c[i][1];
  }
  STORE(out, c[0][0] + c[0][1]);
}

/* What the layouts above depend on: L, PIXELS, TILE_ROWS, TILE, LINE. */
EXPORT int64_t NAME(constant)(int64_t which) {
  const int64_t all[] = {L, PIXELS, TILE_ROWS, TILE, LINE};
  return all[which];
}

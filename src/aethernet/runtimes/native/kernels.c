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

/* Sizes and distances: 64 bits, but 32 in WebAssembly, whose addresses have 32. */
typedef ptrdiff_t num;
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

INLINE num smaller(num a, num b) { return a < b ? a : b; }
INLINE num parts(num all, num one) { return (all + one - 1) / one; }

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
                      num lanes) {
  for (num k = 0; k < lanes; k++, b += 2 * L) {
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
INLINE void product(vec c[PIXELS][2], const float *a, num channels, const float *b,
                    const float *bias) {
  UNROLL for (int i = 0; i < PIXELS; i++) {
    c[i][0] = LOAD(bias);
    c[i][1] = LOAD(bias + L);
  }
  for (num g = 0; g < channels / L; g++, a += TILE * L, b += 2 * L * L)
    add_group(c, a, L, b);
  add_lanes(c, a, L, b, channels % L);
}

/* ---- The block ----------------------------------------------------------------- */

/* 2 rows x PIXELS columns of one group, K x K depthwise; weights [ky][kx][L]. Row r of
the input is row r of the kernel for the first row, r - 1 for the second. */
INLINE void depthwise(const float *in, size_t row, num kernel, const float *w,
                      const float *bias, float *t) {
  const size_t w_row = (size_t)kernel * L;
  vec a[PIXELS], b[PIXELS];
  UNROLL for (int i = 0; i < PIXELS; i++) a[i] = b[i] = LOAD(bias);
  const float *p = in, *q = w;
  UNROLL_TAPS for (num kx = 0; kx < kernel; kx++, p += L, q += L) {
    HIDE(p);
    const vec w0 = LOAD(q);
    UNROLL for (int i = 0; i < PIXELS; i++) a[i] += LOAD(p + i * L) * w0;
  }
  for (num r = 1; r < kernel; r++) {
    p = in + r * row;
    q = w + (r - 1) * w_row;
    UNROLL_TAPS for (num kx = 0; kx < kernel; kx++, p += L, q += L) {
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
  UNROLL_TAPS for (num kx = 0; kx < kernel; kx++, p += L, q += L) {
    HIDE(p);
    const vec w1 = LOAD(q);
    UNROLL for (int i = 0; i < PIXELS; i++) b[i] += LOAD(p + i * L) * w1;
  }
  UNROLL for (int i = 0; i < PIXELS; i++) {
    STORE(t + i * L, a[i]);
    STORE(t + (TILE_COLUMNS + i) * L, b[i]);
  }
}

INLINE void depthwise_all(const float *in, size_t row, num kernel, const float *w,
                          const float *bias, float *t, num rows, num columns) {
  for (num y = 0; y < rows; y += 2)
    for (num x = 0; x < columns; x += PIXELS)
      depthwise(in + y * row + x * L, row, kernel, w, bias,
                t + (y * TILE_COLUMNS + x) * L);
}

/* One group of a tile. The kernels of the known variants have loops of known length,
which saves a third of this function's time. */
APART void depthwise_tile(const float *in, size_t row, num kernel, const float *w,
                          const float *bias, float *t, num rows, num columns) {
  if (kernel == 11)
    depthwise_all(in, row, 11, w, bias, t, rows, columns);
  else if (kernel == 13)
    depthwise_all(in, row, 13, w, bias, t, rows, columns);
  else
    depthwise_all(in, row, kernel, w, bias, t, rows, columns);
}

/* The lanes of the last group that hold channels: ones, then zeros. */
INLINE vec used_lanes(num channels) {
  vec mask;
  for (int i = 0; i < L; i++) mask[i] = i < channels - (parts(channels, L) - 1) * L;
  return mask;
}

/* Mean over the channels of one pixel, whose groups are `apart` floats apart, and what
to multiply by for a variance of one. */
INLINE void moments(const float *q, size_t apart, num channels, vec mask, float eps,
                    vec *mean, vec *inverse) {
  const num last = parts(channels, L) - 1;
  vec total = LOAD(q), square = {0};
  for (num g = 1; g <= last; g++) total += LOAD(q + g * apart);
  *mean = broadcast(sum(total) / (float)channels);
  for (num g = 0; g < last; g++) {
    const vec d = LOAD(q + g * apart) - *mean;
    square += d * d;
  }
  const vec d = (LOAD(q + last * apart) - *mean) * mask;
  square += d * d;
  const float variance = sum(square) / (float)channels;
  *inverse = broadcast(1.0f / __builtin_sqrtf(variance + eps));
}

/* LayerNorm of a tile without scale and shift, which the next product holds. */
APART void norm_tile(float *t, num channels, float eps, num rows, num columns) {
  const vec mask = used_lanes(channels);
  const num groups = parts(channels, L);
  for (num y = 0; y < rows; y++)
    for (num x = 0; x < columns; x++) {
      float *q = t + (y * TILE_COLUMNS + x) * L;
      vec mean, inverse;
      moments(q, TILE * L, channels, mask, eps, &mean, &inverse);
      for (num g = 0; g < groups; g++, q += TILE * L)
        STORE(q, (LOAD(q) - mean) * inverse);
    }
}

/* One panel of the first product: GELU(gate) * main, L hidden channels. */
APART void expand_panel(const float *t, num channels, const float *panel,
                        const float *bias, float *h, num rows, num columns) {
  for (num y = 0; y < rows; y++)
    for (num x = 0; x < columns; x += PIXELS) {
      const size_t pixel = (size_t)(y * TILE_COLUMNS + x) * L;
      vec c[PIXELS][2];
      product(c, t + pixel, channels, panel, bias);
      UNROLL for (int i = 0; i < PIXELS; i++)
        STORE(h + pixel + i * L, gelu(c[i][0]) * c[i][1]);
    }
}

/* One panel of the second product, and the residual: out = in + product. `second` says
whether the panel's second half belongs to the map. */
APART void project_panel(const float *h, num hidden, const float *panel,
                         const float *bias, const float *in, float *out, size_t row,
                         size_t plane, int second, num rows, num columns) {
  for (num y = 0; y < rows; y++)
    for (num x = 0; x < columns; x += PIXELS) {
      vec c[PIXELS][2];
      product(c, h + (y * TILE_COLUMNS + x) * L, hidden, panel, bias);
      const size_t at = y * row + x * L;
      const num n = columns - x;
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
EXPORT void NAME(block)(const float *restrict in, float *restrict out, num row,
                        num plane, num y0, num y1, num x0, num x1, num channels,
                        num hidden, num kernel, const float *depthwise_w,
                        const float *depthwise_b, const float *expand_w,
                        const float *expand_b, const float *project_w,
                        const float *project_b, float eps, float *restrict scratch) {
  const num groups = parts(channels, L), hidden_groups = parts(hidden, L);
  const num radius = kernel / 2;
  float *t = scratch, *h = scratch + groups * TILE * L;
  for (num x = x0; x < x1; x += TILE_COLUMNS)
    for (num y = y0; y < y1; y += TILE_ROWS) {
      const num rows = smaller(y1 - y, TILE_ROWS);
      const num columns = smaller(x1 - x, TILE_COLUMNS);
      const float *corner = in + (y - radius) * row + (x - radius) * L;
      for (num g = 0; g < groups; g++)
        depthwise_tile(corner + g * plane, row, kernel,
                       depthwise_w + g * kernel * kernel * L, depthwise_b + g * L,
                       t + g * TILE * L, rows, columns);
      norm_tile(t, channels, eps, rows, parts(columns, PIXELS) * PIXELS);
      for (num j = 0; j < hidden_groups; j++)
        expand_panel(t, channels, expand_w + j * channels * 2 * L, expand_b + j * 2 * L,
                     h + j * TILE * L, rows, columns);
      const size_t here = y * row + x * L;
      for (num j = 0; j < groups; j += 2)
        project_panel(h, hidden, project_w + j * hidden * L, project_b + j * L,
                      in + j * plane + here, out + j * plane + here, row, plane,
                      j + 1 < groups, rows, columns);
    }
}

/* LayerNorm with scale and shift, [group][L] each, zero in unused lanes; in place. */
EXPORT void NAME(norm)(float *map, num row, num plane, num y0, num y1, num x0, num x1,
                       num channels, const float *scale, const float *shift,
                       float eps) {
  const vec mask = used_lanes(channels);
  const num groups = parts(channels, L);
  for (num y = y0; y < y1; y++)
    for (num x = x0; x < x1; x++) {
      float *q = map + y * row + x * L;
      vec mean, inverse;
      moments(q, plane, channels, mask, eps, &mean, &inverse);
      for (num g = 0; g < groups; g++, q += plane) {
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
                      num channels, num kernel, const float *weights, const float *bias,
                      float *sums, num n) {
  const num full = channels / L, rest = channels % L;
  for (num ky = 0; ky < kernel; ky++) {
    for (num x = 0; x < n; x += PIXELS) {
      float *s = sums + x * 2 * L;
      vec c[PIXELS][2];
      UNROLL for (int i = 0; i < PIXELS; i++) {
        const float *from = ky ? s + i * 2 * L : bias;
        c[i][0] = LOAD(from);
        c[i][1] = LOAD(from + L);
      }
      const float *a = in + ky * row + x * step, *b = weights;
      for (num g = 0; g < full; g++, a += plane)
        for (num kx = 0; kx < kernel; kx++, b += 2 * L * L)
          add_group(c, a + kx * L, step, b);
      for (num kx = 0; rest && kx < kernel; kx++, b += 2 * L * rest)
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
APART void conv_row(const float *in, size_t row, size_t plane, num channels, num kernel,
                    const float *weights, const float *bias, float *sums, num n) {
  conv_line(in, L, row, plane, channels, kernel, weights, bias, sums, n);
}

/* Down a column. */
APART void conv_column(const float *in, size_t row, size_t plane, num channels,
                       num kernel, const float *weights, const float *bias, float *sums,
                       num n) {
  conv_line(in, row, row, plane, channels, kernel, weights, bias, sums, n);
}

enum { PLAIN, ADD, LEAKY };

/* One group of n pixels of sums [pixel][2 L] into a map. */
INLINE void store_group(float *out, const float *sums, num n, num mode) {
  for (num i = 0; i < n; i++) {
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
EXPORT void NAME(conv)(const float *restrict in, float *restrict out, num row,
                       num plane, num y0, num y1, num x0, num x1, num channels,
                       num out_channels, const float *weights, const float *bias,
                       num mode, float *restrict sums) {
  const num groups = parts(out_channels, L), size = 9 * channels * 2 * L;
  for (num y = y0; y < y1; y++)
    for (num x = x0; x < x1; x += LINE) {
      const num n = smaller(x1 - x, LINE);
      const float *corner = in + (y - 1) * row + (x - 1) * L;
      for (num j = 0; j < groups; j++) {
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
EXPORT void NAME(first)(const float *restrict image, float *restrict out, num row,
                        num plane, num height, num width, num y0, num y1, num x0,
                        num x1, num channels, num out_channels, float mean,
                        const float *weights, const float *bias,
                        float *restrict scratch) {
  const num groups = parts(out_channels, L), size = 9 * channels * 2 * L;
  const num patch_row = (LINE + 2 + PIXELS) * L, patch_plane = 3 * patch_row;
  float *sums = scratch + parts(channels, L) * patch_plane;
  for (float *p = scratch; p < sums; p++) *p = 0;
  for (num y = y0; y < y1; y++)
    for (num x = x0; x < x1; x += LINE) {
      const num n = smaller(x1 - x, LINE);
      for (num c = 0; c < channels; c++)
        for (num r = 0; r < 3; r++) {
          const num from_y = y + r - 1;
          const int row_inside = from_y >= 0 && from_y < height;
          const float *line = image + (c * height + (row_inside ? from_y : 0)) * width;
          float *p = scratch + c / L * patch_plane + r * patch_row + c % L;
          for (num i = 0; i < n + 2; i++) {
            const num from_x = x + i - 1;
            const int inside = row_inside && from_x >= 0 && from_x < width;
            p[i * L] = inside ? line[from_x] - mean : 0;
          }
        }
      for (num j = 0; j < groups; j++) {
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
  num height, width, channels, scale;
  float mean;
};

/* PixelShuffle: sums of output channel (c, sy, sx) of the map's pixel (y, x) become
image[c, scale * y + sy, scale * x + sx]. `down`: the pixels are below each other. */
APART void shuffle(const struct picture *to, num panel, const float *sums, num y, num x,
                   num n, int down) {
  const num s = to->scale, wide = s * to->width;
  const num step = down ? s * wide : s;
  const num end = smaller(to->channels * s * s, (panel + 1) * 2 * L);
  for (num k = panel * 2 * L; k < end; k++) {
    const num c = k / (s * s), sy = k / s % s, sx = k % s;
    float *out = to->data + (c * s * to->height + s * y + sy) * wide + s * x + sx;
    const float *from = sums + (k - panel * 2 * L);
    for (num i = 0; i < n; i++) out[i * step] = from[i * 2 * L] + to->mean;
  }
}

/* First, last, or both, of `size`: bits 1 and 2. */
INLINE num edge(num at, num size) { return (at == 0) | (num)(at == size - 1) << 1; }

/* Everything behind the last activation: one K x K convolution (K is 3 or 5) and a
PixelShuffle, plus `mean`. `in` is a map of `channels` with margin K / 2.

The network pads with zeros on every grid on its way to the output's, which the one
convolution cannot do for the outermost pixels; they have weights of their own.
weights[edge of y * 4 + edge of x]  for those pixels, [panel][ky][group][kx][lane][2 L];
biases[...]                         [panel][2 L]; null where no pixel has that edge */
EXPORT void NAME(tail)(const float *restrict in, float *restrict image, num row,
                       num plane, num height, num width, num y0, num y1, num x0, num x1,
                       num channels, num image_channels, num scale, num kernel,
                       float mean, const float *const *weights,
                       const float *const *biases, float *restrict sums) {
  const struct picture to = {image, height, width, image_channels, scale, mean};
  const num panels = parts(image_channels * scale * scale, 2 * L);
  const num size = kernel * kernel * channels * 2 * L, radius = kernel / 2;
  in -= radius * row + radius * L; /* the corner of each pixel's window */
  const num left = x0 == 0, right = x1 == width && width > 1;
  for (num y = y0; y < y1; y++)
    for (num x = x0 + left; x < x1 - right; x += LINE) {
      const num n = smaller(x1 - right - x, LINE), at = edge(y, height) * 4;
      for (num j = 0; j < panels; j++) {
        conv_row(in + y * row + x * L, row, plane, channels, kernel,
                 weights[at] + j * size, biases[at] + j * 2 * L, sums, n);
        shuffle(&to, j, sums, y, x, n, 0);
      }
    }
  for (num side = 0; side < 2; side++) {
    if (!(side ? right : left)) continue;
    const num x = side ? width - 1 : 0;
    for (num y = y0, n; y < y1; y += n) {
      const num at = edge(y, height) * 4 + edge(x, width);
      for (n = 1; n < LINE && y + n < y1 && edge(y + n, height) == edge(y, height);) n++;
      for (num j = 0; j < panels; j++) {
        conv_column(in + y * row + x * L, row, plane, channels, kernel,
                    weights[at] + j * size, biases[at] + j * 2 * L, sums, n);
        shuffle(&to, j, sums, y, x, n, 1);
      }
    }
  }
}

/* What the processor can do at most: `rounds` times PIXELS * 2 * L * 8 multiply-adds that
read and write registers only. For benchmarks. */
EXPORT void NAME(peak)(num rounds, float *out) {
  vec c[PIXELS][2], a = LOAD(out), b = LOAD(out + L);
  UNROLL for (int i = 0; i < PIXELS; i++) c[i][0] = c[i][1] = a + (float)i;
  for (num r = 0; r < rounds; r++) {
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
EXPORT num NAME(constant)(num which) {
  const num all[] = {L, PIXELS, TILE_ROWS, TILE, LINE};
  return all[which];
}

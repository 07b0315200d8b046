/* Which variant of kernels.c this processor and operating system can execute, and the
   sources of this library. */

#include <stdint.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* build.py computes this number, and library.py compares it. */
EXPORT int64_t aether_sources(void) { return SOURCES; }

#if defined(__x86_64__) || defined(_M_X64)
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
  __asm__ volatile("cpuid"
                   : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
                   : "a"(leaf), "c"(sub));
}

/* Registers that the operating system saves, a bit each; XGETBV(0). */
static uint32_t saved_registers(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static int all(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

/* Level of the x86-64 psABI that processor and system have: 4, 3, or 1 for less. */
EXPORT int aether_level(void) {
  uint32_t most[4], one[4], seven[4] = {0}, far_most[4], far_one[4] = {0};
  cpuid(0, 0, most);
  cpuid(1, 0, one);
  if (most[0] >= 7) cpuid(7, 0, seven);
  cpuid(0x80000000u, 0, far_most);
  if (far_most[0] >= 0x80000001u) cpuid(0x80000001u, 0, far_one);
  /* FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, XSAVE in use, AVX, F16C */
  const uint32_t wanted1 = 1u << 12 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 22 |
                           1u << 23 | 1u << 27 | 1u << 28 | 1u << 29;
  /* BMI1, AVX2, BMI2; then LZCNT */
  const uint32_t wanted7 = 1u << 3 | 1u << 5 | 1u << 8;
  if (!all(one[2], wanted1) || !all(seven[1], wanted7)) return 1;
  if (!all(far_one[2], 1u << 5) || !all(saved_registers(), 6)) return 1;
  /* AVX512 F, DQ, CD, BW, VL; the system saves masks and both halves of ZMM */
  const uint32_t wanted4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  return all(seven[1], wanted4) && all(saved_registers(), 0xe6) ? 4 : 3;
}
#else
/* 8 on arm64, where every processor has NEON; 0 on any other. */
EXPORT int aether_level(void) {
#if defined(__aarch64__) || defined(_M_ARM64)
  return 8;
#else
  return 0;
#endif
}
#endif

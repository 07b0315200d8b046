/* Replays recorded calls of the kernels on another kind of machine.

Standard input is what `replay.py` writes; standard output gets one of the buffers when
all calls are done. On arm64 Linux the kernels are compiled into the program; on Windows
they are those of kernels.dll in the current folder. Uses no C library, so that zig need
not compile one. Input, in int64:

    bytes of all buffers, number of calls, where the result begins, its bytes
    the buffers, which begin at multiples of 64
    calls: function, number of arguments, then each argument as kind and value
        kind 0 a number, 1 a float's bits, 2 a place in the buffers, 3 the place of 16
        places, of which -1 is null */

#include <stddef.h>
#include <stdint.h>

typedef void Function(void);
enum { BLOCK, NORM, CONV, FIRST, TAIL, FUNCTIONS };

#ifdef _WIN32
#define API __declspec(dllimport)
API void *GetStdHandle(uint32_t);
API int ReadFile(void *, void *, uint32_t, uint32_t *, void *);
API int WriteFile(void *, const void *, uint32_t, uint32_t *, void *);
API void *VirtualAlloc(void *, size_t, uint32_t, uint32_t);
API void ExitProcess(uint32_t);
API void *LoadLibraryA(const char *);
API Function *GetProcAddress(void *, const char *);
static int64_t get(void *to, int64_t size) {
  uint32_t done = 0;
  ReadFile(GetStdHandle((uint32_t)-10), to, (uint32_t)size, &done, NULL);
  return done;
}
static int64_t put(const void *from, int64_t size) {
  uint32_t done = 0;
  WriteFile(GetStdHandle((uint32_t)-11), from, (uint32_t)size, &done, NULL);
  return done;
}
static void leave(int code) { ExitProcess((uint32_t)code); }
static char *memory(int64_t size) { return VirtualAlloc(NULL, (size_t)size, 0x3000, 4); }
static int find(Function *found[FUNCTIONS]) {
  const char *names[] = {"aether_block_v3", "aether_norm_v3", "aether_conv_v3",
                         "aether_first_v3", "aether_tail_v3"};
  void *library = LoadLibraryA("kernels.dll");
  for (int i = 0; i < FUNCTIONS; i++)
    if (!library || !(found[i] = GetProcAddress(library, names[i]))) return 0;
  Function *level = GetProcAddress(library, "aether_level");
  return level && ((int (*)(void))level)() >= 3;
}
#else
#include "kernels.c"
static long system_call(long number, long a, long b, long c, long d) {
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c, x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = -1, x5 __asm__("x5") = 0;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5), "r"(x8)
                   : "memory");
  return x0;
}
static int64_t get(void *to, int64_t n) { return system_call(63, 0, (long)to, n, 0); }
static int64_t put(const void *p, int64_t n) { return system_call(64, 1, (long)p, n, 0); }
static void leave(int code) { system_call(93, code, 0, 0, 0); }
static char *memory(int64_t n) { return (char *)system_call(222, 0, n, 3, 0x22); }
static int find(Function *found[FUNCTIONS]) {
  found[BLOCK] = (Function *)NAME(block);
  found[NORM] = (Function *)NAME(norm);
  found[CONV] = (Function *)NAME(conv);
  found[FIRST] = (Function *)NAME(first);
  found[TAIL] = (Function *)NAME(tail);
  return 1;
}
#endif

static char *buffers;

static int all(int64_t (*move)(char *, int64_t), char *at, int64_t size) {
  for (int64_t done; size; at += done, size -= done)
    if ((done = move(at, size < 1 << 20 ? size : 1 << 20)) <= 0) return 0;
  return 1;
}
static int64_t take(char *to, int64_t size) { return get(to, size); }
static int64_t give(char *from, int64_t size) { return put(from, size); }
static int fill(void *to, int64_t size) { return all(take, to, size); }

typedef struct {
  int64_t kind, value;
} Argument;

static void *pointer(const Argument *a) {
  if (a->kind == 3) { /* places become pointers, once for each call */
    int64_t *table = (int64_t *)(buffers + a->value);
    for (int i = 0; i < 16; i++)
      table[i] = table[i] < 0 ? 0 : (int64_t)(intptr_t)(buffers + table[i]);
    return table;
  }
  return buffers + a->value;
}
static float real(const Argument *a) {
  union {
    uint32_t bits;
    float value;
  } both = {(uint32_t)a->value};
  return both.value;
}

#define P(i) pointer(a + (i))
#define N(i) a[i].value
#define F(i) real(a + (i))
typedef int64_t I;
typedef void *V;

static void call(Function *f, int64_t which, const Argument *a) {
  if (which == BLOCK)
    ((void (*)(V, V, I, I, I, I, I, I, I, I, I, V, V, V, V, V, V, float, V))f)(
        P(0), P(1), N(2), N(3), N(4), N(5), N(6), N(7), N(8), N(9), N(10), P(11), P(12),
        P(13), P(14), P(15), P(16), F(17), P(18));
  if (which == NORM)
    ((void (*)(V, I, I, I, I, I, I, I, V, V, float))f)(
        P(0), N(1), N(2), N(3), N(4), N(5), N(6), N(7), P(8), P(9), F(10));
  if (which == CONV)
    ((void (*)(V, V, I, I, I, I, I, I, I, I, V, V, I, V))f)(
        P(0), P(1), N(2), N(3), N(4), N(5), N(6), N(7), N(8), N(9), P(10), P(11), N(12),
        P(13));
  if (which == FIRST)
    ((void (*)(V, V, I, I, I, I, I, I, I, I, I, I, float, V, V, V))f)(
        P(0), P(1), N(2), N(3), N(4), N(5), N(6), N(7), N(8), N(9), N(10), N(11), F(12),
        P(13), P(14), P(15));
  if (which == TAIL)
    ((void (*)(V, V, I, I, I, I, I, I, I, I, I, I, I, I, float, V, V, V))f)(
        P(0), P(1), N(2), N(3), N(4), N(5), N(6), N(7), N(8), N(9), N(10), N(11), N(12),
        N(13), F(14), P(15), P(16), P(17));
}

static int replay(void) {
  int64_t head[4];
  Function *functions[FUNCTIONS];
  if (!find(functions)) return 2;
  if (!fill(head, sizeof head)) return 3;
  buffers = memory(head[0]);
  if (!fill(buffers, head[0])) return 4;
  for (int64_t i = 0; i < head[1]; i++) {
    int64_t next[2];
    Argument arguments[32];
    if (!fill(next, sizeof next) || next[1] > 32) return 5;
    if (!fill(arguments, next[1] * (int64_t)sizeof(Argument))) return 6;
    call(functions[next[0]], next[0], arguments);
  }
  return all(give, buffers + head[2], head[3]) ? 0 : 7;
}

void start(void) { leave(replay()); }

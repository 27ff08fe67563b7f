/* A noisy neighbour: neighbour SECONDS. Walks through more memory than a cache holds, until the time is over. */
#include "common.h"

enum { SIZE = 32 << 20 };

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: neighbour SECONDS\n"), 2;
  uint64_t until = now_us() + (uint64_t)(atof(argv[1]) * 1e6);
  volatile unsigned char *memory = calloc(1, SIZE);
  for (uint64_t at = 0; now_us() < until;)
    for (int i = 0; i < 10000; i++) memory[at = (at + 64 * 1021) % SIZE]++;
  return 0;
}

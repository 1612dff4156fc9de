#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <initializer_list>

namespace prottrans_x86 {

bool IsUsable(Unit unit) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  if (!(c >> 12 & 1) || !(c >> 27 & 1)) return false;  // fma, xgetbv
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kAvx = 0x6, kAvx512 = 0xe0, kAmx = 0x60000;
  const unsigned registers = kAvx | kAvx512 | (unit == Unit::kTiles ? kAmx : 0);
  if ((low & registers) != registers) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  // avx2, avx512f, -dq, -bw, -vl
  for (int bit : {5, 16, 17, 30, 31}) {
    if (!(b >> bit & 1)) return false;
  }
  if (!(c >> 11 & 1)) return false;  // avx512-vnni
  const unsigned tiles = d;
  // avx512-bf16
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  if (unit == Unit::kVectors) return true;
  for (int bit : {22, 24, 25}) {  // amx-bf16, -tile, -int8
    if (!(tiles >> bit & 1)) return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace prottrans_x86

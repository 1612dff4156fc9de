// What this machine's CPU can do.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_CPU_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_CPU_H_

#include "blocks.h"

namespace prottrans_x86 {

// Whether this CPU has the unit's instructions and Linux grants this process its
// registers.
bool IsUsable(Unit unit);

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_CPU_H_

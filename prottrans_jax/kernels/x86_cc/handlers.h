// Handlers of XLA's foreign function interface: they check the buffers of a call.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_HANDLERS_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_HANDLERS_H_

#include "blocks.h"
#include "xla/ffi/api/c_api.h"

namespace prottrans_x86 {

XLA_FFI_Handler* ProductHandler(Unit unit);
// Of bfloat16.
XLA_FFI_Handler* AttentionHandler(Unit unit);
// Of float32.
XLA_FFI_Handler* WideAttentionHandler(Unit unit);
XLA_FFI_Handler* NormHandler();

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_HANDLERS_H_

// The Python module `_x86`: handlers that `x86.py` registers with XLA.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "blocks.h"
#include "cpu.h"
#include "handlers.h"

namespace prottrans_x86 {
namespace {

PyObject* HandlersOf(Unit unit) {
  const auto capsule = [](XLA_FFI_Handler* handler) {
    return PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr);
  };
  return Py_BuildValue("{s:N,s:N,s:N,s:N}", "product", capsule(ProductHandler(unit)),
                       "norm", capsule(NormHandler()), "attention_bfloat16",
                       capsule(AttentionHandler(unit)), "attention_float32",
                       capsule(WideAttentionHandler(unit)));
}

PyObject* Handlers(PyObject*, PyObject*) {
  PyObject* units = PyDict_New();
  const auto add = [units](const char* name, Unit unit) {
    if (!IsUsable(unit)) return;
    PyObject* handlers = HandlersOf(unit);
    if (units != nullptr && handlers != nullptr) {
      PyDict_SetItemString(units, name, handlers);
    }
    Py_XDECREF(handlers);
  };
  add("amx", Unit::kTiles);
  add("avx512", Unit::kVectors);
  return units;
}

PyMethodDef kMethods[] = {
    {"handlers", Handlers, METH_NOARGS,
     "Handlers by unit and name, the faster unit first."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_x86", nullptr, -1, kMethods,
                       nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace prottrans_x86

PyMODINIT_FUNC PyInit__x86() {
  PyObject* module = PyModule_Create(&prottrans_x86::kModule);
  if (module != nullptr) {
    PyModule_AddStringConstant(module, "SOURCE_SHA256", SOURCE_SHA256);
  }
  return module;
}

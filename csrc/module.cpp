// An empty Python module: importing it runs the static registrations of every kernel linked into it. The build names it AVFMAE_MODULE.
#include <Python.h>

#define AVFMAE_STRING_(x) #x
#define AVFMAE_STRING(x) AVFMAE_STRING_(x)
#define AVFMAE_INIT_(x) PyInit_##x
#define AVFMAE_INIT(x) AVFMAE_INIT_(x)

extern "C" __attribute__((visibility("default"))) PyObject* AVFMAE_INIT(AVFMAE_MODULE)() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, AVFMAE_STRING(AVFMAE_MODULE), nullptr, 0, nullptr};
  return PyModule_Create(&definition);
}

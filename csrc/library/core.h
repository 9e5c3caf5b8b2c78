// What libran_kernels.so offers beside the operators' kernels: to libran_schemas.so, to
// ran_kernels._C and, through ctypes, to ran_kernels/extension.py.
#pragma once

#define RAN_PUBLIC __attribute__((visibility("default")))

extern "C" {

// How the library was built, a JSON text; ran_kernels.extension.build_info says what is in it.
RAN_PUBLIC const char* ran_build_info();

// A process has the operators' schemas once: those of ran_kernels/library.py, which come with tags
// and more overloads, or those of libran_schemas.so, which make way when Python defines its own.

// Asked by libran_schemas.so before it defines: whether to. forget() is called when it has to make
// way.
RAN_PUBLIC bool ran_schemas_wanted(void (*forget)());

// Called by Python before it defines.
RAN_PUBLIC void ran_python_defines();
}

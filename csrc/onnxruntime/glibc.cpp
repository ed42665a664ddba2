// Makes a library that contains libstdc++ smaller, and loadable on systems with an old glibc. The operators for ONNX
// Runtime and the kernels in a wheel use it.
#include <cstdlib>

// A flag of glibc 2.32: libstdc++ reads it to avoid atomic instructions in processes without threads. This definition
// says that there may be threads, and the library no longer needs glibc's.
extern "C" {
char __libc_single_threaded = 0;
}

// std::terminate calls this handler for an uncaught exception; the operators catch all. libstdc++'s own handler prints
// the name of the exception, and needs a demangler of 70 kB for it.
namespace __gnu_cxx {
void __verbose_terminate_handler() { std::abort(); }
}  // namespace __gnu_cxx

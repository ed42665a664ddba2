// Keeps a library that has libstdc++ inside small and loadable on systems with an old glibc: the operators for ONNX
// Runtime, and the kernels of a wheel.
#include <cstdlib>

// The flag of glibc 2.32 by which libstdc++ spares atomic instructions. With one of our own, which says that there may
// be threads, an older glibc will do.
extern "C" {
char __libc_single_threaded = 0;
}

// std::terminate calls this handler for an uncaught exception, which the operators do not let happen. libstdc++'s own
// handler prints the exception's name, for which it links a demangler of 70 kB.
namespace __gnu_cxx {
void __verbose_terminate_handler() { std::abort(); }
}  // namespace __gnu_cxx

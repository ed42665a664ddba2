// Keeps this library small and loadable on systems with an old glibc.
#include <cstdlib>

// The flag of glibc 2.32 by which libstdc++ spares atomic instructions. With one of our own, which says that there may
// be threads, an older glibc will do.
extern "C" {
char __libc_single_threaded = 0;
}

// Called for an exception that nobody catches, of which there are none. In place of libstdc++'s, which prints its name
// and brings a demangler of 70 kB for that.
namespace __gnu_cxx {
void __verbose_terminate_handler() { std::abort(); }
}  // namespace __gnu_cxx

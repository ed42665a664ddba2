// Runs functions of the C interface for another process, see remote_kernels.py. It reads commands from stdin; each is a
// letter followed by 64-bit numbers.
//
//   a SIZE                  allocates memory, aligned to 64 bytes; writes its address
//   f ADDRESS               frees it
//   w ADDRESS SIZE BYTES    writes to it
//   r ADDRESS SIZE          reads from it; writes the bytes
//   c FUNCTION ARGUMENTS... calls the function of that number with 12 arguments; writes the return value
//   t ADDRESS               writes the length of the text at this address, then the text
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "mmgroupnet.h"

namespace {

constexpr int kArguments = 12;

template <typename Function>
void* address_of(Function* function) {
  return reinterpret_cast<void*>(function);
}

// In the same order as in remote_kernels.py.
void* const functions[] = {
    address_of(mmg_abi_version),      address_of(mmg_failure),         address_of(mmg_available_kernels),
    address_of(mmg_selected_kernels), address_of(mmg_select_kernels),  address_of(mmg_arranged_bytes),
    address_of(mmg_arrange_weights),  address_of(mmg_sign_pack),       address_of(mmg_convolve),
    address_of(mmg_run_block),        address_of(mmg_connect),         address_of(mmg_pack_weights),
    address_of(mmg_relu_sums),        address_of(mmg_relu_affine),     address_of(mmg_gradient_sums),
    address_of(mmg_affine_gradient),  address_of(mmg_branch_signs),    address_of(mmg_sign_gradient),
    address_of(mmg_connect_gradient), address_of(mmg_max_pool),        address_of(mmg_padding_sums),
    address_of(mmg_norm_statistics),  address_of(mmg_norm_gradients),
};

void read_exactly(void* to, size_t size) {
  if (size != 0 && std::fread(to, size, 1, stdin) != 1) std::exit(1);
}

void write_exactly(const void* from, size_t size) {
  if (size != 0 && std::fwrite(from, size, 1, stdout) != 1) std::exit(1);
}

uint64_t read_number() {
  uint64_t number;
  read_exactly(&number, sizeof number);
  return number;
}

void write_number(uint64_t number) { write_exactly(&number, sizeof number); }

char* read_address() { return reinterpret_cast<char*>(read_number()); }

// On 64-bit ARM every integer or pointer argument takes one register or 8 bytes of the stack, so all functions can be
// called as if they took 64-bit numbers.
uint64_t call() {
  const uint64_t function = read_number();
  uint64_t a[kArguments];
  read_exactly(a, sizeof a);
  using U = uint64_t;
  const auto f = reinterpret_cast<U (*)(U, U, U, U, U, U, U, U, U, U, U, U)>(functions[function]);
  return f(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
}

}  // namespace

int main() {
  for (int command; (command = std::getchar()) != EOF;) {
    switch (command) {
      case 'a': {
        const uint64_t size = read_number();
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, size) != 0) return 1;
        write_number(reinterpret_cast<uint64_t>(memory));
        break;
      }
      case 'f': std::free(read_address()); break;
      case 'w': {
        char* to = read_address();
        read_exactly(to, read_number());
        break;
      }
      case 'r': {
        const char* from = read_address();
        write_exactly(from, read_number());
        break;
      }
      case 'c': write_number(call()); break;
      case 't': {
        const char* text = read_address();
        write_number(std::strlen(text));
        write_exactly(text, std::strlen(text));
        break;
      }
      default: return 1;
    }
    std::fflush(stdout);
  }
}

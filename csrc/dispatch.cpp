// Chooses the kernels and implements the C interface, except for the functions of training.
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "block.h"
#include "convolution.h"
#include "kernels.h"
#include "mmgroupnet.h"
#include "status.h"

namespace mmgroupnet {
namespace {

constexpr int kSets = 5;

// From the slowest to the fastest.
const Kernels* available(int i) {
  switch (i) {
    case 0: return portable_kernels();
    case 1: return neon_kernels();
    case 2: return avx2_kernels();
    case 3: return avx512bw_kernels();
    default: return avx512_kernels();
  }
}

std::atomic<const Kernels*> selected{nullptr};

const Kernels* select(const char* name) {
  const Kernels* found = nullptr;
  for (int i = 0; i < kSets; ++i) {
    const Kernels* kernels = available(i);
    if (kernels != nullptr && (*name == '\0' || std::strcmp(name, kernels->name) == 0)) found = kernels;
  }
  if (found != nullptr) selected.store(found);
  return found;
}

}  // namespace

const Kernels& selected_kernels() {
  const Kernels* found = selected.load();
  return found != nullptr ? *found : *select("");
}

}  // namespace mmgroupnet

using mmgroupnet::guard;
using mmgroupnet::selected_kernels;

int32_t mmg_abi_version(void) { return MMG_ABI_VERSION; }

const char* mmg_available_kernels(void) {
  static const auto names = [] {
    std::array<char, 64> names = {};
    for (int i = 0; i < mmgroupnet::kSets; ++i) {
      const mmgroupnet::Kernels* found = mmgroupnet::available(i);
      if (found == nullptr) continue;
      if (names[0] != '\0') std::strcat(names.data(), " ");
      std::strcat(names.data(), found->name);
    }
    return names;
  }();
  return names.data();
}

int32_t mmg_select_kernels(const char* name) {
  return guard([&] {
    if (mmgroupnet::select(name) == nullptr) throw std::invalid_argument("kernels of that name are not available");
  });
}

const char* mmg_selected_kernels(void) { return selected_kernels().name; }

int32_t mmg_arranged_bytes(const mmg_unit* unit, size_t* bytes) {
  return guard([&] { *bytes = mmgroupnet::arranged_bytes(selected_kernels(), *unit); });
}

int32_t mmg_arrange_weights(const mmg_unit* unit, const uint8_t* bits, uint8_t* arranged) {
  return guard([&] { mmgroupnet::arrange_weights(selected_kernels(), *unit, bits, arranged); });
}

int32_t mmg_sign_pack(const float* x, int32_t nchw, int32_t batch, int64_t pixels, int32_t branches, int32_t channels,
                      uint64_t* signs, int32_t threads) {
  return guard([&] {
    mmgroupnet::sign_pack(selected_kernels(), x, nchw != 0, batch, pixels, branches, channels, signs, threads);
  });
}

int32_t mmg_convolve(const mmg_unit* unit, int32_t batch, int32_t height, int32_t width, const uint64_t* signs,
                     int32_t in_branches, int32_t is_short, void* out, int32_t threads) {
  return guard([&] {
    mmg_unit bare = *unit;
    bare.scale = nullptr;
    bare.merges = 0;
    mmgroupnet::Destination destination;
    if (is_short != 0) destination.shorts = static_cast<int16_t*>(out);
    else destination.integers = static_cast<int32_t*>(out);
    const mmgroupnet::Size size = {height, width};
    mmgroupnet::convolve(selected_kernels(), bare, {0, batch, 0, mmgroupnet::output_size(bare, size).height}, size,
                         {signs, in_branches, unit->in_channels}, destination, threads);
  });
}

int32_t mmg_run_block(const mmg_block* block, const float* x, float* out, int32_t threads) {
  return guard([&] { mmgroupnet::run_block(selected_kernels(), *block, x, out, threads); });
}

int32_t mmg_connect(const float* x, int64_t pixels, int32_t branches, int32_t channels, const float* scales,
                    const float* gate, float* out, int32_t threads) {
  return guard(
      [&] { mmgroupnet::connect(selected_kernels(), x, pixels, branches, channels, scales, gate, out, threads); });
}

int32_t mmg_max_pool(const float* x, int32_t batch, int32_t height, int32_t width, int32_t channels,
                     const mmg_window* window, const float* scale, const float* shift, float* out, int32_t threads) {
  return guard([&] {
    mmgroupnet::max_pool(selected_kernels(), x, batch, height, width, channels, *window, scale, shift, out, threads);
  });
}

int32_t mmg_ceiling(double seconds, double* macs_per_second) {
  return guard([&] {
    using Clock = std::chrono::steady_clock;
    const auto began = Clock::now();
    double operations = 0, elapsed = 0;
    do {
      operations += selected_kernels().ceiling(100000);
      elapsed = std::chrono::duration<double>(Clock::now() - began).count();
    } while (elapsed < seconds);
    *macs_per_second = operations / elapsed;
  });
}

// A plugin of qemu that counts the instructions of a program by their A64 encoding. It counts four classes: all
// instructions, SIMD and floating-point data processing, 128-bit float multiply-adds (a part of the second class), and
// loads and stores. When the program ends, it writes the four numbers to the file given by its argument `out=FILE`.
//
// Distributions ship qemu without the header for plugins, so this file declares the parts of version 1 that it uses.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t id, struct qemu_plugin_tb* block));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation, void* counter,
                                              uint64_t added);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t id, void* data), void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* block, size_t i);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn* instruction);

EXPORTED int qemu_plugin_version = 1;

enum { ALL, SIMD, MULTIPLY_ADD, MEMORY, CLASSES };
static uint64_t counts[CLASSES];
static const char* out_path;

// Qemu translates a program block by block. This function counts the instructions of a block once, and each run of the
// block adds these counts.
static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  uint64_t found[CLASSES] = {0};
  const size_t size = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < size; ++i) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    const uint32_t group = word >> 25 & 0xf;  // "op0" of the top level of A64's encoding
    found[ALL] += 1;
    found[SIMD] += (group & 7) == 7;    // x111
    // fmla (vector) and fmla (by element)
    found[MULTIPLY_ADD] += (word & 0xffa0fc00) == 0x4e20cc00 || (word & 0xff80f400) == 0x4f801000;
    found[MEMORY] += (group & 5) == 4;  // x1x0
  }
  for (int i = 0; i < CLASSES; ++i) {
    if (found[i] != 0) {
      qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &counts[i], found[i]);
    }
  }
}

static void on_exit_of_program(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* out = fopen(out_path, "w");
  if (out == NULL) return;
  for (int i = 0; i < CLASSES; ++i) fprintf(out, "%llu\n", (unsigned long long)counts[i]);
  fclose(out);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc, char** argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) return 1;
  static char path[4096];
  snprintf(path, sizeof path, "%s", argv[0] + 4);
  out_path = path;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_program, NULL);
  return 0;
}

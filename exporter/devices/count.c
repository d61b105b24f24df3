/* Counts the instructions that a guest runs under QEMU 5.2 to 8.1 (plugin API version 1).

   Every translation block adds its size to counters when it begins. Where the guest makes the
   system call 20302, which no kernel has, a line "MARK ALL DOT_PRODUCT MATRIX_MULTIPLY
   SATURATING_PAIR" with what was counted until then goes to the file that `out=` names; see Watch
   in runner.py. One thread only: the counters are plain.

   The API is declared here, because Debian packages no header for it. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t id_t_;
struct block;
struct instruction;
struct info {
    const char *target;
    struct { int min, cur; } version;
    bool system;
};
typedef void translated_t(id_t_, struct block *);
typedef void called_t(id_t_, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                      uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, translated_t *);
void qemu_plugin_register_vcpu_syscall_cb(id_t_, called_t *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct block *);
struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
const void *qemu_plugin_insn_data(const struct instruction *);
size_t qemu_plugin_insn_size(const struct instruction *);

#define EXPORT __attribute__((visibility("default")))
enum { ADD_U64 = 0, MARK = 20302 };
enum { ALL, DOT_PRODUCT, MATRIX_MULTIPLY, SATURATING_PAIR, CLASSES };

EXPORT int qemu_plugin_version = 1;
static uint64_t counts[CLASSES];
static bool arm;
static FILE *out;

/* Arm Architecture Reference Manual, C4.1.97: Advanced SIMD three same (extra), by element */
static int arm_class(const uint8_t *bytes)
{
    uint32_t code;
    memcpy(&code, bytes, 4);
    uint32_t same = code & 0xBFE0FC00, element = code & 0xBFC0F400;
    if (same == 0x0E809400 || same == 0x2E809400 || same == 0x0E809C00) /* SDOT UDOT USDOT */
        return DOT_PRODUCT;
    if (element == 0x0F80E000 || element == 0x2F80E000) /* SDOT UDOT by element */
        return DOT_PRODUCT;
    if (element == 0x0F80F000 || element == 0x0F00F000) /* USDOT SUDOT by element */
        return DOT_PRODUCT;
    if (same == 0x2E40FC00 || element == 0x0F40F000) /* BFDOT */
        return DOT_PRODUCT;
    if (same == 0x0E80A400 || same == 0x2E80A400 || same == 0x0E80AC00) /* SMMLA UMMLA USMMLA */
        return MATRIX_MULTIPLY;
    return same == 0x2E40EC00 ? MATRIX_MULTIPLY : ALL; /* BFMMLA */
}

/* Intel SDM volume 2, 2.3.5: VEX with three bytes, map 0F38, prefix 66 */
static int x86_class(const uint8_t *bytes, size_t size)
{
    if (size < 5 || bytes[0] != 0xC4 || (bytes[1] & 0x1F) != 2 || (bytes[2] & 3) != 1)
        return ALL;
    if (bytes[3] == 0x04) /* VPMADDUBSW adds two products in int16, which saturates */
        return SATURATING_PAIR;
    /* VPDPBUSD, VPDPBUSDS of VNNI add four in int32 */
    return bytes[3] == 0x50 || bytes[3] == 0x51 ? DOT_PRODUCT : ALL;
}

static void translated(id_t_ id, struct block *block)
{
    uint64_t found[CLASSES] = {qemu_plugin_tb_n_insns(block)};
    for (size_t i = 0; i < found[ALL]; i++) {
        const struct instruction *one = qemu_plugin_tb_get_insn(block, i);
        const uint8_t *bytes = qemu_plugin_insn_data(one);
        int class = arm ? arm_class(bytes) : x86_class(bytes, qemu_plugin_insn_size(one));
        if (class != ALL)
            found[class]++;
    }
    for (int class = 0; class < CLASSES; class++)
        if (found[class])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counts[class], found[class]);
}

static void called(id_t_ id, unsigned cpu, int64_t number, uint64_t mark, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number != MARK)
        return;
    fprintf(out, "%llu", (unsigned long long)mark);
    for (int class = 0; class < CLASSES; class++)
        fprintf(out, " %llu", (unsigned long long)counts[class]);
    fputc('\n', out);
    fflush(out);
}

EXPORT int qemu_plugin_install(id_t_ id, const struct info *info, int argc, char **argv)
{
    arm = !strcmp(info->target, "aarch64");
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w")))
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}

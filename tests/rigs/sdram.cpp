// The SDRAM alone, for simulators that are not ours: tests/rigs/sdram.py calls it.

#include "sdram.h"

using tokenfabric::Sdram;
using tokenfabric::SdramParameters;

#define TF_API extern "C" __attribute__((visibility("default")))

TF_API void* tf_sdram_open(const SdramParameters* parameters) { return new Sdram(*parameters); }
TF_API void tf_sdram_close(void* sdram) { delete static_cast<Sdram*>(sdram); }
TF_API uint32_t tf_sdram_clock(void* sdram, uint32_t command, uint32_t bank, uint32_t address,
                               uint32_t mask, uint32_t dq, uint32_t drive) {
  return static_cast<Sdram*>(sdram)->clock({command, bank, address, mask, dq, drive});
}
TF_API const char* tf_sdram_error(void* sdram) { return static_cast<Sdram*>(sdram)->error(); }

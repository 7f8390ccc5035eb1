// PTX instructions: one inline function each, named after the instruction, and nothing else. The
// layouts and operands are those of the PTX ISA; tests emulate these functions without a GPU.
#pragma once

#include <cstdint>

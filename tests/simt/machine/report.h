// Words for a fault: which kernel, which thread, which line.
#pragma once

#include <string>

#include "machine/block.h"

namespace simt {

// Return addresses as 32-bit numbers, relative to this module, and back.
uint32_t site_number(const void* site);
const void* site_at(uint32_t number);
bool in_program(uintptr_t address);  // within this module: its constants

std::string hex(uint32_t mask);
std::string index_text(const Extent& e);             // (1,2,3)
std::string place_text(const char* file, int line);  // norm.cu:12
std::string site_text(const void* site);             // [norm.cu:12 < norm.cu:80], or nothing
std::string kernel_name(const void* kernel);         // without namespaces and arguments
std::string beside_text(const Region& region, uintptr_t address);
Extent unfold_block(const Block& block, uint32_t number);

std::string describe_fault(const Block& block, const std::string& text, const void* site);
std::string describe_waiting(const Block& block);

}  // namespace simt

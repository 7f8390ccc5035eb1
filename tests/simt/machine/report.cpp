#include "machine/report.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>
#include <vector>

namespace simt {
namespace {

// This module in memory, and its file.
struct Module {
  uintptr_t base = 0, begin = 0, end = 0;
  std::string path;
};

const Module& module() {
  static const Module found = [] {
    Module m;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          uintptr_t begin = ~uintptr_t{0}, end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& p = info->dlpi_phdr[i];
            if (p.p_type != PT_LOAD) continue;
            begin = std::min<uintptr_t>(begin, info->dlpi_addr + p.p_vaddr);
            end = std::max<uintptr_t>(end, info->dlpi_addr + p.p_vaddr + p.p_memsz);
          }
          const auto here = reinterpret_cast<uintptr_t>(&kernel_name);
          if (here < begin || here >= end) return 0;
          const bool program = info->dlpi_name == nullptr || *info->dlpi_name == 0;
          *static_cast<Module*>(to) = {info->dlpi_addr, begin, end,
                                       program ? "/proc/self/exe" : info->dlpi_name};
          return 1;
        },
        &m);
    return m;
  }();
  return found;
}

// Names of all functions of the module's file, local ones too, by address.
std::map<uintptr_t, std::string> read_symbols() {
  std::map<uintptr_t, std::string> names;
  const int file = open(module().path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (file < 0) return names;
  void* p = fstat(file, &info) == 0
                ? mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0)
                : MAP_FAILED;
  close(file);
  if (p == MAP_FAILED) return names;
  const char* bytes = static_cast<const char*>(p);
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes + sections[i].sh_offset);
    const char* strings = bytes + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); ++s)
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC && symbols[s].st_value != 0)
        names[module().base + symbols[s].st_value] = strings + symbols[s].st_name;
  }
  munmap(p, static_cast<size_t>(info.st_size));
  return names;
}

// "void ns::(anonymous namespace)::f<1, ns::T>(ns::Args)" as "f<1, T>".
std::string shorten(std::string name) {
  const std::string_view nameless = "(anonymous namespace)::";
  for (size_t at; (at = name.find(nameless)) != std::string::npos;) name.erase(at, nameless.size());
  int depth = 0;
  size_t end = 0;
  for (; end < name.size() && (name[end] != '(' || depth > 0); ++end)
    depth += name[end] == '<' ? 1 : name[end] == '>' ? -1 : 0;
  name.resize(end);
  std::string out, word;
  for (size_t i = 0; i <= name.size(); ++i) {
    if (name.compare(i, 2, "::") == 0) {
      word.clear();
      ++i;
    } else if (i == name.size() || std::strchr("<>, *&", name[i]) != nullptr) {
      out += word;
      word.clear();
      if (i < name.size()) out += name[i];
    } else {
      word += name[i];
    }
  }
  return out.starts_with("void ") ? out.substr(5) : out;
}

}  // namespace

uint32_t site_number(const void* site) {
  static const uintptr_t base = module().base;
  return site == nullptr ? 0 : static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site) - base);
}
const void* site_at(uint32_t number) {
  return number == 0 ? nullptr : reinterpret_cast<const void*>(module().base + number);
}

bool in_program(uintptr_t address) { return address >= module().begin && address < module().end; }

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "%08x", mask);
  return text;
}

std::string index_text(const Extent& e) {
  return "(" + std::to_string(e.x) + "," + std::to_string(e.y) + "," + std::to_string(e.z) + ")";
}

std::string place_text(const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line);
}

// Asked of addr2line, at most once in a report and so at most a few times in a test.
std::string site_text(const void* site) {
  if (site == nullptr) return "";
  char offset[32];
  std::snprintf(offset, sizeof offset, "0x%lx",
                reinterpret_cast<unsigned long>(site) - module().base - 1);
  const std::string fallback = std::string("[") + offset + "]";
  if (module().path.find('\'') != std::string::npos) return fallback;
  FILE* pipe =
      popen(("addr2line -i -e '" + module().path + "' " + offset + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return fallback;
  std::string places;
  char line[1024];
  for (int shown = 0; std::fgets(line, sizeof line, pipe) != nullptr;) {
    const std::string place(line, std::strcspn(line, " \n"));
    const size_t colon = place.rfind(':');
    if (colon == std::string::npos || place.starts_with("?") || shown++ == 4) continue;
    places += (places.empty() ? "" : " < ") +
              place_text(place.substr(0, colon).c_str(), std::atoi(place.c_str() + colon + 1));
  }
  pclose(pipe);
  return places.empty() ? fallback : "[" + places + "]";
}

std::string kernel_name(const void* kernel) {
  static const std::map<uintptr_t, std::string> symbols = read_symbols();
  const auto found = symbols.find(reinterpret_cast<uintptr_t>(kernel));
  if (found == symbols.end()) return "(nameless kernel)";
  int status = 0;
  char* plain = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, &status);
  const std::string name = shorten(status == 0 ? plain : found->second);
  std::free(plain);
  return name;
}

std::string beside_text(const Region& region, uintptr_t address) {
  if (address < region.begin())
    return std::to_string(region.begin() - address) + " bytes before " + region.name();
  const size_t offset = address - region.begin();
  const std::string size = region.shared() ? " of " + std::to_string(region.size()) + " bytes" : "";
  return "at byte " + std::to_string(offset) + " of " + region.name() + size +
         (offset < region.size() ? ", across its end" : ", beyond its end");
}

Extent unfold_block(const Block& block, uint32_t number) {
  const Extent& g = block.launch.grid;
  return {number % g.x, number / g.x % g.y, static_cast<unsigned>(number / (uint64_t{g.x} * g.y))};
}

std::string describe_fault(const Block& block, const std::string& text, const void* site) {
  std::string where = site_text(site);
  if (!where.empty()) where = " " + where;
  return "kernel " + kernel_name(block.launch.kernel) + ", block " + index_text(block.index) +
         ", thread " + index_text(block.current->index) + " " + text + where + "; seed " +
         std::to_string(seed());
}

// Threads that wait alike, as ranges: "threads 0-15, 17 wait at X".
std::string describe_waiting(const Block& block) {
  std::map<std::string, std::vector<int>> groups;
  for (const Thread& t : block.threads) {
    switch (t.state) {
      case State::kReady:
        break;
      case State::kExited:
        groups["have returned"].push_back(t.id);
        break;
      case State::kWarp:
        groups[std::string("wait at ") + t.what + " with mask " + hex(t.mask)].push_back(t.id);
        break;
      case State::kBlock:
        groups["wait at the barrier of " + place_text(t.what, t.line)].push_back(t.id);
        break;
      case State::kNamed:
        groups["wait at barrier " + std::to_string(t.line)].push_back(t.id);
        break;
      case State::kCondition:
        groups[std::string("wait for ") + t.what].push_back(t.id);
        break;
    }
  }
  std::string text;
  for (const auto& [what, ids] : groups) {
    text += text.empty() ? "threads " : "; threads ";
    for (size_t i = 0; i < ids.size();) {
      size_t j = i;
      while (j + 1 < ids.size() && ids[j + 1] == ids[j] + 1) ++j;
      text += (i > 0 ? ", " : "") + std::to_string(ids[i]);
      if (j > i) text += "-" + std::to_string(ids[j]);
      i = j + 1;
    }
    text += " " + what;
  }
  return text;
}

}  // namespace simt

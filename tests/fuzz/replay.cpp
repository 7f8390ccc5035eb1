// Drives a libFuzzer target without libFuzzer: replays each file of the corpus named on the command
// line, then seeded mutations of them.
//
//   fuzz_<target> CORPUS_FOLDER [RUNS [SEED]]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

// Bytes that matter to text formats are likelier than others.
uint8_t random_byte(std::mt19937_64& random) {
  static constexpr char kLikely[] = "{}[]\",:\\0123456789-.eEu \n\t_";
  return random() % 4 ? static_cast<uint8_t>(kLikely[random() % (sizeof kLikely - 1)])
                      : static_cast<uint8_t>(random());
}

void mutate(Bytes& bytes, const Bytes& other, std::mt19937_64& random) {
  const auto position = [&](size_t extra) { return random() % (bytes.size() + extra); };
  const auto iterator = [&](size_t i) { return bytes.begin() + static_cast<std::ptrdiff_t>(i); };
  if (bytes.empty()) bytes.push_back(random_byte(random));
  switch (random() % 6) {
    case 0:
      bytes[position(0)] = random_byte(random);
      break;
    case 1:
      bytes[position(0)] ^= static_cast<uint8_t>(1u << random() % 8);
      break;
    case 2:
      bytes.insert(iterator(position(1)), random_byte(random));
      break;
    case 3: {
      const size_t begin = position(0);
      const size_t end = std::min(bytes.size(), begin + 1 + random() % 16);
      bytes.erase(iterator(begin), iterator(end));
      break;
    }
    case 4: {
      const size_t begin = position(0);
      const Bytes piece(iterator(begin),
                        iterator(std::min(bytes.size(), begin + 1 + random() % 64)));
      const size_t at = position(1);
      bytes.insert(iterator(at), piece.begin(), piece.end());
      break;
    }
    default: {
      const size_t keep = position(1);
      bytes.resize(keep);
      const size_t from = other.empty() ? 0 : random() % other.size();
      bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER [RUNS [SEED]]\n", argv[0]);
    return 2;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& file : std::filesystem::directory_iterator(argv[1]))
    paths.push_back(file.path());
  std::sort(paths.begin(), paths.end());  // one seed, one sequence, on every file system
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    LLVMFuzzerTestOneInput(corpus.back().data(), corpus.back().size());
  }
  if (corpus.empty()) corpus.emplace_back();
  const long runs = argc > 2 ? std::atol(argv[2]) : 0;
  std::mt19937_64 random(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  for (long run = 0; run < runs; ++run) {
    Bytes bytes = corpus[random() % corpus.size()];
    for (uint64_t steps = 1 + random() % 4; steps > 0; --steps)
      mutate(bytes, corpus[random() % corpus.size()], random);
    // A copy of exact size, so that the sanitizer sees a read past its end.
    const Bytes exact(bytes);
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
  }
  std::printf("%zu corpus files, %ld mutations\n", corpus.size(), runs);
  return 0;
}

#include "os/output_file.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <string>

#include "base/error.h"
#include "refused_calls.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::refuse;
using ckpt_streamer::testing::TestMapping;
using Cache = OutputFile::Cache;
using Existing = OutputFile::Existing;

class Folder {
 public:
  Folder() {
    const char* const parent = std::getenv("TMPDIR");
    path_ = std::string(parent == nullptr ? "/tmp" : parent) +
            "/ckpt_streamer_test_XXXXXX";
    EXPECT(::mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() {
    for (const std::string& name : all_names()) {
      ::unlink((path_ + "/" + name).c_str());
    }
    ::rmdir(path_.c_str());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string operator/(const std::string& name) const {
    return path_ + "/" + name;
  }
  std::set<std::string> all_names() const {
    std::set<std::string> names;
    DIR* const folder = ::opendir(path_.c_str());
    while (const dirent* const entry = ::readdir(folder)) {
      names.insert(entry->d_name);
    }
    ::closedir(folder);
    names.erase(".");
    names.erase("..");
    return names;
  }
  // Those that ls shows: a file system may have no files without names.
  std::set<std::string> shown_names() const {
    std::set<std::string> names = all_names();
    std::erase_if(names, [](const std::string& name) {
      return name.starts_with('.');
    });
    return names;
  }

 private:
  std::string path_;
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

void write(OutputFile& file, uint64_t offset, const std::string& text) {
  file.write(offset, std::as_bytes(std::span(text)));
}

void finish(OutputFile& file) {
  file.sync();
  file.publish();
  file.sync_folder();
}

TEST(an_output_file_is_there_when_it_is_published) {
  const Folder folder;
  OutputFile file(folder / "out", 6, Cache::kKeep, Existing::kReplace);
  write(file, 3, "def");
  write(file, 0, "abc");
  EXPECT(folder.shown_names().empty());
  finish(file);
  EXPECT_EQ(folder.all_names().size(), 1U);
  EXPECT_EQ(contents(folder / "out"), "abcdef");
}

TEST(an_output_file_replaces_another_at_once) {
  const Folder folder;
  put(folder / "out", "old");
  {
    OutputFile dropped(folder / "out", 3, Cache::kKeep, Existing::kReplace);
    write(dropped, 0, "new");
    dropped.sync();
  }
  EXPECT_EQ(contents(folder / "out"), "old");
  EXPECT_EQ(::chmod((folder / "out").c_str(), 0640), 0);
  OutputFile file(folder / "out", 3, Cache::kKeep, Existing::kReplace);
  write(file, 0, "new");
  EXPECT_EQ(contents(folder / "out"), "old");
  finish(file);
  EXPECT_EQ(contents(folder / "out"), "new");
  EXPECT_EQ(folder.all_names().size(), 1U);
  struct stat status = {};
  EXPECT_EQ(::stat((folder / "out").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
}

TEST(an_output_file_follows_links) {
  const Folder folder;
  put(folder / "real", "old");
  EXPECT_EQ(::symlink("real", (folder / "link").c_str()), 0);
  OutputFile file(folder / "link", 3, Cache::kKeep, Existing::kReplace);
  write(file, 0, "new");
  finish(file);
  EXPECT_EQ(contents(folder / "real"), "new");
  struct stat status = {};
  EXPECT_EQ(::lstat((folder / "link").c_str(), &status), 0);
  EXPECT(S_ISLNK(status.st_mode));
}

TEST(an_output_file_may_refuse_to_replace) {
  const Folder folder;
  put(folder / "out", "old");
  EXPECT_THROWS(
      CheckpointError,
      (folder / "out") + ": cannot write: File exists",
      OutputFile(folder / "out", 3, Cache::kKeep, Existing::kRefuse));
  OutputFile file(folder / "late", 3, Cache::kKeep, Existing::kRefuse);
  write(file, 0, "new");
  file.sync();
  put(folder / "late", "other");
  EXPECT_THROWS(
      CheckpointError,
      (folder / "late") + ": cannot write: File exists",
      file.publish());
  EXPECT_EQ(contents(folder / "late"), "other");
}

TEST(an_output_file_can_be_withdrawn) {
  const Folder folder;
  OutputFile file(folder / "out", 1, Cache::kKeep, Existing::kRefuse);
  write(file, 0, "x");
  file.withdraw();  // not there yet
  file.sync();
  file.publish();
  EXPECT_EQ(contents(folder / "out"), "x");
  file.withdraw();
  EXPECT(folder.all_names().empty());
}

TEST(an_output_file_that_cannot_be_is_an_error) {
  const Folder folder;
  const auto open = [](const std::string& path) {
    OutputFile(path, 3, Cache::kKeep, Existing::kReplace);
  };
  const std::string missing = folder / "no/out";
  EXPECT_THROWS(
      CheckpointError,
      missing + ": cannot write: No such file or directory",
      open(missing));
  EXPECT_THROWS(
      CheckpointError,
      (folder / "") + ": is a directory, expected the name of a file to write",
      open(folder / ""));
  EXPECT_THROWS(
      CheckpointError,
      "/dev/null: is not a regular file, expected the name of a file to write",
      open("/dev/null"));
  EXPECT_THROWS(
      CheckpointError,
      "a\\x00b: the path holds a NUL character, expected a file's name",
      open(std::string("a\0b", 3)));
  EXPECT(folder.all_names().empty());
}

TEST(an_output_file_is_dropped_from_the_page_cache) {
  constexpr uint64_t kSize = uint64_t{40} << 20;
  const std::string piece(uint64_t{1} << 20, 'x');
  for (const Cache cache : {Cache::kKeep, Cache::kDrop}) {
    const Folder folder;
    OutputFile file(folder / "out", kSize, cache, Existing::kReplace);
    for (uint64_t offset = 0; offset < kSize; offset += piece.size()) {
      write(file, offset, piece);
    }
    finish(file);
    const TestMapping mapping(folder / "out", kSize, MAP_PRIVATE);
    if (cache == Cache::kDrop) {
      EXPECT_EQ(mapping.cached_bytes(), 0U);
    } else {
      EXPECT(mapping.cached_bytes() > 0);
    }
    EXPECT_EQ(mapping.bytes()[kSize - 1], 'x');
  }
}

// Where there are no files without names.
TEST(a_forked_child_takes_nothing_away) {
  const Folder folder;
  const std::string path = folder / "model";
  const pid_t writing = ::fork();
  if (writing == 0) {
    int status = -1;
    try {
#ifdef SYS_access
      EXPECT(refuse({{SYS_access}}));
#endif
      std::optional<OutputFile> file(
          std::in_place,
          path,
          4,
          Cache::kKeep,
          Existing::kReplace);
      write(*file, 0, "abcd");
      const auto in_child = [&](auto act) {
        const pid_t child = ::fork();
        if (child == 0) {
          act();
          ::_exit(0);
        }
        EXPECT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
      };
      in_child([&] { file.reset(); });
      EXPECT_EQ(folder.all_names().size(), size_t{1});
      file->sync();
      file->publish();
      in_child([&] { file->withdraw(); });
      EXPECT_EQ(contents(path), "abcd");
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(writing, &status, 0), writing);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ckpt_streamer::os

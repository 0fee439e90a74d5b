#include "os/available_memory.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "plan/default_limit.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

constexpr uint64_t kMib = uint64_t{1} << 20;

// A folder that stands for "/".
class FakeRoot {
 public:
  FakeRoot() {
    std::string path =
        (std::filesystem::temp_directory_path() / "ckpt_root_XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) {
      throw std::runtime_error("mkdtemp failed");
    }
    path_ = path;
  }
  ~FakeRoot() {
    std::filesystem::remove_all(path_);
  }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  void put(const std::string& path, const std::string& text) const {
    const std::filesystem::path full(path_ + path);
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  void put_machine(uint64_t mebibytes) const {
    put("/proc/meminfo",
        "MemTotal:       99999999 kB\nMemFree:        1 kB\nMemAvailable:   " +
            std::to_string(mebibytes * 1024) + " kB\nBuffers: 5 kB\n");
  }
  void put_v1(const std::string& folder, const std::string& limit) const {
    put(folder + "/memory.limit_in_bytes", limit + "\n");
    put(folder + "/memory.usage_in_bytes", std::to_string(100 * kMib) + "\n");
    put(folder + "/memory.stat",
        "cache 7\ninactive_file 1\ntotal_inactive_file " +
            std::to_string(30 * kMib) + "\ntotal_active_file " +
            std::to_string(10 * kMib) + "\n");
  }
  void put_v2(const std::string& folder, const std::string& limit) const {
    put(folder + "/memory.max", limit + "\n");
    put(folder + "/memory.current", std::to_string(100 * kMib) + "\n");
    put(folder + "/memory.stat",
        "anon 7\nfile 9\ninactive_file " + std::to_string(30 * kMib) +
            "\nactive_file " + std::to_string(10 * kMib) + "\n");
  }

  AvailableMemory available() const {
    return available_memory(path_).value();
  }
  bool says_nothing() const {
    return !available_memory(path_).has_value();
  }

 private:
  std::string path_;
};

// Of a cgroup of put_v1() or put_v2(), 60 MiB are in use.
std::string bytes(uint64_t mebibytes) {
  return std::to_string(mebibytes * kMib);
}

constexpr const char* kMountsV1 =
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
constexpr const char* kMountsV2 =
    "35 31 0:32 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

TEST(available_is_the_machines_without_cgroups) {
  const FakeRoot root;
  root.put_machine(500);
  EXPECT_EQ(root.available().bytes, 500 * kMib);
  EXPECT_EQ(root.available().place, std::string("the machine"));
}

TEST(available_is_unknown_where_nothing_tells) {
  const FakeRoot root;
  EXPECT(root.says_nothing());
  root.put("/proc/meminfo", "MemTotal: 77 kB\n");
  root.put("/proc/self/mountinfo", "nonsense\n\n35 31 - cgroup2");
  root.put("/proc/self/cgroup", "nonsense\n0\n");
  EXPECT(root.says_nothing());
}

TEST(available_in_a_cgroup_of_version_1) {
  const FakeRoot root;
  root.put_machine(5000);
  root.put("/proc/self/mountinfo", kMountsV1);
  root.put(
      "/proc/self/cgroup",
      "5:cpuset:/a\n4:hugetlb,memory:/box/job\n0::/\n");
  const std::string folder = "/sys/fs/cgroup/memory/box/job";
  root.put_v1(folder, bytes(400));
  EXPECT_EQ(root.available().bytes, 340 * kMib);
  EXPECT_EQ(root.available().place, folder);
}

TEST(available_in_the_tightest_of_nested_cgroups) {
  const FakeRoot root;
  root.put_machine(5000);
  root.put("/proc/self/mountinfo", kMountsV1);
  root.put("/proc/self/cgroup", "4:memory:/box/inner/job\n");
  root.put_v1("/sys/fs/cgroup/memory/box/inner/job", bytes(400));
  root.put_v1("/sys/fs/cgroup/memory/box/inner", bytes(900));
  root.put_v1("/sys/fs/cgroup/memory/box", bytes(300));
  root.put_v1("/sys/fs/cgroup/memory", "9223372036854771712");
  EXPECT_EQ(root.available().bytes, 240 * kMib);
  EXPECT_EQ(root.available().place, std::string("/sys/fs/cgroup/memory/box"));
}

TEST(available_in_an_unlimited_cgroup_is_the_machines) {
  const FakeRoot root;
  root.put_machine(500);
  root.put("/proc/self/mountinfo", kMountsV1);
  root.put("/proc/self/cgroup", "4:memory:/box\n");
  root.put_v1("/sys/fs/cgroup/memory/box", "9223372036854771712");
  EXPECT_EQ(root.available().place, std::string("the machine"));
  root.put("/proc/self/mountinfo", kMountsV2);
  root.put("/proc/self/cgroup", "0::/box\n");
  root.put_v2("/sys/fs/cgroup/box", "max");
  EXPECT_EQ(root.available().place, std::string("the machine"));
}

TEST(available_in_a_cgroup_of_version_2) {
  const FakeRoot root;
  root.put_machine(5000);
  root.put("/proc/self/mountinfo", kMountsV2);
  root.put("/proc/self/cgroup", "0::/box/job\n");
  root.put_v2("/sys/fs/cgroup/box/job", "max");
  root.put_v2("/sys/fs/cgroup/box", bytes(400));
  EXPECT_EQ(root.available().bytes, 340 * kMib);
  EXPECT_EQ(root.available().place, std::string("/sys/fs/cgroup/box"));
  root.put("/sys/fs/cgroup/box/job/memory.high", bytes(200) + "\n");
  EXPECT_EQ(root.available().bytes, 140 * kMib);
  root.put("/sys/fs/cgroup/box/memory.high", "max\n");
  EXPECT_EQ(root.available().bytes, 140 * kMib);
}

TEST(available_in_a_container_that_sees_its_own_cgroup_as_the_root) {
  const FakeRoot root;
  root.put_machine(5000);
  // Version 1, mounted from the container's cgroup on.
  root.put(
      "/proc/self/mountinfo",
      "35 31 0:32 /docker/1234 /sys/fs/cgroup/memory ro - cgroup cgroup "
      "rw,memory\n");
  root.put_v1("/sys/fs/cgroup/memory", bytes(400));
  root.put_v1("/sys/fs/cgroup/memory/job", bytes(200));
  for (const char* const path :
       {"/docker/1234", "/elsewhere", "/docker/12345"}) {
    root.put("/proc/self/cgroup", std::string("4:memory:") + path + "\n");
    EXPECT_EQ(root.available().bytes, 340 * kMib);
  }
  root.put("/proc/self/cgroup", "4:memory:/docker/1234/job\n");
  EXPECT_EQ(root.available().bytes, 140 * kMib);
  // Version 2, of another namespace.
  root.put("/proc/self/mountinfo", kMountsV2);
  root.put("/proc/self/cgroup", "0::/../../other\n");
  root.put_v2("/sys/fs/cgroup", bytes(100));
  EXPECT_EQ(root.available().bytes, 40 * kMib);
}

TEST(available_under_a_mount_point_with_a_space) {
  const FakeRoot root;
  root.put_machine(5000);
  root.put(
      "/proc/self/mountinfo",
      "35 31 0:32 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n");
  root.put("/proc/self/cgroup", "0::/job\n");
  root.put_v2("/sys/my groups/job", bytes(400));
  EXPECT_EQ(root.available().place, std::string("/sys/my groups/job"));
}

TEST(available_is_nothing_in_a_full_cgroup) {
  const FakeRoot root;
  root.put_machine(5000);
  root.put("/proc/self/mountinfo", kMountsV2);
  root.put("/proc/self/cgroup", "0::/job\n");
  root.put_v2("/sys/fs/cgroup/job", bytes(50));
  EXPECT_EQ(root.available().bytes, uint64_t{0});
  // Without its statistics, all that is used is held.
  root.put_v2("/sys/fs/cgroup/job", bytes(120));
  EXPECT_EQ(root.available().bytes, 60 * kMib);
  root.put("/sys/fs/cgroup/job/memory.stat", "");
  EXPECT_EQ(root.available().bytes, 20 * kMib);
  // Without a usage, or with one that is no number, nothing is known of it.
  for (const char* const usage : {"", "max\n", "12x\n", "-1\n"}) {
    root.put("/sys/fs/cgroup/job/memory.current", usage);
    EXPECT_EQ(root.available().place, std::string("the machine"));
  }
}

TEST(available_on_this_machine) {
  const auto available = available_memory();
  EXPECT(available.has_value());
  EXPECT(available->bytes > 0);
  EXPECT(!available->place.empty());
}

TEST(default_limit_is_a_quarter_within_bounds) {
  using plan::default_limit_bytes;
  EXPECT_EQ(default_limit_bytes(0), 16 * kMib);
  EXPECT_EQ(default_limit_bytes(64 * kMib), 16 * kMib);
  EXPECT_EQ(default_limit_bytes(68 * kMib - 1), 16 * kMib);
  EXPECT_EQ(default_limit_bytes(68 * kMib), 17 * kMib);
  EXPECT_EQ(default_limit_bytes(4096 * kMib), 1024 * kMib);
  EXPECT_EQ(default_limit_bytes(~uint64_t{0}), 1024 * kMib);
}

}  // namespace
}  // namespace ckpt_streamer::os

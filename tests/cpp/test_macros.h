// A test is a function: TEST(name) { EXPECT_EQ(a, b); ... }. The program lists
// its tests with --list and runs those named as arguments (none: all), so that
// each one is a test of its own to the outer runner. A failed expectation ends
// its test with file, line and both values.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ckpt_streamer::testing {

struct TestCase {
  const char* name;
  void (*run)();
};

inline std::vector<TestCase>& registry() {
  static std::vector<TestCase> cases;
  return cases;
}

struct Registrar {
  Registrar(const char* name, void (*run)()) {
    registry().push_back({name, run});
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream stream;
  if constexpr (requires { stream << value; }) {
    stream << value;
  } else {
    stream << "(a value without operator<<)";
  }
  return stream.str();
}

[[noreturn]] inline void fail(
    const char* file,
    int line,
    const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename Left, typename Right>
void expect_eq(
    const Left& left,
    const Right& right,
    const char* text,
    const char* file,
    int line) {
  if (!(left == right)) {
    fail(
        file,
        line,
        std::string(text) + ": " + show(left) + " is not " + show(right));
  }
}

// Runs `body`, which must throw Exception with exactly `message` as its text.
template <typename Exception>
void expect_throws(
    const std::function<void()>& body,
    const std::string& message,
    const char* file,
    int line) {
  try {
    body();
  } catch (const Exception& error) {
    expect_eq(std::string(error.what()), message, "message", file, line);
    return;
  }
  fail(file, line, "nothing was thrown, expected: " + message);
}

}  // namespace ckpt_streamer::testing

#define TEST(name)                                                   \
  static void name();                                                \
  static const ::ckpt_streamer::testing::Registrar registrar_##name{ \
      #name,                                                         \
      name};                                                         \
  static void name()

#define EXPECT(condition)                                             \
  do {                                                                \
    if (!(condition)) {                                               \
      ::ckpt_streamer::testing::fail(__FILE__, __LINE__, #condition); \
    }                                                                 \
  } while (false)

#define EXPECT_EQ(left, right)         \
  ::ckpt_streamer::testing::expect_eq( \
      (left),                          \
      (right),                         \
      #left " == " #right,             \
      __FILE__,                        \
      __LINE__)

#define EXPECT_THROWS(Exception, message, ...)        \
  ::ckpt_streamer::testing::expect_throws<Exception>( \
      [&] { (void)(__VA_ARGS__); },                   \
      (message),                                      \
      __FILE__,                                       \
      __LINE__)

#include "format/json.h"

#include "base/error.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::literals;

JsonReader reader_of(std::string_view text) {
  return JsonReader(text, {"m.json", "the text", 100});
}

// Reads the whole text as one value.
void skip(std::string_view text) {
  JsonReader json = reader_of(text);
  json.skip_value("the value");
  json.expect_end();
}

void expect_error(std::string_view text, const std::string& message) {
  EXPECT_THROWS(CheckpointError, "m.json: " + message, skip(text));
}

std::string string_of(std::string_view text) {
  JsonReader json = reader_of(text);
  const std::string value(json.read_string("the name"));
  json.expect_end();
  return value;
}

TEST(json_walks_objects_and_arrays) {
  JsonReader json = reader_of(
      " {\"a\" : [1, 2 ,3],\n\t\"b\":{}, \"c\":[ ], \"d\": \"e\" }\r\n");
  json.enter_object("the root");
  EXPECT_EQ(json.next_name().value(), "a");
  json.enter_array("a list");
  uint64_t sum = 0;
  while (json.next_element()) {
    sum += json.read_count("a number");
  }
  EXPECT_EQ(sum, 6U);
  EXPECT_EQ(json.next_name().value(), "b");
  json.enter_object("an object");
  EXPECT(!json.next_name().has_value());
  EXPECT_EQ(json.next_name().value(), "c");
  json.enter_array("a list");
  EXPECT(!json.next_element());
  EXPECT_EQ(json.next_name().value(), "d");
  EXPECT_EQ(json.read_string("a string"), "e");
  EXPECT(!json.next_name().has_value());
  json.expect_end();
}

TEST(json_skips_any_value) {
  constexpr std::string_view kText =
      R"({"a":[1,-0.5e+3,{"b":[[],{}]}],"c":null,"d":[true,false,"x\"]"]})";
  JsonReader json = reader_of(kText);
  EXPECT_EQ(json.skip_value("the value"), kText);
  json.expect_end();
  for (const char* const text :
       {"0", "-0", "-1", "10", "1.5", "1e5", "1E-5", "0.0", "null", "\"\""}) {
    skip(text);
  }
}

TEST(json_skips_a_member_in_the_middle) {
  JsonReader json = reader_of(R"({"a":{"x":[1]},"b":[],"c":3})");
  json.enter_object("the root");
  EXPECT_EQ(json.next_name().value(), "a");
  EXPECT_EQ(json.skip_value("a"), R"({"x":[1]})");
  EXPECT_EQ(json.next_name().value(), "b");
  EXPECT_EQ(json.skip_value("b"), "[]");
  EXPECT_EQ(json.next_name().value(), "c");
  EXPECT_EQ(json.read_count("c"), 3U);
  EXPECT(!json.next_name().has_value());
}

TEST(json_decodes_escapes) {
  EXPECT_EQ(string_of(R"("a\"\\\/\b\f\n\r\tz")"), "a\"\\/\b\f\n\r\tz");
  EXPECT_EQ(string_of(R"("\u0041\u00e9\u20AC")"), "A\u00e9\u20ac");
  EXPECT_EQ(string_of(R"("\ud83d\ude00!")"), "\U0001F600!");
  EXPECT_EQ(string_of(R"("\u0000")"), "\0"s);
  EXPECT_EQ(string_of("\"\x7f\u00e9\""), "\x7f\u00e9");
}

// Names and strings must stay what they are while others are read.
TEST(json_strings_live_as_long_as_the_reader) {
  JsonReader json = reader_of(R"(["\u0041","\u0042","c"])");
  json.enter_array("the list");
  std::vector<std::string_view> values;
  while (json.next_element()) {
    values.push_back(json.read_string("a letter"));
  }
  EXPECT_EQ(values[0], "A");
  EXPECT_EQ(values[1], "B");
  EXPECT_EQ(values[2], "c");
}

TEST(json_reads_counts_exactly) {
  const auto count_of = [](std::string_view text) {
    JsonReader json = reader_of(text);
    return json.read_count("the size");
  };
  EXPECT_EQ(count_of("0"), 0U);
  EXPECT_EQ(count_of("18446744073709551615"), 18446744073709551615U);
  for (const char* const text :
       {"18446744073709551616", "-1", "-0", "1.0", "1e0"}) {
    EXPECT_THROWS(
        CheckpointError,
        "m.json: found '" + std::string(text) +
            "', expected an integer from 0 to 2^64 - 1 as the size in the text "
            "[byte 100]",
        count_of(text));
  }
  EXPECT_THROWS(
      CheckpointError,
      "m.json: found a string, expected an integer from 0 to 2^64 - 1 as the "
      "size in the text [byte 101]",
      count_of(" \"1\""));
}

TEST(json_names_the_kinds_that_it_finds) {
  const auto expect_found = [](std::string_view text, const char* found) {
    EXPECT_THROWS(
        CheckpointError,
        std::string("m.json: found ") + found +
            ", expected a string as the name of tensor 'w' in the text [byte "
            "100]",
        [&] {
          JsonReader json = reader_of(text);
          json.set_subject("tensor", "w");
          (void)json.read_string("the name");
        }());
  };
  expect_found("{}", "an object");
  expect_found("[]", "an array");
  expect_found("1", "a number");
  expect_found("-1", "a number");
  expect_found("true", "a bool");
  expect_found("null", "null");
  EXPECT_THROWS(
      CheckpointError,
      "m.json: found a string, expected an object as the root in the text "
      "[byte 100]",
      [] { reader_of("\"a\"").enter_object("the root"); }());
  EXPECT_THROWS(
      CheckpointError,
      "m.json: found an object, expected an array as the list in the text "
      "[byte 100]",
      [] { reader_of("{}").enter_array("the list"); }());
}

TEST(json_refuses_what_is_no_json) {
  expect_error(
      "",
      "found the end, expected a value as the value in the text [byte 100]");
  expect_error(
      "\"a",
      "found the end, expected a closing '\"' in the text [byte 102]");
  expect_error(
      "\"a\\",
      "found the end, expected a closing '\"' in the text [byte 104]");
  expect_error(
      "[1",
      "found the end, expected ',' or ']' in the text [byte 102]");
  expect_error(
      "[",
      "found the end, expected a value or ']' in the text [byte 101]");
  expect_error(
      "[1 2]",
      "found '2', expected ',' or ']' in the text [byte 103]");
  expect_error(
      "[1,]",
      "found ']', expected a value as the value in the text [byte 103]");
  expect_error(
      "[,1]",
      "found ',', expected a value as the value in the text [byte 101]");
  expect_error("[1}", "found '}', expected ',' or ']' in the text [byte 102]");
  expect_error(
      "{\"a\":1,}",
      "found '}', expected a name in double quotes in the text [byte 107]");
  expect_error(
      "{a:1}",
      "found 'a', expected a name in double quotes in the text [byte 101]");
  expect_error(
      "{1:1}",
      "found '1', expected a name in double quotes in the text [byte 101]");
  expect_error(
      "{\"a\" 1}",
      "found '1', expected ':' behind the name 'a' in the text [byte 105]");
  expect_error(
      "{\"a\":}",
      "found '}', expected a value as the value in the text [byte 105]");
  expect_error("{} x", "found 'x', expected the end in the text [byte 103]");
  expect_error(
      "{}\0"sv,
      "found '\\x00', expected the end in the text [byte 102]");
  expect_error(
      "\u00e9",
      "found '\u00e9', expected a value as the value in the text [byte 100]");
  expect_error(
      "\ufeff{}",
      "found '\ufeff', expected a value as the value in the text [byte 100]");
  expect_error(
      "nul",
      "found 'n', expected true, false or null in the text [byte 100]");
  expect_error(
      "tRue",
      "found 't', expected true, false or null in the text [byte 100]");
  expect_error("nulls", "found 's', expected the end in the text [byte 104]");
  expect_error(
      "NaN",
      "found 'N', expected a value as the value in the text [byte 100]");
  expect_error(
      "// x\n1",
      "found '/', expected a value as the value in the text [byte 100]");
}

TEST(json_refuses_bad_numbers) {
  expect_error(
      "01",
      "found '1', expected no digit behind a leading 0 in the text [byte 101]");
  expect_error(
      "+1",
      "found '+', expected a value as the value in the text [byte 100]");
  expect_error("-", "found the end, expected a digit in the text [byte 101]");
  expect_error("1.", "found the end, expected a digit in the text [byte 102]");
  expect_error("1.e5", "found 'e', expected a digit in the text [byte 102]");
  expect_error("1e", "found the end, expected a digit in the text [byte 102]");
  expect_error("1e+x", "found 'x', expected a digit in the text [byte 103]");
  expect_error("0x1", "found 'x', expected the end in the text [byte 101]");
}

TEST(json_refuses_bad_strings) {
  expect_error(
      "\"a\nb\"",
      "found '\\x0a', expected a control character to be escaped in the text "
      "[byte 102]");
  expect_error(
      R"("a\x41")",
      "found '\\x41', expected one of the escapes \\\" \\\\ \\/ \\b \\f \\n "
      "\\r \\t \\u in the text [byte 102]");
  expect_error(
      R"("\u12g4")",
      "found '\\u12g4', expected \\u and four hexadecimal digits in the text "
      "[byte 101]");
  expect_error(
      R"("\u123")",
      "found '\\u123\"', expected \\u and four hexadecimal digits in the text "
      "[byte 101]");
  expect_error(
      R"("\u+123")",
      "found '\\u+123', expected \\u and four hexadecimal digits in the text "
      "[byte 101]");
  for (const char* const lone :
       {R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")", R"("\ud800x")"}) {
    expect_error(
        lone,
        "found '" + std::string(lone).substr(1, 6) +
            "', expected a pair of surrogates in the text [byte 101]");
  }
  expect_error(
      "\"\xff\"",
      "found the byte ff, expected UTF-8 in the text [byte 101]");
  expect_error(
      "\"0123456789\xed\xa0\x80\"",
      "found the byte ed, expected UTF-8 in the text [byte 111]");
}

TEST(json_bounds_its_depth) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  skip(nested(JsonReader::kLargestDepth));
  expect_error(
      nested(JsonReader::kLargestDepth + 1),
      "found nesting deeper than 128, expected at most that in the text [byte "
      "228]");
  std::string objects;
  for (int i = 0; i < 1000; ++i) {
    objects += "{\"a\":";
  }
  expect_error(
      objects,
      "found nesting deeper than 128, expected at most that in the text [byte "
      "740]");
}

}  // namespace
}  // namespace ckpt_streamer::format

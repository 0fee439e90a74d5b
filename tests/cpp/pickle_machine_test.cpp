#include "format/pickle_machine.h"

#include "format/text.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using namespace std::string_literals;
namespace pickle = testing::pickle;

PickleTree load(const std::string& pickle) {
  const testing::MemorySource source(std::string(1000, '?') + pickle + "?");
  return PickleTree::load(source, pickle.size(), {"m.pt", "a/data.pkl", 1000});
}

// As Python's repr, more or less; trees only.
std::string show(const PickleTree& tree, ValueId id) {
  const auto join = [&](std::span<const ValueId> ids) {
    std::string text;
    for (const ValueId item : ids) {
      text += (text.empty() ? "" : ", ") + show(tree, item);
    }
    return text;
  };
  switch (tree.kind(id)) {
    case ValueKind::kNone:
      return "None";
    case ValueKind::kBool:
      return tree.bool_value(id) ? "True" : "False";
    case ValueKind::kInt:
      return std::to_string(tree.int_value(id));
    case ValueKind::kBigInt:
      return "big " + std::string(tree.text(id));
    case ValueKind::kFloat:
      return float_text(tree.float_value(id));
    case ValueKind::kString:
      return "'" + std::string(tree.text(id)) + "'";
    case ValueKind::kBytes:
      return "b'" + std::string(tree.text(id)) + "'";
    case ValueKind::kTuple:
      return "(" + join(tree.items(id)) + ")";
    case ValueKind::kList:
      return "[" + join(tree.items(id)) + "]";
    case ValueKind::kSet:
      return "{" + join(tree.items(id)) + "}";
    case ValueKind::kDict:
      return "dict{" + join(tree.entries(id)) + "}";
    case ValueKind::kGlobal: {
      const PickleGlobal global = tree.global(tree.global_index(id));
      return std::string(global.module) + "." + std::string(global.name);
    }
    case ValueKind::kPersistent:
      return "pid " + show(tree, tree.persistent_id(id));
    case ValueKind::kObject:
      break;
  }
  const PickleObject object = tree.object(id);
  std::string text = show(tree, object.callable) + show(tree, object.args);
  if (object.keyword_args != kNoValue) {
    text += " keywords " + show(tree, object.keyword_args);
  }
  if (object.state != kNoValue) {
    text += " state " + show(tree, object.state);
  }
  if (!object.items.empty()) {
    text += " items " + join(object.items);
  }
  if (!object.entries.empty()) {
    text += " entries " + join(object.entries);
  }
  return text;
}

std::string run(const std::string& pickle) {
  const PickleTree tree = load(pickle);
  return show(tree, tree.root());
}

void expect_error(const std::string& pickle, const std::string& message) {
  EXPECT_THROWS(CheckpointError, message, load(pickle));
}

TEST(reads_numbers) {
  EXPECT_EQ(run("(NI01\nI00\n\x88\x89t."), "(None, True, False, True, False)");
  EXPECT_EQ(
      run("(K\xffM\xff\xffJ\xff\xff\xff\xffI-7\nL12L\nL5\nt."),
      "(255, 65535, -1, -7, 12, 5)");
  EXPECT_EQ(
      run("(\x8a\x00\x8a\x01\x80\x8a\x02\x00\x80"
          "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"
          "\x8b\x01\x00\x00\x00\x07t."s),
      "(0, -128, -32768, 9223372036854775807, 7)");
  EXPECT_EQ(
      run("(G\x3f\xb9\x99\x99\x99\x99\x99\x9a"
          "F1e22\nFinf\nF-inf\nFnan\nF-0.00012\nt."),
      "(0.1, 1e+22, inf, -inf, nan, -0.00012)");
}

TEST(keeps_big_ints_as_text) {
  EXPECT_EQ(
      run("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x40."s),
      "big 1180591620717411303424");
  EXPECT_EQ(
      run("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00."s),
      "big 9223372036854775808");
  EXPECT_EQ(
      run("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\xff."s),
      "big -9223372036854775809");
  EXPECT_EQ(run("L18446744073709551616L\n."), "big 18446744073709551616");
  EXPECT_EQ(
      run("\x8a\x21"s + std::string(32, '\0') + "\x10."),
      "big 0x10" + std::string(64, '0'));
}

TEST(long_ints_of_small_values_are_ints) {
  EXPECT_EQ(
      run("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\xff."s),
      "-9223372036854775808");
  EXPECT_EQ(
      run("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\x00."s),
      "9223372036854775807");
  EXPECT_EQ(run("\x8a\x0a\x07\0\0\0\0\0\0\0\0\0."s), "7");
  EXPECT_EQ(run("\x8a\x0a\xfe"s + std::string(9, '\xff') + "."), "-2");
  EXPECT_EQ(run("\x8b\x00\x01\x00\x00"s + std::string(256, '\0') + "."), "0");
}

TEST(reads_strings) {
  EXPECT_EQ(
      run("(X\x01\x00\x00\x00"
          "a\x8c\x01"
          "b\x8d\x01\x00\x00\x00\x00\x00\x00\x00"
          "cU\x01"
          "dT\x01\x00\x00\x00"
          "et."s),
      "('a', 'b', 'c', 'd', 'e')");
  EXPECT_EQ(
      run("(C\x01"
          "aB\x01\x00\x00\x00"
          "b\x8e\x01\x00\x00\x00\x00\x00\x00\x00"
          "c\x96\x01\x00\x00\x00\x00\x00\x00\x00"
          "dt."s),
      "(b'a', b'b', b'c', b'd')");
  EXPECT_EQ(
      run("(S'it\\'s "
          "\\x41\\n\\\\\\q'\nS\"\"\nVa\\u00e9\xe9\\U0001F600\\u12\nt."),
      "('it's A\n\\\\q', '', 'a\xc3\xa9\xc3\xa9\xf0\x9f\x98\x80\\u12')");
}

TEST(reads_containers) {
  EXPECT_EQ(
      run("((K\x01K\x02t)K\x01\x85K\x01K\x02\x86NNN\x87t."),
      "((1, 2), (), (1), (1, 2), (None, None, None))");
  EXPECT_EQ(
      run("(](K\x01K\x02"
          "eK\x03"
          "a(K\x04lt."),
      "([1, 2, 3], [4])");
  EXPECT_EQ(
      run("(}(K\x01NK\x02Nu(K\x03Ndt."),
      "(dict{1, None, 2, None}, dict{3, None})");
  EXPECT_EQ(run("(\x8f(K\x01K\x02\x90(K\x03\x91t."), "({1, 2}, {3})");
  EXPECT_EQ(
      run("(K\x01K\x02"
          "0K\x03"
          "2t."),
      "(1, 3, 3)");
  EXPECT_EQ(
      run("K\x07(K\x01K\x02"
          "1."),
      "7");
  EXPECT_EQ(run("K\x07(0."), "7");
}

TEST(interleaved_appends_stay_apart_and_in_order) {
  std::string pickle = "]q\x00]q\x01"s;
  for (char i = 0; i < 10; ++i) {
    pickle += "h\x00K"s + i + "a0h\x01K"s + i + "a0";
  }
  EXPECT_EQ(
      run(pickle + "h\x00h\x01\x86."s),
      "([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])");
}

TEST(reads_objects_without_making_them) {
  EXPECT_EQ(run("cos\nsystem\nU\x02ls\x85R."), "os.system('ls')");
  EXPECT_EQ(
      run("\x8c\x01m\x8c\x01n\x93)\x81K\x01"
          "b."),
      "m.n() state 1");
  EXPECT_EQ(run("cm\nn\n)}\x92."), "m.n() keywords dict{}");
  EXPECT_EQ(run("(cm\nn\nK\x01o(K\x02im\nn\n\x86."), "(m.n(1), m.n(2))");
  EXPECT_EQ(
      run("cm\nn\n)R(K\x01K\x02"
          "e(K\x03K\x04uK\x05"
          "aK\x06K\x07s(K\x08\x90."),
      "m.n() items 1, 2, 5, 8 entries 3, 4, 6, 7");
  EXPECT_EQ(run("(K\x01QP2\nt."), "(pid 1, pid '2')");
  // The callable may itself be the result of a call.
  EXPECT_EQ(run("cm\nn\n)R)R."), "m.n()()");
}

TEST(says_where_an_object_was_made) {
  const PickleTree tree = load(
      "\x80\x02"
      "cm\nn\n)R.");
  EXPECT_EQ(tree.object(tree.root()).pickle_offset, 8U);
  EXPECT_EQ(tree.object_count(), 1U);
  EXPECT_EQ(tree.global_count(), 1U);
  const PickleTree persistent = load("NQ.");
  EXPECT_EQ(persistent.persistent_pickle_offset(persistent.root()), 1U);
}

TEST(reads_values_across_the_ends_of_its_buffer) {
  // A list whose first text moves the other values byte by byte across 64 KiB.
  for (size_t shift = 0; shift < 40; ++shift) {
    const std::string first(65536 - shift, 'x');
    const std::string second(shift, 'y');
    const std::string bytes = "](" + pickle::text(first) +
                              pickle::text(second) + pickle::integer(-5) +
                              "I12\n" + "G\x3f\xf8" + std::string(6, '\0') +
                              pickle::global("mod", "name") + "e.";
    const PickleTree tree = load(bytes);
    EXPECT(
        show(tree, tree.root()) ==
        "['" + first + "', '" + second + "', -5, 12, 1.5, mod.name]");
    EXPECT_THROWS(
        CheckpointError,
        "m.pt: the pickle ends after " + std::to_string(bytes.size() - 1) +
            " bytes, expected a STOP opcode in 'a/data.pkl' [byte " +
            std::to_string(999 + bytes.size()) + "]",
        load(bytes.substr(0, bytes.size() - 1)));
  }
}

TEST(reads_texts_and_lines_longer_than_its_buffer) {
  const std::string longest(300'000, 'x');
  for (const size_t length : {4095, 4096, 4097, 65535, 65536, 65537, 300'000}) {
    const std::string word = longest.substr(0, length);
    EXPECT(
        run("](" + pickle::text(word) + pickle::text("end") + "e.") ==
        "['" + word + "', 'end']");
    EXPECT(run("](V" + word + "\nV" + "end\ne.") == "['" + word + "', 'end']");
  }
}

TEST(equal_ints_are_told_apart_from_others) {
  // 256 apart: these compete for one place among the recent ones.
  EXPECT_EQ(
      run("](" + pickle::integer(1000) + pickle::integer(1256) +
          pickle::integer(1000) + pickle::integer(-24) + pickle::integer(-24) +
          pickle::integer(1000) + "e."),
      "[1000, 1256, 1000, -24, -24, 1000]");
}

TEST(shares_values_through_the_memo) {
  const PickleTree tree =
      load("(]q\x05h\x05p1000\ng1000\n]\x94\x94j\x02\x00\x00\x00t."s);
  const auto items = tree.items(tree.root());
  EXPECT_EQ(items.size(), 5U);
  EXPECT_EQ(items[0], items[1]);
  EXPECT_EQ(items[0], items[2]);
  EXPECT(items[0] != items[3]);
  EXPECT_EQ(items[3], items[4]);
}

TEST(a_list_may_hold_itself) {
  const PickleTree tree = load(
      "]q\x01h\x01"
      "a.");
  EXPECT_EQ(tree.items(tree.root())[0], tree.root());
}

TEST(protocols_and_frames) {
  EXPECT_EQ(run("\x80\x05\x95\x02\x00\x00\x00\x00\x00\x00\x00N."s), "None");
  EXPECT_EQ(run("N.garbage"), "None");
  expect_error(
      "\x80\x06N.",
      "m.pt: pickle protocol 6 is not supported, expected at most 5 in "
      "'a/data.pkl' [byte 1000]");
  expect_error(
      "\x95\x03\x00\x00\x00\x00\x00\x00\x00N."s,
      "m.pt: pickle opcode 0x95 (FRAME) has 3 bytes, expected at most the "
      "remaining 2 in 'a/data.pkl' [byte 1000]");
}

TEST(refuses_a_pickle_that_ends_early) {
  expect_error(
      "",
      "m.pt: the pickle ends after 0 bytes, expected a STOP opcode in "
      "'a/data.pkl' [byte 1000]");
  expect_error(
      "N",
      "m.pt: the pickle ends after 1 bytes, expected a STOP opcode in "
      "'a/data.pkl' [byte 1001]");
  expect_error(
      "X\x05\x00\x00\x00"
      "abc"s,
      "m.pt: pickle opcode 0x58 (BINUNICODE) needs 5 more bytes, expected at "
      "most the remaining 3 in 'a/data.pkl' [byte 1000]");
  expect_error(
      "\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
      "m.pt: pickle opcode 0x8d (BINUNICODE8) needs 18446744073709551615 more "
      "bytes, expected at most the remaining 0 in 'a/data.pkl' [byte 1000]");
  expect_error(
      "J\x01",
      "m.pt: pickle opcode 0x4a (BININT) needs 4 more bytes, expected at most "
      "the remaining 1 in 'a/data.pkl' [byte 1000]");
  expect_error(
      "cmodule",
      "m.pt: pickle opcode 0x63 (GLOBAL) needs a line, expected a newline in "
      "front of the end in 'a/data.pkl' [byte 1000]");
}

TEST(refuses_what_is_no_opcode) {
  expect_error(
      "\xff",
      "m.pt: found byte 0xff, expected a pickle opcode in 'a/data.pkl' [byte "
      "1000]");
  expect_error(
      "N\x00."s,
      "m.pt: found byte 0x00, expected a pickle opcode in 'a/data.pkl' [byte "
      "1001]");
}

TEST(refuses_what_lies_outside_the_pickle) {
  expect_error(
      "\x82\x01.",
      "m.pt: pickle opcode 0x82 (EXT1) refers to something outside the pickle, "
      "expected a pickle that is whole in 'a/data.pkl' [byte 1000]");
  expect_error(
      "\x97.",
      "m.pt: pickle opcode 0x97 (NEXT_BUFFER) refers to something outside the "
      "pickle, expected a pickle that is whole in 'a/data.pkl' [byte 1000]");
}

TEST(refuses_an_empty_stack) {
  expect_error(
      ".",
      "m.pt: pickle opcode 0x2e (STOP) finds 0 values on the stack, expected 1 "
      "in 'a/data.pkl' [byte 1000]");
  expect_error(
      "0",
      "m.pt: pickle opcode 0x30 (POP) finds 0 values on the stack, expected 1 "
      "in 'a/data.pkl' [byte 1000]");
  expect_error(
      "2",
      "m.pt: pickle opcode 0x32 (DUP) finds 0 values on the stack, expected 1 "
      "in 'a/data.pkl' [byte 1000]");
  expect_error(
      "K\x01\x86.",
      "m.pt: pickle opcode 0x86 (TUPLE2) finds 1 values on the stack, expected "
      "2 in 'a/data.pkl' [byte 1002]");
  expect_error(
      "K\x01s.",
      "m.pt: pickle opcode 0x73 (SETITEM) finds 1 values on the stack, "
      "expected 3 in 'a/data.pkl' [byte 1002]");
  expect_error(
      "NN(R.",
      "m.pt: pickle opcode 0x52 (REDUCE) finds 0 values on the stack, expected "
      "2 in 'a/data.pkl' [byte 1003]");
  expect_error(
      "q\x01.",
      "m.pt: pickle opcode 0x71 (BINPUT) finds 0 values on the stack, expected "
      "1 in 'a/data.pkl' [byte 1000]");
}

TEST(refuses_a_missing_mark) {
  expect_error(
      "Nt.",
      "m.pt: pickle opcode 0x74 (TUPLE) finds no mark on the stack, expected "
      "one in 'a/data.pkl' [byte 1001]");
  expect_error(
      "1",
      "m.pt: pickle opcode 0x31 (POP_MARK) finds no mark on the stack, "
      "expected one in 'a/data.pkl' [byte 1000]");
  expect_error(
      "(u.",
      "m.pt: pickle opcode 0x75 (SETITEMS) finds no container below the mark, "
      "expected one in 'a/data.pkl' [byte 1001]");
  expect_error(
      "N((e.",
      "m.pt: pickle opcode 0x65 (APPENDS) finds no container below the mark, "
      "expected one in 'a/data.pkl' [byte 1003]");
  expect_error(
      "(o.",
      "m.pt: pickle opcode 0x6f (OBJ) finds no class above the mark, expected "
      "one in 'a/data.pkl' [byte 1001]");
}

TEST(refuses_a_missing_memo) {
  expect_error(
      "h\x07.",
      "m.pt: pickle opcode 0x68 (BINGET) asks for memo 7, expected one of the "
      "0 stored so far in 'a/data.pkl' [byte 1000]");
  expect_error(
      "j\xff\xff\xff\xff.",
      "m.pt: pickle opcode 0x6a (LONG_BINGET) asks for memo 4294967295, "
      "expected one of the 0 stored so far in 'a/data.pkl' [byte 1000]");
  expect_error(
      "gx\n.",
      "m.pt: pickle opcode 0x67 (GET) has the key 'x', expected a number in "
      "'a/data.pkl' [byte 1000]");
}

TEST(refuses_containers_of_another_kind) {
  expect_error(
      "NK\x01"
      "a.",
      "m.pt: pickle opcode 0x61 (APPEND) adds to None, expected a list or an "
      "object in 'a/data.pkl' [byte 1003]");
  expect_error(
      "](K\x01K\x02u.",
      "m.pt: pickle opcode 0x75 (SETITEMS) adds to a list, expected a dict or "
      "an object in 'a/data.pkl' [byte 1006]");
  expect_error(
      "}(K\x01\x90.",
      "m.pt: pickle opcode 0x90 (ADDITEMS) adds to a dict, expected a set or "
      "an object in 'a/data.pkl' [byte 1004]");
  expect_error(
      "}(K\x01u.",
      "m.pt: pickle opcode 0x75 (SETITEMS) finds 1 keys and values, expected "
      "as many keys as values in 'a/data.pkl' [byte 1004]");
  expect_error(
      "]Nb.",
      "m.pt: pickle opcode 0x62 (BUILD) sets the state of a list, expected an "
      "object in 'a/data.pkl' [byte 1002]");
  expect_error(
      "cm\nn\nNR.",
      "m.pt: pickle opcode 0x52 (REDUCE) finds None as arguments, expected a "
      "tuple in 'a/data.pkl' [byte 1006]");
  expect_error(
      "NN\x93.",
      "m.pt: pickle opcode 0x93 (STACK_GLOBAL) finds None as part of a name, "
      "expected a string in 'a/data.pkl' [byte 1002]");
}

TEST(refuses_bad_numbers) {
  expect_error(
      "I1x\n.",
      "m.pt: pickle opcode 0x49 (INT) has the number '1x', expected decimal "
      "digits in 'a/data.pkl' [byte 1000]");
  expect_error(
      "F1.5x\n.",
      "m.pt: pickle opcode 0x46 (FLOAT) has the number '1.5x', expected a "
      "float in 'a/data.pkl' [byte 1000]");
  expect_error(
      "T\xff\xff\xff\xff.",
      "m.pt: pickle opcode 0x54 (BINSTRING) has the size -1, expected 0 or "
      "more in 'a/data.pkl' [byte 1000]");
  expect_error(
      "Sabc\n.",
      "m.pt: pickle opcode 0x53 (STRING) has the string 'abc', expected it in "
      "quotes in 'a/data.pkl' [byte 1000]");
}

TEST(a_memo_key_of_4_billion_costs_nothing) {
  const PickleTree tree = load(
      "Nr\xff\xff\xff\xff"
      "0j\xff\xff\xff\xff.");
  EXPECT(tree.kind(tree.root()) == ValueKind::kNone);
}

TEST(depth_costs_no_stack) {
  std::string pickle(1'000'000, ']');
  pickle += std::string(999'999, 'a') + ".";
  ValueId id = 0;
  const PickleTree tree = load(pickle);
  size_t depth = 0;
  for (id = tree.root(); !tree.items(id).empty(); id = tree.items(id)[0]) {
    ++depth;
  }
  EXPECT_EQ(depth, 999'999U);
}

TEST(a_billion_laughs_stay_small) {
  std::string pickle = "]q\x00"s;
  for (char level = 1; level < 60; ++level) {
    pickle += "]q"s + level;
    for (int i = 0; i < 10; ++i) {
      pickle += "h"s + static_cast<char>(level - 1) + "a";
    }
  }
  const PickleTree tree = load(pickle + ".");
  EXPECT(tree.size() < 400);
}

TEST(text_helpers) {
  EXPECT(is_valid_utf8("a\xc3\xa9\xf0\x9f\x98\x80"));
  EXPECT(!is_valid_utf8("\xc0\x80"));
  EXPECT(!is_valid_utf8("\xed\xa0\x80"));
  EXPECT(!is_valid_utf8("\xf4\x90\x80\x80"));
  EXPECT(!is_valid_utf8("\xc3"));
  // Eight bytes are looked at together: a sequence at every place, whole and
  // cut.
  for (size_t length = 2; length <= 20; ++length) {
    for (size_t at = 0; at + 1 < length; ++at) {
      std::string text(length, 'a');
      text.replace(at, 2, "\xc3\xa9");
      EXPECT_EQ(valid_utf8_bytes(text), length);
      text[at + 1] = 'a';
      EXPECT_EQ(valid_utf8_bytes(text), at);
      text.replace(at, 2, "a\xa9");
      EXPECT_EQ(valid_utf8_bytes(text), at + 1);
    }
  }
  EXPECT_EQ(quoted("a\n\xff\xc3\xa9"), "'a\\x0a\\xff\xc3\xa9'");
  EXPECT_EQ(quoted(std::string(1000, 'x')).size(), 160U + 1U + 3U + 1U);
  EXPECT_EQ(float_text(1.0), "1.0");
  EXPECT_EQ(float_text(-0.0), "-0.0");
  EXPECT_EQ(float_text(123456789.125), "123456789.125");
  EXPECT_EQ(float_text(1e16), "1e+16");
  EXPECT_EQ(float_text(1.5e-5), "1.5e-05");
  EXPECT_EQ(float_text(5e-324), "5e-324");
  EXPECT_EQ(float_text(0x1p-24), "5.960464477539063e-08");
  EXPECT_EQ(float_text(-0x1p-44), "-5.684341886080802e-14");
}

}  // namespace
}  // namespace ckpt_streamer::format

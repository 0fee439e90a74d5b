#include "format/pickle_machine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <locale>
#include <map>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "format/little_endian.h"
#include "format/pickle_opcodes.h"
#include "format/source_reader.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint64_t kHighestProtocol = 5;

// The nodes that every tree begins with.
constexpr ValueId kNoneId = 0;
constexpr ValueId kFalseId = 1;
constexpr ValueId kTrueId = 2;
constexpr ValueId kEmptyTupleId = 3;
constexpr ValueId kFirstSmallIntId = 4;
constexpr uint64_t kSmallIntCount = 256;

// Longer texts are read to where they stay, not through the reader's buffer.
constexpr uint64_t kFewTextBytes = 4096;

std::string opcode_text(uint8_t code) {
  const std::byte byte{code};
  const char* name = pickle_opcode_name(code);
  return "pickle opcode 0x" + hex_bytes({&byte, 1}) +
         (name != nullptr ? std::string(" (") + name + ")" : "");
}

const char* kind_text(ValueKind kind) {
  switch (kind) {
    case ValueKind::kNone:
      return "None";
    case ValueKind::kBool:
      return "a bool";
    case ValueKind::kInt:
    case ValueKind::kBigInt:
      return "an int";
    case ValueKind::kFloat:
      return "a float";
    case ValueKind::kString:
      return "a string";
    case ValueKind::kBytes:
      return "bytes";
    case ValueKind::kTuple:
      return "a tuple";
    case ValueKind::kList:
      return "a list";
    case ValueKind::kDict:
      return "a dict";
    case ValueKind::kSet:
      return "a set";
    case ValueKind::kGlobal:
      return "a global";
    case ValueKind::kObject:
      return "an object";
    case ValueKind::kPersistent:
      return "a persistent object";
  }
  return "";
}

// The value of exactly `digits` leading digits of `text` in `base`.
std::optional<uint32_t> leading_digits(
    std::string_view text,
    size_t digits,
    int base) {
  uint32_t value = 0;
  if (text.size() < digits) {
    return std::nullopt;
  }
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + digits, value, base);
  if (error != std::errc() || end != text.data() + digits) {
    return std::nullopt;
  }
  return value;
}

// Python's repr of a str (protocol 0, Python 2): codecs.escape_decode.
std::string decode_escapes(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const char c = text.front();
    text.remove_prefix(1);
    if (c != '\\' || text.empty()) {
      result += c;
      continue;
    }
    const char escape = text.front();
    constexpr std::string_view kFrom = "\\'\"abfnrtv";
    constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t i = kFrom.find(escape); i != std::string_view::npos) {
      result += kTo[i];
      text.remove_prefix(1);
    } else if (escape == 'x' && leading_digits(text.substr(1), 2, 16)) {
      result += static_cast<char>(*leading_digits(text.substr(1), 2, 16));
      text.remove_prefix(3);
    } else {
      result += c;
    }
  }
  return result;
}

// The encoding raw-unicode-escape: Latin-1 plus \uXXXX and \UXXXXXXXX.
std::string decode_raw_unicode(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t digits = text.starts_with("\\u")   ? 4
                          : text.starts_with("\\U") ? 8
                                                    : 0;
    if (digits != 0) {
      const auto code_point = leading_digits(text.substr(2), digits, 16);
      if (code_point.has_value() && *code_point <= 0x10FFFF) {
        append_utf8(result, *code_point);
        text.remove_prefix(2 + digits);
        continue;
      }
    }
    append_utf8(result, static_cast<unsigned char>(text.front()));
    text.remove_prefix(1);
  }
  return result;
}

// A two's complement little-endian integer: decimal while its quadratic cost is
// small, 0x... or -0x... beyond.
std::string integer_text(std::string_view bytes) {
  constexpr size_t kLargestDecimalBytes = 32;
  std::vector<unsigned> magnitude;  // bytes, least significant first
  const bool is_negative =
      (static_cast<unsigned char>(bytes.back()) & 0x80) != 0;
  unsigned carry = is_negative ? 1 : 0;
  for (const char c : bytes) {
    const unsigned byte = static_cast<unsigned char>(c);
    const unsigned sum = (is_negative ? ~byte & 0xFF : byte) + carry;
    magnitude.push_back(sum & 0xFF);
    carry = sum >> 8;
  }
  const unsigned base = bytes.size() > kLargestDecimalBytes ? 16 : 10;
  std::string digits;  // least significant first
  if (base == 16) {
    for (const unsigned byte : magnitude) {
      digits += "0123456789abcdef"[byte & 0xF];
      digits += "0123456789abcdef"[byte >> 4];
    }
  } else {
    while (std::any_of(magnitude.begin(), magnitude.end(), [](unsigned byte) {
      return byte != 0;
    })) {
      unsigned remainder = 0;
      for (size_t i = magnitude.size(); i-- > 0;) {
        const unsigned dividend = remainder << 8 | magnitude[i];
        magnitude[i] = dividend / 10;
        remainder = dividend % 10;
      }
      digits += static_cast<char>('0' + remainder);
    }
  }
  while (digits.size() > 1 && digits.back() == '0') {
    digits.pop_back();
  }
  std::string result = is_negative ? "-" : "";
  result += base == 16 ? "0x" : "";
  return result.append(digits.rbegin(), digits.rend());
}

}  // namespace

// The virtual machine of pickletools.py: a stack, marks on it, and a memo.
class PickleMachine {
 public:
  PickleMachine(
      const ByteSource& source,
      uint64_t size_bytes,
      const PickleOrigin& origin)
      : origin_(origin),
        size_bytes_(size_bytes),
        reader_(source, {origin.file_offset, origin.file_offset + size_bytes}) {
  }

  PickleTree run();

 private:
  struct Run {
    uint32_t begin;
    uint32_t count;
    uint32_t next;
  };

  [[noreturn]] void fail(ErrorKind kind, const std::string& what) const {
    throw CheckpointError(
        kind,
        origin_.path,
        what + " in " + quoted(origin_.record_name),
        origin_.file_offset + op_offset_);
  }
  [[noreturn]] void fail_op(const std::string& what) const {
    fail(
        ErrorKind::kCorrupt,
        opcode_text(static_cast<uint8_t>(opcode_)) + " " + what);
  }

  // Inlined into its loop: most opcodes are a few instructions, fewer than a
  // call of a function of this size.
  [[gnu::always_inline]] inline void step(PickleOpcode opcode);

  // Arguments of opcodes. What they point to is valid until the next is taken.
  void require_bytes(uint64_t byte_count) const;
  const std::byte* take(uint64_t byte_count) {
    if (byte_count > reader_.buffered_bytes()) [[unlikely]] {
      require_bytes(byte_count);
    }
    return reader_.take(byte_count);
  }
  template <std::unsigned_integral T>
  uint64_t take_uint() {
    return load_as<T>(take(sizeof(T)));
  }
  // pickletools' int4 in the role of a size.
  uint64_t take_signed_size() {
    const auto value = static_cast<int32_t>(take_uint<uint32_t>());
    if (value < 0) {
      fail_op("has the size " + std::to_string(value) + ", expected 0 or more");
    }
    return static_cast<uint64_t>(value);
  }
  std::string_view take_line();
  uint64_t take_decimal_line();

  // The stack; nothing below the topmost mark can be reached.
  void push(ValueId id) {
    stack_.push(id);
  }
  void require(size_t count) const {
    if (stack_.size() - floor_ < count) [[unlikely]] {
      fail_stack(count);
    }
  }
  [[noreturn]] void fail_stack(size_t expected_count) const;
  ValueId top() const {
    require(1);
    return stack_[stack_.size() - 1];
  }
  ValueId pop() {
    const ValueId id = top();
    stack_.cut(stack_.size() - 1);
    return id;
  }
  void push_mark() {
    marks_.push_back(floor_);
    floor_ = stack_.size();
  }
  // Takes the topmost mark away and returns where its values begin; they stay
  // until the caller drops them.
  size_t pop_mark() {
    if (marks_.empty()) {
      fail_op("finds no mark on the stack, expected one");
    }
    const size_t begin = floor_;
    floor_ = marks_.back();
    marks_.pop_back();
    return begin;
  }
  std::span<const ValueId> values_from(size_t begin) const {
    return stack_.from(begin);
  }

  // Nodes.
  ValueId add(ValueKind kind, uint32_t first, uint32_t second = 0) {
    tree_.nodes_.push_back({first, second, kind});
    return static_cast<ValueId>(tree_.nodes_.size() - 1);
  }
  ValueId add_bits(ValueKind kind, uint64_t bits) {
    return add(
        kind,
        static_cast<uint32_t>(bits),
        static_cast<uint32_t>(bits >> 32));
  }
  ValueId add_int(int64_t value) {
    if (value >= 0 && static_cast<uint64_t>(value) < kSmallIntCount) {
      return kFirstSmallIntId + static_cast<ValueId>(value);
    }
    // Sizes come again and again.
    ValueId& recent =
        recent_ints_[static_cast<uint64_t>(value) % recent_ints_.size()];
    if (tree_.int_value(recent) != value) {
      recent = add_bits(ValueKind::kInt, static_cast<uint64_t>(value));
    }
    return recent;
  }
  // Of the next bytes.
  ValueId add_text(ValueKind kind, uint64_t byte_count);
  ValueId add_text(ValueKind kind, std::string_view text);
  ValueId add_line(std::string_view line) {
    return add_text(ValueKind::kString, line);
  }
  ValueId add_long(uint64_t byte_count);
  ValueId add_decimal(std::string_view text);
  ValueId add_float(double value) {
    return add_bits(ValueKind::kFloat, std::bit_cast<uint64_t>(value));
  }
  ValueId add_float_line();
  ValueId add_string_line();
  ValueId add_tuple(std::span<const ValueId> values);
  ValueId add_container(ValueKind kind, std::span<const ValueId> values = {});
  ValueId add_global(ValueId module, ValueId name);
  ValueId add_object(ValueId callable, ValueId args);
  ValueId add_persistent(ValueId pid) {
    ++tree_.persistent_count_;
    return add(ValueKind::kPersistent, pid, static_cast<uint32_t>(op_offset_));
  }
  // A class of TorchScript, which lives in the module __torch__.
  [[nodiscard]] bool is_script_class(ValueId callable) const;
  PickleTree::ObjectExtras& extras_of(ValueId object);

  // Mutation.
  uint32_t add_sequence() {
    tree_.sequences_.emplace_back();
    return static_cast<uint32_t>(tree_.sequences_.size() - 1);
  }
  void extend(uint32_t sequence, std::span<const ValueId> values);
  void add_items(
      ValueId container,
      ValueKind kind,
      std::span<const ValueId> values);
  void add_entries(ValueId container, std::span<const ValueId> values);
  void build(ValueId object, ValueId state);
  void flatten_sequences();

  // Memo.
  void memoize(uint64_t key) {
    // As picklers do it.
    if (key == memo_.size() && key <= op_offset_ && sparse_memo_.empty())
        [[likely]] {
      memo_.push(top());
      ++memo_count_;
    } else {
      memoize_elsewhere(key);
    }
  }
  void memoize_elsewhere(uint64_t key);
  ValueId recall(uint64_t key) const;

  PickleOrigin origin_;
  PickleTree tree_;
  const uint64_t size_bytes_;
  SourceReader reader_;
  std::byte opcode_{};      // the one that runs
  uint64_t op_offset_ = 0;  // in the pickle

  IdBuffer stack_;
  std::vector<size_t> marks_;  // the floors below the topmost mark
  size_t floor_ = 0;
  std::vector<Run> runs_;

  std::array<ValueId, 256> recent_ints_{};  // by value, modulo

  // Picklers count memo keys up from 0; a key that is too large for that goes
  // to the map, so that one opcode cannot ask for gigabytes of empty slots.
  IdBuffer memo_;
  std::map<uint64_t, ValueId> sparse_memo_;
  uint64_t memo_count_ = 0;
};

void PickleMachine::step(PickleOpcode opcode) {
  using enum PickleOpcode;
  switch (opcode) {
    case k_PROTO:
      if (const uint64_t protocol = take_uint<uint8_t>();
          protocol > kHighestProtocol) {
        fail(
            ErrorKind::kUnsupported,
            "pickle protocol " + std::to_string(protocol) +
                " is not supported, expected at most 5");
      }
      return;
    case k_FRAME:
      // Frames only help readers that buffer; the next opcode follows.
      if (const uint64_t frame_bytes = take_uint<uint64_t>();
          frame_bytes > reader_.remaining_bytes()) {
        fail_op(
            "has " + std::to_string(frame_bytes) +
            " bytes, expected at most the remaining " +
            std::to_string(reader_.remaining_bytes()));
      }
      return;
    case k_STOP:
      tree_.root_ = pop();
      return;

    case k_MARK:
      return push_mark();
    case k_POP:
      // As pickle.py: a mark with nothing above it counts as a value.
      if (stack_.size() == floor_ && !marks_.empty()) {
        (void)pop_mark();
      } else {
        (void)pop();
      }
      return;
    case k_POP_MARK:
      stack_.cut(pop_mark());
      return;
    case k_DUP:
      return push(top());

    case k_NONE:
      return push(kNoneId);
    case k_NEWTRUE:
      return push(kTrueId);
    case k_NEWFALSE:
      return push(kFalseId);
    case k_BININT1:
      return push(add_int(static_cast<int64_t>(take_uint<uint8_t>())));
    case k_BININT2:
      return push(add_int(static_cast<int64_t>(take_uint<uint16_t>())));
    case k_BININT:
      return push(add_int(static_cast<int32_t>(take_uint<uint32_t>())));
    case k_LONG1:
      return push(add_long(take_uint<uint8_t>()));
    case k_LONG4:
      return push(add_long(take_signed_size()));
    case k_INT: {
      // Protocol 0 writes bools as the ints 00 and 01.
      const std::string_view line = take_line();
      if (line == "00" || line == "01") {
        return push(line == "01" ? kTrueId : kFalseId);
      }
      return push(add_decimal(line));
    }
    case k_LONG: {
      std::string_view line = take_line();
      if (line.ends_with('L')) {
        line.remove_suffix(1);
      }
      return push(add_decimal(line));
    }
    case k_FLOAT:
      return push(add_float_line());
    case k_BINFLOAT: {
      // Big-endian, the only such number in a pickle.
      const std::byte* bytes = take(8);
      uint64_t bits = 0;
      for (int i = 0; i < 8; ++i) {
        bits = bits << 8 | std::to_integer<uint64_t>(bytes[i]);
      }
      return push(add_bits(ValueKind::kFloat, bits));
    }

    case k_SHORT_BINUNICODE:
      return push(add_text(ValueKind::kString, take_uint<uint8_t>()));
    case k_BINUNICODE:
      return push(add_text(ValueKind::kString, take_uint<uint32_t>()));
    case k_BINUNICODE8:
      return push(add_text(ValueKind::kString, take_uint<uint64_t>()));
    // Python 2's str: torch.load decodes it as a string.
    case k_SHORT_BINSTRING:
      return push(add_text(ValueKind::kString, take_uint<uint8_t>()));
    case k_BINSTRING:
      return push(add_text(ValueKind::kString, take_signed_size()));
    case k_STRING:
      return push(add_string_line());
    case k_UNICODE:
      return push(
          add_text(ValueKind::kString, decode_raw_unicode(take_line())));
    case k_SHORT_BINBYTES:
      return push(add_text(ValueKind::kBytes, take_uint<uint8_t>()));
    case k_BINBYTES:
      return push(add_text(ValueKind::kBytes, take_uint<uint32_t>()));
    case k_BINBYTES8:
    case k_BYTEARRAY8:
      return push(add_text(ValueKind::kBytes, take_uint<uint64_t>()));

    case k_EMPTY_TUPLE:
      return push(kEmptyTupleId);
    case k_TUPLE1:
    case k_TUPLE2:
    case k_TUPLE3: {
      const size_t count =
          static_cast<size_t>(opcode) - static_cast<size_t>(k_TUPLE1) + 1;
      require(count);
      const size_t begin = stack_.size() - count;
      const ValueId tuple = add_tuple(values_from(begin));
      stack_.cut(begin);
      return push(tuple);
    }
    case k_TUPLE: {
      const size_t begin = pop_mark();
      const ValueId tuple = add_tuple(values_from(begin));
      stack_.cut(begin);
      return push(tuple);
    }
    case k_EMPTY_LIST:
      return push(add_container(ValueKind::kList));
    case k_EMPTY_DICT:
      return push(add_container(ValueKind::kDict));
    case k_EMPTY_SET:
      return push(add_container(ValueKind::kSet));
    case k_LIST:
    case k_FROZENSET: {
      const size_t begin = pop_mark();
      const ValueId container = add_container(
          opcode == k_LIST ? ValueKind::kList : ValueKind::kSet,
          values_from(begin));
      stack_.cut(begin);
      return push(container);
    }
    case k_DICT: {
      const size_t begin = pop_mark();
      const ValueId dict = add_container(ValueKind::kDict);
      add_entries(dict, values_from(begin));
      stack_.cut(begin);
      return push(dict);
    }
    case k_APPEND: {
      require(2);
      add_items(
          stack_[stack_.size() - 2],
          ValueKind::kList,
          values_from(stack_.size() - 1));
      stack_.cut(stack_.size() - 1);
      return;
    }
    case k_APPENDS:
    case k_ADDITEMS: {
      const size_t begin = pop_mark();
      if (begin == floor_) {
        fail_op("finds no container below the mark, expected one");
      }
      add_items(
          stack_[begin - 1],
          opcode == k_APPENDS ? ValueKind::kList : ValueKind::kSet,
          values_from(begin));
      stack_.cut(begin);
      return;
    }
    case k_SETITEM:
      require(3);
      add_entries(stack_[stack_.size() - 3], values_from(stack_.size() - 2));
      stack_.cut(stack_.size() - 2);
      return;
    case k_SETITEMS: {
      const size_t begin = pop_mark();
      if (begin == floor_) {
        fail_op("finds no container below the mark, expected one");
      }
      add_entries(stack_[begin - 1], values_from(begin));
      stack_.cut(begin);
      return;
    }

    case k_GLOBAL: {
      const ValueId module = add_line(take_line());
      const ValueId name = add_line(take_line());
      return push(add_global(module, name));
    }
    case k_STACK_GLOBAL: {
      require(2);
      const ValueId name = pop();
      const ValueId module = pop();
      return push(add_global(module, name));
    }
    case k_REDUCE:
    case k_NEWOBJ: {
      require(2);
      ValueId args = pop();
      const ValueId callable = pop();
      // torch/csrc/jit/serialization/pickler.cpp, Pickler::pushIValueImpl: an
      // enum's value stands for the tuple of it.
      if (tree_.kind(args) != ValueKind::kTuple && is_script_class(callable)) {
        args = add_tuple(std::span(&args, 1));
      }
      return push(add_object(callable, args));
    }
    case k_NEWOBJ_EX: {
      require(3);
      const ValueId keyword_args = pop();
      const ValueId args = pop();
      const ValueId callable = pop();
      const ValueId object = add_object(callable, args);
      extras_of(object).keyword_args = keyword_args;
      return push(object);
    }
    case k_OBJ: {
      const size_t begin = pop_mark();
      if (begin == stack_.size()) {
        fail_op("finds no class above the mark, expected one");
      }
      const ValueId callable = stack_[begin];
      const ValueId args = add_tuple(values_from(begin + 1));
      stack_.cut(begin);
      return push(add_object(callable, args));
    }
    case k_INST: {
      const ValueId module = add_line(take_line());
      const ValueId name = add_line(take_line());
      const size_t begin = pop_mark();
      const ValueId args = add_tuple(values_from(begin));
      stack_.cut(begin);
      return push(add_object(add_global(module, name), args));
    }
    case k_BUILD: {
      require(2);
      const ValueId state = pop();
      return build(top(), state);
    }
    case k_PERSID:
      return push(add_persistent(add_line(take_line())));
    case k_BINPERSID: {
      const ValueId pid = pop();
      return push(add_persistent(pid));
    }

    case k_PUT:
      return memoize(take_decimal_line());
    case k_BINPUT:
      return memoize(take_uint<uint8_t>());
    case k_LONG_BINPUT:
      return memoize(take_uint<uint32_t>());
    case k_MEMOIZE:
      return memoize(memo_count_);
    case k_GET:
      return push(recall(take_decimal_line()));
    case k_BINGET:
      return push(recall(take_uint<uint8_t>()));
    case k_LONG_BINGET:
      return push(recall(take_uint<uint32_t>()));

    case k_EXT1:
    case k_EXT2:
    case k_EXT4:
    case k_NEXT_BUFFER:
    case k_READONLY_BUFFER:
      fail(
          ErrorKind::kUnsupported,
          opcode_text(static_cast<uint8_t>(opcode)) +
              " refers to something outside the pickle, expected a pickle "
              "that is whole");
  }
  fail(
      ErrorKind::kCorrupt,
      "found byte 0x" + hex_bytes({&opcode_, 1}) +
          ", expected a pickle opcode");
}

PickleTree PickleMachine::run() {
  // INST makes 5 nodes of 3 bytes, a value lies in the pool twice after
  // flattening, and escaped text doubles at most.
  if (size_bytes_ >= kPickleLimitBytes) {
    fail(
        ErrorKind::kUnsupported,
        "the pickle has " + std::to_string(size_bytes_) +
            " bytes, expected less than 2 GiB");
  }
  // What torch.save stays under; untouched pages of a reserve cost nothing.
  tree_.nodes_.reserve(kFirstSmallIntId + kSmallIntCount + size_bytes_ / 8);
  tree_.pool_.reserve(size_bytes_ / 4);
  tree_.objects_.reserve(size_bytes_ / 32);
  tree_.texts_.reserve(size_bytes_ / 4);
  memo_.reserve(size_bytes_ / 8);
  add(ValueKind::kNone, 0);
  add(ValueKind::kBool, 0);
  add(ValueKind::kBool, 1);
  add(ValueKind::kTuple, 0);
  for (uint64_t value = 0; value < kSmallIntCount; ++value) {
    add_bits(ValueKind::kInt, value);
  }
  recent_ints_.fill(kFirstSmallIntId);
  while (tree_.root_ == kNoValue) {
    op_offset_ = reader_.file_offset() - origin_.file_offset;
    if (op_offset_ == size_bytes_) {
      fail(
          ErrorKind::kCorrupt,
          "the pickle ends after " + std::to_string(size_bytes_) +
              " bytes, expected a STOP opcode");
    }
    opcode_ = *reader_.take(1);
    step(static_cast<PickleOpcode>(opcode_));
  }
  flatten_sequences();
  return std::move(tree_);
}

void PickleMachine::require_bytes(uint64_t byte_count) const {
  if (byte_count > reader_.remaining_bytes()) {
    fail_op(
        "needs " + std::to_string(byte_count) + " more bytes, expected at " +
        "most the remaining " + std::to_string(reader_.remaining_bytes()));
  }
}

void PickleMachine::fail_stack(size_t expected_count) const {
  fail_op(
      "finds " + std::to_string(stack_.size() - floor_) +
      " values on the stack, expected " + std::to_string(expected_count));
}

std::string_view PickleMachine::take_line() {
  const std::optional<std::string_view> line = reader_.take_line();
  if (!line.has_value()) {
    fail_op("needs a line, expected a newline in front of the end");
  }
  return *line;
}

uint64_t PickleMachine::take_decimal_line() {
  const std::string_view line = take_line();
  uint64_t value = 0;
  const char* const end = line.data() + line.size();
  const auto [parsed_end, error] = std::from_chars(line.data(), end, value);
  if (error != std::errc() || parsed_end != end) {
    fail_op("has the key " + quoted(line) + ", expected a number");
  }
  return value;
}

ValueId PickleMachine::add_text(ValueKind kind, uint64_t byte_count) {
  if (byte_count <= kFewTextBytes) {
    return add_text(
        kind,
        {reinterpret_cast<const char*>(take(byte_count)), byte_count});
  }
  require_bytes(byte_count);
  const size_t begin = tree_.texts_.size();
  const ValueId id =
      add(kind,
          static_cast<uint32_t>(begin),
          static_cast<uint32_t>(byte_count));
  tree_.texts_.resize(begin + byte_count);
  reader_.take_into(
      std::as_writable_bytes(std::span(tree_.texts_).subspan(begin)));
  return id;
}

ValueId PickleMachine::add_text(ValueKind kind, std::string_view text) {
  // A long int's text is longer than its bytes.
  constexpr uint64_t kMostTextBytes = 0xFFFFFFFF;
  if (text.size() > kMostTextBytes - tree_.texts_.size()) {
    fail(ErrorKind::kUnsupported, "has 4 GiB of texts or more, expected fewer");
  }
  const ValueId id =
      add(kind,
          static_cast<uint32_t>(tree_.texts_.size()),
          static_cast<uint32_t>(text.size()));
  tree_.texts_ += text;
  return id;
}

ValueId PickleMachine::add_long(uint64_t byte_count) {
  const std::byte* bytes = take(byte_count);
  if (byte_count == 0) {
    return add_int(0);
  }
  // Bytes that only repeat the sign; a hostile file's, or another writer's.
  const auto is_negative = [&](uint64_t position) {
    return (std::to_integer<unsigned>(bytes[position]) & 0x80U) != 0;
  };
  while (byte_count > 8 &&
         bytes[byte_count - 1] ==
             (is_negative(byte_count - 2) ? std::byte{0xFF} : std::byte{0})) {
    --byte_count;
  }
  if (byte_count > 8) {
    return add_text(
        ValueKind::kBigInt,
        integer_text({reinterpret_cast<const char*>(bytes), byte_count}));
  }
  const unsigned unused_bits = static_cast<unsigned>(64 - 8 * byte_count);
  const uint64_t value = load_little_endian(bytes, byte_count);
  return add_int(static_cast<int64_t>(value << unused_bits) >> unused_bits);
}

ValueId PickleMachine::add_decimal(std::string_view text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [parsed_end, error] = std::from_chars(text.data(), end, value);
  if (parsed_end != end || error == std::errc::invalid_argument) {
    fail_op("has the number " + quoted(text) + ", expected decimal digits");
  }
  return error == std::errc() ? add_int(value)
                              : add_text(ValueKind::kBigInt, text);
}

ValueId PickleMachine::add_float_line() {
  const std::string_view line = take_line();
  // float.__repr__ of what the stream below does not read.
  if (line == "nan") {
    return add_float(std::numeric_limits<double>::quiet_NaN());
  }
  if (line == "inf" || line == "-inf") {
    const double infinity = std::numeric_limits<double>::infinity();
    return add_float(line == "inf" ? infinity : -infinity);
  }
  std::istringstream stream{std::string(line)};
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  if (stream.fail() ||
      stream.peek() != std::istringstream::traits_type::eof()) {
    fail_op("has the number " + quoted(line) + ", expected a float");
  }
  return add_float(value);
}

ValueId PickleMachine::add_string_line() {
  const std::string_view line = take_line();
  if (line.size() < 2 || line.front() != line.back() ||
      (line.front() != '\'' && line.front() != '"')) {
    fail_op("has the string " + quoted(line) + ", expected it in quotes");
  }
  return add_text(
      ValueKind::kString,
      decode_escapes(line.substr(1, line.size() - 2)));
}

ValueId PickleMachine::add_tuple(std::span<const ValueId> values) {
  if (values.empty()) {
    return kEmptyTupleId;
  }
  const auto begin = static_cast<uint32_t>(tree_.pool_.size());
  tree_.pool_.append(values);
  return add(ValueKind::kTuple, begin, static_cast<uint32_t>(values.size()));
}

ValueId PickleMachine::add_container(
    ValueKind kind,
    std::span<const ValueId> values) {
  const uint32_t sequence = add_sequence();
  extend(sequence, values);
  return add(kind, sequence);
}

ValueId PickleMachine::add_global(ValueId module, ValueId name) {
  for (const ValueId part : {module, name}) {
    if (tree_.kind(part) != ValueKind::kString) {
      fail_op(
          std::string("finds ") + kind_text(tree_.kind(part)) +
          " as part of a name, expected a string");
    }
  }
  tree_.globals_.push_back({module, name});
  return add(
      ValueKind::kGlobal,
      static_cast<uint32_t>(tree_.globals_.size() - 1));
}

bool PickleMachine::is_script_class(ValueId callable) const {
  if (tree_.kind(callable) != ValueKind::kGlobal) {
    return false;
  }
  const std::string_view module =
      tree_.global(tree_.global_index(callable)).module;
  return module == "__torch__" || module.starts_with("__torch__.");
}

ValueId PickleMachine::add_object(ValueId callable, ValueId args) {
  if (tree_.kind(args) != ValueKind::kTuple) {
    fail_op(
        std::string("finds ") + kind_text(tree_.kind(args)) +
        " as arguments, expected a tuple");
  }
  tree_.objects_.push_back(
      {callable, args, static_cast<uint32_t>(op_offset_), kNoValue});
  return add(
      ValueKind::kObject,
      static_cast<uint32_t>(tree_.objects_.size() - 1));
}

PickleTree::ObjectExtras& PickleMachine::extras_of(ValueId object) {
  uint32_t& index = tree_.objects_[tree_.object_index(object)].extras_index;
  if (index == kNoValue) {
    index = static_cast<uint32_t>(tree_.extras_.size());
    tree_.extras_.emplace_back();
  }
  return tree_.extras_[index];
}

void PickleMachine::extend(
    uint32_t sequence_index,
    std::span<const ValueId> values) {
  if (values.empty()) {
    return;
  }
  PickleTree::Sequence& sequence = tree_.sequences_[sequence_index];
  IdBuffer& pool = tree_.pool_;
  const auto begin = static_cast<uint32_t>(pool.size());
  const auto count = static_cast<uint32_t>(values.size());
  pool.append(values);
  if (sequence.second != kNoValue) {
    Run& last = runs_[sequence.second];
    if (last.begin + last.count == begin) {
      last.count += count;
      return;
    }
    last.next = static_cast<uint32_t>(runs_.size());
  } else {
    sequence.first = static_cast<uint32_t>(runs_.size());
  }
  sequence.second = static_cast<uint32_t>(runs_.size());
  runs_.push_back({begin, count, kNoValue});
}

void PickleMachine::add_items(
    ValueId container,
    ValueKind kind,
    std::span<const ValueId> values) {
  if (tree_.kind(container) == kind) {
    extend(tree_.nodes_[container].first, values);
    return;
  }
  if (tree_.kind(container) != ValueKind::kObject) {
    fail_op(
        std::string("adds to ") + kind_text(tree_.kind(container)) +
        ", expected " + kind_text(kind) + " or an object");
  }
  uint32_t& sequence = extras_of(container).items_sequence;
  if (sequence == kNoValue) {
    sequence = add_sequence();
  }
  extend(sequence, values);
}

void PickleMachine::add_entries(
    ValueId container,
    std::span<const ValueId> values) {
  if (values.size() % 2 != 0) {
    fail_op(
        "finds " + std::to_string(values.size()) +
        " keys and values, expected as many keys as values");
  }
  if (tree_.kind(container) == ValueKind::kDict) {
    extend(tree_.nodes_[container].first, values);
    return;
  }
  if (tree_.kind(container) != ValueKind::kObject) {
    fail_op(
        std::string("adds to ") + kind_text(tree_.kind(container)) +
        ", expected a dict or an object");
  }
  uint32_t& sequence = extras_of(container).entries_sequence;
  if (sequence == kNoValue) {
    sequence = add_sequence();
  }
  extend(sequence, values);
}

void PickleMachine::build(ValueId object, ValueId state) {
  if (tree_.kind(object) != ValueKind::kObject) {
    fail_op(
        std::string("sets the state of ") + kind_text(tree_.kind(object)) +
        ", expected an object");
  }
  extras_of(object).state = state;
}

void PickleMachine::flatten_sequences() {
  for (PickleTree::Sequence& sequence : tree_.sequences_) {
    if (sequence.first == kNoValue) {
      sequence = {0, 0};
      continue;
    }
    const Run first = runs_[sequence.first];
    if (first.next == kNoValue) {
      sequence = {first.begin, first.count};
      continue;
    }
    const size_t begin = tree_.pool_.size();
    for (uint32_t i = sequence.first; i != kNoValue; i = runs_[i].next) {
      const Run& run = runs_[i];
      for (uint32_t j = 0; j < run.count; ++j) {
        tree_.pool_.push(tree_.pool_[run.begin + j]);
      }
    }
    sequence = {
        static_cast<uint32_t>(begin),
        static_cast<uint32_t>(tree_.pool_.size() - begin)};
  }
}

void PickleMachine::memoize_elsewhere(uint64_t key) {
  const ValueId id = top();
  // No pickler is further than one key an opcode; linear memory, see memo_.
  if (key <= op_offset_) {
    if (key == memo_.size()) {
      memo_.push(id);
      memo_count_ +=
          sparse_memo_.empty() || !sparse_memo_.contains(key) ? 1 : 0;
      return;
    }
    if (key > memo_.size()) {
      memo_.pad(key + 1, kNoValue);
    }
    if (memo_[key] == kNoValue && !sparse_memo_.contains(key)) {
      ++memo_count_;
    }
    memo_[key] = id;
    return;
  }
  memo_count_ += sparse_memo_.insert_or_assign(key, id).second ? 1 : 0;
}

ValueId PickleMachine::recall(uint64_t key) const {
  // A key may be in both: the map has those stored early, under a high number.
  if (key < memo_.size() && memo_[key] != kNoValue) {
    return memo_[key];
  }
  const auto found = sparse_memo_.find(key);
  if (found == sparse_memo_.end()) {
    fail_op(
        "asks for memo " + std::to_string(key) + ", expected one of the " +
        std::to_string(memo_count_) + " stored so far");
  }
  return found->second;
}

PickleTree PickleTree::load(
    const ByteSource& source,
    uint64_t size_bytes,
    const PickleOrigin& origin) {
  return PickleMachine(source, size_bytes, origin).run();
}

double PickleTree::float_value(ValueId id) const noexcept {
  return std::bit_cast<double>(bits_of(nodes_[id]));
}

std::string_view PickleTree::text(ValueId id) const noexcept {
  const Node& node = nodes_[id];
  return {texts_.data() + node.first, node.second};
}

std::span<const ValueId> PickleTree::items(ValueId id) const noexcept {
  const Node& node = nodes_[id];
  if (node.kind == ValueKind::kTuple) {
    return {pool_.data() + node.first, node.second};
  }
  return sequence_items(node.first);
}

PickleObject PickleTree::object(ValueId id) const noexcept {
  const Object& object = objects_[object_index(id)];
  PickleObject result;
  result.callable = object.callable;
  result.args = object.args;
  result.pickle_offset = object.pickle_offset;
  if (object.extras_index != kNoValue) {
    const ObjectExtras& extras = extras_[object.extras_index];
    result.keyword_args = extras.keyword_args;
    result.state = extras.state;
    result.items = sequence_items(extras.items_sequence);
    result.entries = sequence_items(extras.entries_sequence);
  }
  return result;
}

std::span<const ValueId> PickleTree::sequence_items(
    uint32_t index) const noexcept {
  if (index == kNoValue) {
    return {};
  }
  return {pool_.data() + sequences_[index].first, sequences_[index].second};
}

}  // namespace ckpt_streamer::format

#include "write/pickle_writer.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "format/pickle_globals.h"
#include "format/pickle_opcodes.h"
#include "format/text.h"
#include "write/text_buffer.h"

namespace ckpt_streamer::write {
namespace {

using format::CheckpointIndex;
using format::kNoNode;
using format::NodeId;
using format::NodeKind;
using format::quoted;
using format::TensorRecord;
using format::ValueTree;
using Op = format::PickleOpcode;

constexpr uint32_t kNoMemo = 0xFFFFFFFF;

// Items between two opcodes that add them. CPython's pickle.py, _BATCHSIZE.
constexpr size_t kBatch = 1000;

// Decimal digits are converted in quadratic time.
constexpr size_t kMostDigits = 5000;

// The magnitude's bytes of "[-]digits" or "[-]0x...", the lowest first.
std::optional<std::vector<uint8_t>> magnitude_of(std::string_view text) {
  unsigned base = 10;
  if (text.starts_with("0x")) {
    base = 16;
    text.remove_prefix(2);
  }
  if (text.empty() || (base == 10 && text.size() > kMostDigits)) {
    return std::nullopt;
  }
  std::vector<uint8_t> bytes;
  if (base == 16) {
    bytes.reserve(text.size() / 2 + 1);
  }
  size_t nibbles = 0;
  if (base == 16) {
    std::string reversed(text.rbegin(), text.rend());
    for (const char c : reversed) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) {
        return std::nullopt;
      }
      if (nibbles++ % 2 == 0) {
        bytes.push_back(static_cast<uint8_t>(digit));
      } else {
        bytes.back() = static_cast<uint8_t>(bytes.back() | digit << 4);
      }
    }
    return bytes;
  }
  for (const char c : text) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    unsigned carry = static_cast<unsigned>(c - '0');
    for (uint8_t& byte : bytes) {
      carry += byte * base;
      byte = static_cast<uint8_t>(carry & 0xFF);
      carry >>= 8;
    }
    if (carry != 0) {
      bytes.push_back(static_cast<uint8_t>(carry));
    }
  }
  return bytes;
}

// As pickle's encode_long(): two's complement, as short as it can be.
std::optional<std::string> long_bytes(std::string_view text) {
  const bool is_negative = text.starts_with('-');
  auto bytes = magnitude_of(text.substr(is_negative ? 1 : 0));
  if (!bytes.has_value()) {
    return std::nullopt;
  }
  bytes->push_back(0);
  if (is_negative) {
    unsigned carry = 1;
    for (uint8_t& byte : *bytes) {
      carry += static_cast<uint8_t>(~byte);
      byte = static_cast<uint8_t>(carry & 0xFF);
      carry >>= 8;
    }
  }
  while (bytes->size() > 1) {
    const uint8_t last = bytes->back();
    const bool is_sign = ((*bytes)[bytes->size() - 2] & 0x80) != 0;
    if (!(last == 0 && !is_sign) && !(last == 0xFF && is_sign)) {
      break;
    }
    bytes->pop_back();
  }
  return std::string(bytes->begin(), bytes->end());
}

class PickleWriter {
 public:
  PickleWriter(const std::string& path, const PlannedFile& file, Opaque opaque)
      : path_(path),
        index_(file.index),
        tree_(file.index.values),
        is_left_out_(file.is_left_out),
        opaque_(opaque),
        memo_(tree_.size(), kNoMemo),
        is_open_(tree_.size(), false) {}

  std::string write() {
    put(Op::k_PROTO);
    out_ += '\x02';
    push(Task::kValue, tree_.root());
    while (!tasks_.empty()) {
      const Step step = tasks_.back();
      tasks_.pop_back();
      run(step);
    }
    put(Op::k_STOP);
    return std::move(out_);
  }

 private:
  enum class Task : uint8_t {
    kValue,
    kKey,
    kMark,      // MARK
    kSetItems,  // SETITEMS
    kAppends,   // APPENDS
    kTuple,     // closes a tuple: TUPLE and its memo
    kSet,       // closes a set
    kBuild,     // BUILD
    kNone,      // None, for what is left out
  };
  struct Step {
    Task task;
    NodeId node;
  };

  void push(Task task, NodeId node = kNoNode) {
    tasks_.push_back({task, node});
  }

  void put(Op op) {
    out_ += static_cast<char>(op);
  }

  void put_u32(uint32_t value) {
    append_little_endian(out_, value, 4);
  }

  void put_memo(uint32_t number) {
    if (number < 256) {
      put(Op::k_BINPUT);
      out_ += static_cast<char>(number);
    } else {
      put(Op::k_LONG_BINPUT);
      put_u32(number);
    }
  }

  void get_memo(uint32_t number) {
    if (number < 256) {
      put(Op::k_BINGET);
      out_ += static_cast<char>(number);
    } else {
      put(Op::k_LONG_BINGET);
      put_u32(number);
    }
  }

  void remember(NodeId node) {
    memo_[node] = next_memo_;
    put_memo(next_memo_++);
  }

  // Once each; then by its number.
  template <typename Make>
  void put_shared(const std::string& what, Make make) {
    const auto [found, is_new] = constants_.emplace(what, next_memo_);
    if (!is_new) {
      get_memo(found->second);
      return;
    }
    make();
    put_memo(next_memo_++);
  }

  void put_text(std::string_view text) {
    put(Op::k_BINUNICODE);
    put_u32(static_cast<uint32_t>(text.size()));
    out_ += text;
  }

  void put_constant_text(const std::string& text) {
    put_shared("'" + text, [&] { put_text(text); });
  }

  void put_global(const std::string& module, const std::string& name) {
    put_shared(module + "\n" + name, [&] {
      put(Op::k_GLOBAL);
      out_ += module + "\n" + name + "\n";
    });
  }

  void put_int(int64_t value) {
    if (value >= 0 && value <= 0xFF) {
      put(Op::k_BININT1);
      append_little_endian(out_, static_cast<uint64_t>(value), 1);
    } else if (value >= 0 && value <= 0xFFFF) {
      put(Op::k_BININT2);
      append_little_endian(out_, static_cast<uint64_t>(value), 2);
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
      put(Op::k_BININT);
      put_u32(static_cast<uint32_t>(value));
    } else {
      put_long(*long_bytes(std::to_string(value)));
    }
  }

  void put_long(const std::string& bytes) {
    if (bytes.size() < 256) {
      put(Op::k_LONG1);
      out_ += static_cast<char>(bytes.size());
    } else {
      put(Op::k_LONG4);
      put_u32(static_cast<uint32_t>(bytes.size()));
    }
    out_ += bytes;
  }

  void put_float(double value) {
    put(Op::k_BINFLOAT);
    const auto bits = std::bit_cast<uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) {
      out_ += static_cast<char>(bits >> shift & 0xFF);
    }
  }

  void put_bool(bool value) {
    put(value ? Op::k_NEWTRUE : Op::k_NEWFALSE);
  }

  void put_ints(std::span<const int64_t> values) {
    if (values.empty()) {
      put(Op::k_EMPTY_TUPLE);
      return;
    }
    if (values.size() > 3) {
      put(Op::k_MARK);
    }
    for (const int64_t value : values) {
      put_int(value);
    }
    close_tuple(values.size());
  }

  void close_tuple(size_t count) {
    constexpr Op kTuples[] = {Op::k_TUPLE1, Op::k_TUPLE2, Op::k_TUPLE3};
    put(count > 3 ? Op::k_TUPLE : kTuples[count - 1]);
  }

  [[nodiscard]] bool is_missing(NodeId node) {
    if (tree_.kind(node) == NodeKind::kTensor) {
      return !is_left_out_.empty() && is_left_out_[tree_.tensor_index(node)];
    }
    return opaque_ == Opaque::kDrop && is_opaque(node);
  }

  // Whether only Python could write it.
  [[nodiscard]] bool is_opaque(NodeId node) const {
    switch (tree_.kind(node)) {
      case NodeKind::kObject:
      case NodeKind::kArray:
        return true;
      case NodeKind::kGlobal:
        return !torch_dtype(node).has_value();
      case NodeKind::kBigInt:
        return !long_bytes(tree_.text(node)).has_value();
      default:
        return false;
    }
  }

  [[nodiscard]] std::optional<std::string> torch_dtype(NodeId node) const {
    constexpr std::string_view kModule = "torch.";
    const std::string_view text = tree_.text(node);
    if (!text.starts_with(kModule)) {
      return std::nullopt;
    }
    std::string name(text.substr(kModule.size()));
    if (format::meaning_of({"torch", name}).role !=
        format::GlobalRole::kDType) {
      return std::nullopt;
    }
    return name;
  }

  [[noreturn]] void refuse(NodeId node, const std::string& what) const {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        path_,
        "the value " + quoted(name_of(node)) + " is " + what);
  }

  void refuse_opaque(NodeId node) const {
    std::string what = "a number of too many digits";
    switch (tree_.kind(node)) {
      case NodeKind::kObject:
      case NodeKind::kDict:
        what = "a " + std::string(tree_.object(node).type_name);
        break;
      case NodeKind::kArray:
        what = "a numpy array";
        break;
      case NodeKind::kGlobal:
        what = "the function or class " + std::string(tree_.text(node));
        break;
      default:
        break;
    }
    refuse(
        node,
        what +
            ", which only Python can write; expected a plain value, or "
            "opaque='drop', to leave such values out");
  }

  // The keys that lead to a node, by a search from the root: for errors.
  [[nodiscard]] std::string name_of(NodeId node) const {
    std::vector<std::pair<NodeId, std::string>> from(
        tree_.size(),
        {kNoNode, ""});
    std::vector<bool> is_seen(tree_.size(), false);
    std::deque<NodeId> next{tree_.root()};
    is_seen[tree_.root()] = true;
    const auto visit = [&](NodeId parent, NodeId child, std::string key) {
      if (child != kNoNode && !is_seen[child]) {
        is_seen[child] = true;
        from[child] = {parent, std::move(key)};
        next.push_back(child);
      }
    };
    while (!next.empty() && !is_seen[node]) {
      const NodeId at = next.front();
      next.pop_front();
      switch (tree_.kind(at)) {
        case NodeKind::kDict: {
          const auto entries = tree_.entries(at);
          for (size_t i = 0; i + 1 < entries.size(); i += 2) {
            visit(at, entries[i + 1], text_of_key(entries[i]));
            visit(at, entries[i], "<key>");
          }
          visit(at, tree_.object(at).state, "<attributes>");
          break;
        }
        case NodeKind::kTuple:
        case NodeKind::kList:
        case NodeKind::kSet: {
          const auto items = tree_.items(at);
          for (size_t i = 0; i < items.size(); ++i) {
            visit(at, items[i], std::to_string(i));
          }
          break;
        }
        default:
          break;
      }
    }
    std::string name;
    for (NodeId at = node; at != tree_.root() && at != kNoNode;
         at = from[at].first) {
      name = from[at].second + (name.empty() ? "" : "." + name);
    }
    return name;
  }

  [[nodiscard]] std::string text_of_key(NodeId key) const {
    switch (tree_.kind(key)) {
      case NodeKind::kString:
        return std::string(tree_.text(key));
      case NodeKind::kInt:
        return std::to_string(tree_.int_value(key));
      default:
        return "<key>";
    }
  }

  void run(const Step& step) {
    switch (step.task) {
      case Task::kValue:
        put_value(step.node);
        break;
      case Task::kKey:
        put_key(step.node);
        break;
      case Task::kMark:
        put(Op::k_MARK);
        break;
      case Task::kSetItems:
        put(Op::k_SETITEMS);
        break;
      case Task::kAppends:
        put(Op::k_APPENDS);
        break;
      case Task::kTuple:
        is_open_[step.node] = false;
        close_tuple(tree_.items(step.node).size());
        remember(step.node);
        break;
      case Task::kSet:
        is_open_[step.node] = false;
        close_tuple(1);
        put(Op::k_REDUCE);
        remember(step.node);
        break;
      case Task::kBuild:
        put(Op::k_BUILD);
        break;
      case Task::kNone:
        put(Op::k_NONE);
        break;
    }
  }

  void put_key(NodeId node) {
    switch (tree_.kind(node)) {
      case NodeKind::kList:
      case NodeKind::kDict:
      case NodeKind::kSet:
      case NodeKind::kTensor:
        refuse(node, "a key of a dict, expected a plain value as one");
      default:
        put_value(node);
    }
  }

  void put_value(NodeId node) {
    if (memo_[node] != kNoMemo) {
      get_memo(memo_[node]);
      return;
    }
    if (is_open_[node]) {
      refuse(node, "a tuple or set that holds itself, expected a plain one");
    }
    if (is_opaque(node)) {
      if (opaque_ == Opaque::kError) {
        refuse_opaque(node);
      }
      put(Op::k_NONE);
      return;
    }
    switch (tree_.kind(node)) {
      case NodeKind::kBool:
        put_bool(tree_.bool_value(node));
        break;
      case NodeKind::kInt:
        put_int(tree_.int_value(node));
        break;
      case NodeKind::kBigInt:
        put_long(*long_bytes(tree_.text(node)));
        break;
      case NodeKind::kFloat:
        put_float(tree_.float_value(node));
        break;
      case NodeKind::kComplex:
        put_global("__builtin__", "complex");
        for (const NodeId part : tree_.items(node)) {
          put_float(tree_.float_value(part));
        }
        close_tuple(2);
        put(Op::k_REDUCE);
        break;
      case NodeKind::kString:
        put_text(tree_.text(node));
        break;
      case NodeKind::kBytes:
        put_bytes(tree_.text(node));
        remember(node);
        break;
      case NodeKind::kTuple:
        open_tuple(node);
        break;
      case NodeKind::kList:
        put(Op::k_EMPTY_LIST);
        remember(node);
        push_items(node);
        break;
      case NodeKind::kDict:
        open_dict(node);
        break;
      case NodeKind::kSet:
        is_open_[node] = true;
        put_global("__builtin__", "set");
        put(Op::k_EMPTY_LIST);
        push(Task::kSet, node);
        push_items(node);
        break;
      case NodeKind::kTensor:
        put_tensor(index_.tensors[tree_.tensor_index(node)]);
        remember(node);
        break;
      case NodeKind::kGlobal:
        put_global("torch", *torch_dtype(node));
        break;
      case NodeKind::kNone:
      case NodeKind::kArray:
      case NodeKind::kObject:
        put(Op::k_NONE);
        break;
    }
  }

  // As Python 3 pickles them for protocol 2.
  void put_bytes(std::string_view bytes) {
    std::string text;
    for (const char byte : bytes) {
      format::append_utf8(text, static_cast<unsigned char>(byte));
    }
    put_global("_codecs", "encode");
    put_text(text);
    put_constant_text("latin1");
    close_tuple(2);
    put(Op::k_REDUCE);
  }

  void push_value(NodeId node) {
    if (is_missing(node)) {
      push(Task::kNone);
    } else {
      push(Task::kValue, node);
    }
  }

  void open_tuple(NodeId node) {
    const auto items = tree_.items(node);
    if (items.empty()) {
      put(Op::k_EMPTY_TUPLE);
      return;
    }
    is_open_[node] = true;
    if (items.size() > 3) {
      put(Op::k_MARK);
    }
    push(Task::kTuple, node);
    for (size_t i = items.size(); i-- > 0;) {
      push_value(items[i]);
    }
  }

  // Of a list or set, behind an empty list. Tasks are taken from their end.
  void push_items(NodeId node) {
    const auto items = tree_.items(node);
    for (size_t end = items.size(); end > 0;) {
      const size_t begin = (end - 1) / kBatch * kBatch;
      push(Task::kAppends);
      for (size_t i = end; i-- > begin;) {
        push_value(items[i]);
      }
      push(Task::kMark);
      end = begin;
    }
  }

  void open_dict(NodeId node) {
    const format::ObjectNode parts = tree_.object(node);
    const bool is_ordered = parts.type_name == "collections.OrderedDict";
    if (!is_ordered && parts.type_name != "dict" && opaque_ == Opaque::kError) {
      refuse_opaque(node);
    }
    if (is_ordered) {
      put_global("collections", "OrderedDict");
      put(Op::k_EMPTY_TUPLE);
      put(Op::k_REDUCE);
    } else {
      put(Op::k_EMPTY_DICT);
    }
    remember(node);
    if (is_ordered && parts.state != kNoNode && !is_missing(parts.state)) {
      push(Task::kBuild);
      push(Task::kValue, parts.state);
    }
    const auto entries = tree_.entries(node);
    std::vector<size_t> kept;
    kept.reserve(entries.size() / 2);
    for (size_t i = 0; i + 1 < entries.size(); i += 2) {
      if (!is_missing(entries[i]) && !is_missing(entries[i + 1])) {
        kept.push_back(i);
      }
    }
    for (size_t end = kept.size(); end > 0;) {
      const size_t begin = (end - 1) / kBatch * kBatch;
      push(Task::kSetItems);
      for (size_t i = end; i-- > begin;) {
        push(Task::kValue, entries[kept[i] + 1]);
        push(Task::kKey, entries[kept[i]]);
      }
      push(Task::kMark);
      end = begin;
    }
  }

  void put_empty_hooks() {
    put_global("collections", "OrderedDict");
    put(Op::k_EMPTY_TUPLE);
    put(Op::k_REDUCE);
  }

  void put_tensor(const TensorRecord& tensor) {
    if (tensor.is_parameter) {
      put_global("torch._utils", "_rebuild_parameter");
    }
    const auto storage_type = format::storage_type_name(tensor.dtype);
    const uint64_t bytes =
        index_.storages[tensor.storage_index].file_range.size_bytes();
    put_global(
        "torch._utils",
        storage_type.empty() ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
    put(Op::k_MARK);
    put(Op::k_MARK);
    put_constant_text("storage");
    if (storage_type.empty()) {
      put_global("torch.storage", "UntypedStorage");
    } else {
      put_global("torch", std::string(storage_type));
    }
    put_text(std::to_string(tensor.storage_index));
    put_constant_text("cpu");
    put_int(
        static_cast<int64_t>(
            storage_type.empty()
                ? bytes
                : bytes / format::item_size_bytes(tensor.dtype)));
    put(Op::k_TUPLE);
    put(Op::k_BINPERSID);
    put_int(static_cast<int64_t>(tensor.storage_offset_elements));
    put_ints(index_.sizes(tensor));
    put_ints(index_.strides(tensor));
    put_bool(tensor.requires_grad && !tensor.is_parameter);
    put_empty_hooks();
    if (storage_type.empty()) {
      put_global("torch", format::dtype_name(tensor.dtype));
    }
    if (tensor.is_conjugate || tensor.is_negative) {
      put(Op::k_EMPTY_DICT);
      for (const auto& [name, is_set] :
           {std::pair{"conj", tensor.is_conjugate},
            std::pair{"neg", tensor.is_negative}}) {
        if (is_set) {
          put_constant_text(name);
          put_bool(true);
          put(Op::k_SETITEM);
        }
      }
    }
    put(Op::k_TUPLE);
    put(Op::k_REDUCE);
    if (tensor.is_parameter) {
      put_bool(tensor.requires_grad);
      put_empty_hooks();
      close_tuple(3);
      put(Op::k_REDUCE);
    }
  }

  const std::string& path_;
  const CheckpointIndex& index_;
  const ValueTree& tree_;
  const std::vector<bool>& is_left_out_;
  const Opaque opaque_;
  std::string out_;
  std::vector<Step> tasks_;
  std::vector<uint32_t> memo_;  // by node
  std::vector<bool> is_open_;   // by node: a tuple or set that is not closed
  std::unordered_map<std::string, uint32_t> constants_;
  uint32_t next_memo_ = 0;
};

}  // namespace

Opaque opaque_of(const std::string& path, const std::string& text) {
  if (text == "error") {
    return Opaque::kError;
  }
  if (text == "drop") {
    return Opaque::kDrop;
  }
  throw CheckpointError(
      ErrorKind::kInvalidArgument,
      path,
      "opaque is " + quoted(text) + ", expected 'error' or 'drop'");
}

std::string write_pickle(
    const std::string& path,
    const PlannedFile& file,
    Opaque opaque) {
  return PickleWriter(path, file, opaque).write();
}

}  // namespace ckpt_streamer::write

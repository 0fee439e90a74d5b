#include <string>
#include <vector>

#include "base/error.h"
#include "format/torch_zip.h"
#include "memory_source.h"
#include "show_values.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::build_zip;
using testing::MemorySource;
using testing::show_values;
namespace p = testing::pickle;

CheckpointIndex read(const std::string& root) {
  const MemorySource source(build_zip(
      {{"a/data.pkl", p::program(root)},
       {"a/data/0", std::string(16, 'x')},
       {"a/data/1", std::string(8, 'y')}}));
  return read_torch_zip(source);
}

std::string values(const std::string& root) {
  return show_values(read(root).values);
}

// "name=tensor name=tensor"
std::string names(const std::string& root) {
  const CheckpointIndex index = read(root);
  std::string text;
  for (size_t i = 0; i < index.slots.size(); ++i) {
    text += (text.empty() ? "" : " ") + index.slot_name(i) + "=" +
            std::to_string(index.slots[i].tensor_index);
  }
  return text;
}

std::string vector0() {
  return p::float_vector("0", 4);
}

std::string vector1() {
  return p::float_vector("1", 2);
}

// NEWOBJ with arguments, and BUILD.
std::string object(
    const std::string& name,
    const std::string& args,
    const std::string& state) {
  return p::global("m", name) + args + "\x81" + state +
         (state.empty() ? "" : "b");
}

TEST(values_of_every_plain_kind) {
  EXPECT_EQ(
      values(
          p::list(
              {"N",
               p::boolean(true),
               p::integer(-7),
               "L36893488147419103232\n",
               "F1.5\n",
               p::text("a'b"),
               std::string("C\x02\x00\xff", 4),
               p::tuple({p::integer(1)}),
               p::dict({{p::integer(0), p::list({})}}),
               "\x8f(" + p::integer(1) + "\x90",
               p::global("torch", "float32")})),
      "[None, True, -7, 36893488147419103232, 1.5, 'a'b', b'\\x00\\xff', "
      "(1), {0: []}, set(1), torch.float32]");
  EXPECT_EQ(values(p::integer(5)), "5");
}

TEST(values_share_nodes_as_the_file_does) {
  const CheckpointIndex index =
      read(p::list({p::put(p::list({vector0()}), 1), p::get(1), p::list({})}));
  const auto items = index.values.items(index.values.root());
  EXPECT_EQ(items[0], items[1]);
  EXPECT(items[0] != items[2]);
  EXPECT_EQ(show_values(index.values), "[[T0], [T0], []]");
  EXPECT_EQ(index.slots.size(), 1U);
  EXPECT_EQ(index.slots[0].container, items[0]);
  EXPECT_EQ(index.values.int_value(index.slots[0].key), 0);
}

TEST(values_may_be_inside_themselves) {
  EXPECT_EQ(
      values(
          p::put("}", 1) + "(" + p::text("self") + p::get(1) + p::text("w") +
          vector0() + "u"),
      "{'self': ..., 'w': T0}");
  EXPECT_EQ(values(p::put("]", 1) + p::get(1) + "a"), "[...]");
  // A tuple in a list that it holds, as a key.
  EXPECT_EQ(
      names(
          p::put("}", 1) + "(" + p::tuple({p::get(1), p::integer(1)}) +
          vector0() + "u"),
      "(<object>, 1)=0");
}

TEST(values_of_dicts_keep_what_is_pickled_onto_them) {
  const std::string metadata = p::dict(
      {{p::text("_metadata"),
        p::ordered_dict(
            {{p::text(""), p::dict({{p::text("version"), p::integer(2)}})}})}});
  const std::string root =
      p::ordered_dict({{p::text("w"), vector0()}}) + metadata + "b";
  EXPECT_EQ(
      values(root),
      "collections.OrderedDict{'w': T0}~{'_metadata': "
      "collections.OrderedDict{'': {'version': 2}}}");
  const CheckpointIndex index = read(root);
  EXPECT(index.values.kind(index.values.root()) == NodeKind::kDict);
  EXPECT_EQ(index.values.entries(index.values.root()).size(), 2U);
  EXPECT_EQ(index.values.object(index.values.root()).file_offset, 69U);
  EXPECT_EQ(
      values(
          p::with_entries(
              p::reduce(
                  p::global("collections", "defaultdict"),
                  {p::global("builtins", "list")}),
              {{p::text("b"), vector0()}})),
      "collections.defaultdict(builtins.list){'b': T0}");
  EXPECT_EQ(
      values(
          p::reduce(
              p::global("collections", "Counter"),
              {p::dict({{p::text("a"), p::integer(2)}})})),
      "collections.Counter{'a': 2}");
  EXPECT_EQ(
      values(
          p::with_entries(
              object("MyDict", ")", ""),
              {{p::text("b"), vector0()}})),
      "m.MyDict{'b': T0}");
}

// Python 2's OrderedDict, by protocol 2.
TEST(values_of_an_ordered_dict_may_be_given_as_pairs) {
  const std::string pairs = p::list(
      {p::list({p::text("w"), vector0()}),
       p::list({p::text("v"), p::integer(1)})});
  const std::string dict =
      p::reduce(p::global("collections", "OrderedDict"), {p::put(pairs, 1)});
  EXPECT_EQ(values(dict), "collections.OrderedDict{'w': T0, 'v': 1}");
  EXPECT_EQ(names(dict), "w=0");
  // The same pairs twice: walked once, shared.
  const std::string again =
      p::reduce(p::global("collections", "OrderedDict"), {p::get(1)});
  EXPECT_EQ(
      values(p::list({dict, again})),
      "[collections.OrderedDict{'w': T0, 'v': 1}, "
      "collections.OrderedDict{'w': T0, 'v': 1}]");
  EXPECT_EQ(names(p::list({dict, again})), "0.w=0");
  EXPECT_EQ(
      values(
          p::reduce(
              p::global("collections", "OrderedDict"),
              {p::list({p::list({p::integer(1)})})})),
      "collections.OrderedDict([[1]]){}");
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: the dict '' has the key '1' twice, expected distinct keys in "
      "'a/data.pkl' [byte 40]",
      read(
          p::reduce(
              p::global("collections", "OrderedDict"),
              {p::list({p::integers({1, 2}), p::integers({1, 3})})})));
}

TEST(values_of_calls_that_only_make_pythons_own_types) {
  const std::string numbers = p::list({p::integer(1), p::integer(2)});
  EXPECT_EQ(
      values(
          p::list(
              {p::reduce(p::global("__builtin__", "set"), {numbers}),
               p::reduce(p::global("builtins", "frozenset"), {numbers}),
               p::reduce(p::global("torch", "Size"), {p::integers({2, 3})}),
               p::reduce(p::global("collections", "deque"), {}) + "(" +
                   p::integer(1) + "e",
               p::reduce(
                   p::global("collections", "deque"),
                   {")", p::integer(9)}),
               p::reduce(p::global("collections", "deque"), {numbers}),
               p::reduce(
                   p::global("__builtin__", "complex"),
                   {"F1.0\n", "F-2.5\n"})})),
      "[set(1, 2), set(1, 2), (2, 3), [1], [], [1, 2], complex(1.0, -2.5)]");
  EXPECT_EQ(
      values(
          p::list(
              {p::reduce(
                   p::global("_codecs", "encode"),
                   {p::text("a\xc3\xbf"), p::text("latin1")}),
               p::reduce(p::global("builtins", "bytearray"), {"C\x01z"}),
               p::reduce(
                   p::global("builtins", "bytearray"),
                   {p::text("y"), p::text("latin-1")}),
               p::reduce(p::global("__builtin__", "bytes"), {})})),
      "[b'a\\xff', b'z', b'y', b'']");
  // Not as they are pickled: what they are, unread.
  EXPECT_EQ(
      values(
          p::list(
              {p::reduce(p::global("builtins", "set"), {p::integer(1)}),
               p::reduce(
                   p::global("_codecs", "encode"),
                   {p::text("\xe2\x82\xac"), p::text("latin1")}),
               p::reduce(
                   p::global("_codecs", "encode"),
                   {p::text("a"), p::text("rot13")}),
               p::reduce(p::global("builtins", "complex"), {"F1.0\n"}),
               p::reduce(p::global("torch", "Size"), {p::integer(1)})})),
      "[builtins.set(1), _codecs.encode('\xe2\x82\xac', 'latin1'), "
      "_codecs.encode('a', 'rot13'), builtins.complex(1.0), torch.Size(1)]");
}

TEST(values_of_objects_keep_all_their_parts) {
  EXPECT_EQ(
      values(object("Thing", p::tuple({vector0()}), vector1())),
      "m.Thing(T0)~T1");
  EXPECT_EQ(
      values(
          p::global("m", "Thing") + p::tuple({p::integer(1)}) +
          p::dict({{p::text("k"), vector0()}}) + "\x92(" + vector1() + "e(" +
          p::text("e") + p::integer(3) + "u" + p::dict({{p::text("s"), "N"}}) +
          "b"),
      "m.Thing(1)**{'k': T0}[T1]{'e': 3}~{'s': None}");
  // What would be called may itself be made.
  EXPECT_EQ(
      values(p::reduce(object("Maker", ")", vector0()), {p::integer(1)})),
      "<object>(1)");
  EXPECT_EQ(
      names(p::reduce(object("Maker", ")", vector0()), {vector1()})),
      "=0 0=1");
  EXPECT_EQ(
      values(
          p::reduce(
              p::global("copy_reg", "_reconstructor"),
              {p::global("m", "Old"),
               p::global("__builtin__", "object"),
               "N"}) +
          p::dict({{p::text("x"), p::integer(1)}}) + "b"),
      "m.Old(m.Old, __builtin__.object, None)~{'x': 1}");
}

TEST(tuples_of_named_classes_are_the_same_in_all_protocols) {
  const std::string pair = p::reduce(
      p::global("copy_reg", "_reconstructor"),
      {p::global("m", "Pair"),
       p::global("__builtin__", "tuple"),
       p::tuple({vector0(), p::integer(1)})});
  EXPECT_EQ(names(pair), "0=0");
  EXPECT_EQ(values(pair), "m.Pair(T0, 1)");
}

TEST(names_inside_objects_join_the_keys_of_their_states) {
  const std::string layer = object(
      "Linear",
      ")",
      p::dict(
          {{p::text("training"), p::boolean(true)},
           {p::text("_parameters"),
            p::ordered_dict({{p::text("weight"), vector0()}})},
           {p::text("_modules"), p::ordered_dict({})}}));
  EXPECT_EQ(
      names(
          p::dict(
              {{p::text("model"),
                object(
                    "Net",
                    ")",
                    p::dict(
                        {{p::text("_modules"),
                          p::ordered_dict({{p::text("0"), layer}})}}))}})),
      "model._modules.0._parameters.weight=0");
}

TEST(names_inside_objects_number_arguments_and_items) {
  EXPECT_EQ(
      names(
          p::dict(
              {{p::text("point"),
                object("Point", p::tuple({p::integer(1), vector0()}), "")},
               {p::text("list"),
                object("MyList", ")", "") + "(" + vector1() + "e"},
               {p::text("slots"),
                object(
                    "Slots",
                    ")",
                    p::tuple({"N", p::dict({{p::text("x"), vector0()}})}))},
               {p::text("whole"), object("Whole", ")", vector1())},
               {p::text("set"), "\x8f(" + vector0() + "\x90"},
               {p::text("storage"), p::storage("FloatStorage", "0", 4)}})),
      "point.1=0 list.0=1 slots.x=2 whole=3 set.0=4 storage=5");
}

TEST(slots_say_what_holds_their_tensor) {
  const CheckpointIndex index = read(
      p::dict(
          {{p::text("a"), object("Whole", ")", vector1())},
           {vector0(), p::integer(1)}}));
  const ValueTree& values = index.values;
  const auto entries = values.entries(values.root());
  EXPECT_EQ(index.slots[0].container, entries[1]);
  EXPECT_EQ(index.slots[0].key, kNoNode);
  EXPECT_EQ(index.slot_name(0), "a");
  // A tensor that is a key is in no place that a key leads to.
  EXPECT_EQ(index.slots[1].container, kNoNode);
  EXPECT_EQ(index.slot_name(1), "<torch.Tensor object>");
}

TEST(a_storage_by_itself_is_a_tensor_of_one_dimension) {
  const CheckpointIndex index =
      read(p::list({p::put(p::storage("FloatStorage", "1", 2), 1), p::get(1)}));
  EXPECT_EQ(show_values(index.values), "[T0, T0]");
  EXPECT_EQ(index.tensors.size(), 1U);
  EXPECT_EQ(index.sizes(index.tensors[0])[0], 2);
  EXPECT(index.tensors[0].dtype == DType::kFloat32);
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: tensor '0' has the persistent id 'x', expected ('storage', type, "
      "key, location, count) in 'a/data.pkl' [byte 50]",
      read(p::list({p::text("x") + "Q"})));
}

TEST(strings_that_are_not_utf8_are_bytes) {
  EXPECT_EQ(
      values(p::dict({{p::text("\xff"), p::integer(1)}})),
      "{b'\\xff': 1}");
}

// What calls would do is of no interest: none is made.
TEST(malicious_pickles_are_data) {
  EXPECT_EQ(
      values(p::reduce(p::global("os", "system"), {p::text("touch x")})),
      "os.system('touch x')");
  EXPECT_EQ(
      values(
          p::text("builtins") + p::text("eval") + "\x93" +
          p::tuple({p::text("1/0")}) + "R"),
      "builtins.eval('1/0')");
  EXPECT_EQ(
      values(
          p::reduce(
              p::reduce(
                  p::global("builtins", "getattr"),
                  {p::global("os", "path"), p::text("join")}),
              {p::reduce(p::global("os", "getcwd"), {})})),
      "<object>(os.getcwd())");
  EXPECT_EQ(
      values(
          p::dict(
              {{p::reduce(p::global("os", "system"), {p::text("id")}),
                vector0()}})),
      "{os.system('id'): T0}");
  EXPECT_EQ(
      values(
          p::reduce(p::global("types", "SimpleNamespace"), {}) +
          p::dict(
              {{p::text("__class__"), p::global("os", "_wrap_close")},
               {p::text("__setstate__"), p::global("os", "system")}}) +
          "b"),
      "types.SimpleNamespace()~{'__class__': os._wrap_close, '__setstate__': "
      "os.system}");
}

// Few bytes that ask for the same long values many times over.
TEST(values_of_a_small_file_stay_small) {
  const std::string text = p::put(p::text(std::string(100'000, 'k')), 1);
  const std::string list =
      p::put(p::list(std::vector<std::string>(10'000, "N")), 2);
  std::string calls = "](" + text + list;
  for (int i = 0; i < 1'000; ++i) {
    calls += p::reduce(
        p::global("_codecs", "encode"),
        {p::get(1), p::text("latin1")});
    calls += p::reduce(p::global("builtins", "set"), {p::get(2)});
    calls += p::reduce(p::global("collections", "deque"), {p::get(2)});
  }
  const CheckpointIndex index = read(calls + "e");
  const ValueTree& values = index.values;
  const auto items = values.items(values.root());
  EXPECT_EQ(items.size(), 3'002U);
  EXPECT_EQ(values.text(items[2]).data(), values.text(items[3'002 - 3]).data());
  EXPECT_EQ(values.items(items[3]).data(), values.items(items[4]).data());
}

}  // namespace
}  // namespace ckpt_streamer::format

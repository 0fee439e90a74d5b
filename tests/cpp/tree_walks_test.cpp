#include "format/tree_walks.h"

#include <string>
#include <utility>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

NodeId add(ValueTree& tree, NodeKind kind, const std::vector<NodeId>& values) {
  const ValueTree::Run run = tree.add_run(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    tree.set_value(run, i, values[i]);
  }
  return tree.add_container(kind, run);
}

NodeId text(ValueTree& tree, const char* characters) {
  return tree.add_text_node(NodeKind::kString, std::string_view(characters));
}

std::vector<std::pair<std::string, NodeId>> leaves_of(const ValueTree& tree) {
  std::vector<std::pair<std::string, NodeId>> leaves;
  for_each_leaf(tree, [&](std::string_view name, NodeId id) {
    leaves.emplace_back(name, id);
  });
  return leaves;
}

TEST(plain_tuples_hold_no_containers) {
  ValueTree tree;
  const NodeId number = tree.add_int(1);
  const NodeId pair = add(tree, NodeKind::kTuple, {number, number});
  const NodeId nested = add(tree, NodeKind::kTuple, {pair, number});
  const NodeId list = add(tree, NodeKind::kList, {number});
  EXPECT(is_plain(tree, pair));
  EXPECT(is_plain(tree, nested));
  EXPECT(is_plain(tree, add(tree, NodeKind::kSet, {pair})));
  EXPECT(is_plain(tree, add(tree, NodeKind::kTuple, {})));
  EXPECT(!is_plain(tree, list));
  EXPECT(!is_plain(tree, number));
  EXPECT(!is_plain(tree, add(tree, NodeKind::kTuple, {list})));
  EXPECT(!is_plain(tree, add(tree, NodeKind::kTuple, {tree.add_tensor(0)})));
}

TEST(a_tuple_that_expands_too_far_is_not_plain) {
  ValueTree tree;
  NodeId doubled = tree.add_int(1);
  std::vector<NodeId> levels;
  for (int i = 0; i < 20; ++i) {
    doubled = add(tree, NodeKind::kTuple, {doubled, doubled});
    levels.push_back(doubled);
  }
  EXPECT(is_plain(tree, levels[14]));  // 2^16 - 2 items
  EXPECT(!is_plain(tree, levels[15]));
  EXPECT(!is_plain(tree, levels[19]));

  NodeId deep = tree.add_int(1);
  for (int i = 0; i < 32; ++i) {
    deep = add(tree, NodeKind::kTuple, {deep});
  }
  EXPECT(is_plain(tree, deep));
  EXPECT(!is_plain(tree, add(tree, NodeKind::kTuple, {deep})));
}

TEST(a_tuple_in_itself_is_not_plain) {
  ValueTree tree;
  const ValueTree::Run run = tree.add_run(1);
  const NodeId tuple = tree.add_container(NodeKind::kTuple, run);
  tree.set_value(run, 0, tuple);
  EXPECT(!is_plain(tree, tuple));
}

TEST(leaves_are_named_by_the_keys_that_lead_to_them) {
  ValueTree tree;
  const NodeId one = tree.add_int(1);
  const NodeId pair = add(tree, NodeKind::kTuple, {one, one});
  const NodeId list =
      add(tree, NodeKind::kList, {one, tree.add_tensor(0), pair});
  const NodeId root =
      add(tree,
          NodeKind::kDict,
          {text(tree, "a"), list, tree.add_int(7), one, text(tree, "b"), list});
  tree.set_root(root);
  using Leaves = std::vector<std::pair<std::string, NodeId>>;
  EXPECT((leaves_of(tree) == Leaves{{"a.0", one}, {"a.2", pair}, {"7", one}}));
}

TEST(leaves_of_roots_that_are_no_containers) {
  ValueTree tree;
  EXPECT(leaves_of(tree).empty());
  const NodeId one = tree.add_int(1);
  tree.set_root(one);
  EXPECT(leaves_of(tree).size() == 1);
  EXPECT(leaves_of(tree)[0].first.empty());
  tree.set_root(tree.add_tensor(0));
  EXPECT(leaves_of(tree).empty());
}

TEST(depth_and_cycles_take_no_stack) {
  ValueTree tree;
  const ValueTree::Run run = tree.add_run(2);
  const NodeId innermost = tree.add_container(NodeKind::kList, run);
  NodeId deep = innermost;
  for (int i = 0; i < 200000; ++i) {
    deep = add(tree, NodeKind::kList, {deep});
  }
  tree.set_value(run, 0, deep);
  tree.set_value(run, 1, tree.add_int(5));
  tree.set_root(deep);
  const auto leaves = leaves_of(tree);
  EXPECT(leaves.size() == 1);
  EXPECT(leaves[0].first.size() == size_t{2} * 200000 + 1);
  EXPECT(reachable_from(tree, innermost)[deep]);
}

TEST(what_is_reachable_includes_parts_of_objects) {
  ValueTree tree;
  const NodeId key = text(tree, "key");
  const NodeId value = tree.add_int(1);
  const NodeId state = tree.add_int(2);
  const NodeId other = tree.add_int(3);
  ValueTree::ObjectParts parts;
  parts.args = add(tree, NodeKind::kTuple, {value});
  parts.state = state;
  parts.entries = tree.add_run(2);
  tree.set_value(parts.entries, 0, key);
  tree.set_value(parts.entries, 1, value);
  const NodeId object = tree.add_object(NodeKind::kObject, parts);
  const NodeId list = add(tree, NodeKind::kList, {object});
  const std::vector<bool> reached = reachable_from(tree, list);
  for (const NodeId node : {list, object, parts.args, key, value, state}) {
    EXPECT(reached[node]);
  }
  EXPECT(!reached[other]);
  EXPECT(!reachable_from(tree, value)[list]);
}

}  // namespace
}  // namespace ckpt_streamer::format

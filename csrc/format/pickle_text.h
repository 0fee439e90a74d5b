// Values of a pickle as text, for names and messages. Everything returned is
// valid UTF-8 and short, whatever the pickle holds. Pure functions.
#pragma once

#include <string>

#include "format/pickle_machine.h"

namespace ckpt_streamer::format {

// Python's str() of a dict's key, as far as a name needs it.
[[nodiscard]] std::string key_text(const PickleTree& tree, ValueId key);

// Of a value in a message, or inside a key; containers are not opened, so that
// a tuple of tuples of tuples cannot unfold.
[[nodiscard]] std::string element_text(const PickleTree& tree, ValueId id);

// "collections.OrderedDict"; "<object>" for what is not a global.
[[nodiscard]] std::string global_text(const PickleTree& tree, ValueId id);

}  // namespace ckpt_streamer::format

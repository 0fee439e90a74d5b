// What must hold of a path for a file to be read from it or written to it.
#pragma once

#include <string>

struct stat;

namespace ckpt_streamer::os {

// open(2) would cut the name at a NUL and open another file.
// THROWS: CheckpointError InvalidArgument for a path that holds one.
void check_path(const std::string& path);

// `expected`: what the path should name instead, for the error.
// THROWS: CheckpointError InvalidArgument unless it is a regular file's status.
void check_regular(
    const struct stat& status,
    const std::string& path,
    const char* expected);

}  // namespace ckpt_streamer::os

// What the shared library gives to other programs.
#pragma once

#define CKPT_STREAMER_API __attribute__((visibility("default")))

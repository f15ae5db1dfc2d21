// The mark of a function that other libraries can call; everything else is hidden.
#pragma once

#define EXPORTED extern "C" __attribute__((visibility("default")))

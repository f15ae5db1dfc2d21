// A stand-in for the header of this name, which NVIDIA's wheel with the headers of the runtime lacks. It settles nothing for g++.
#pragma once

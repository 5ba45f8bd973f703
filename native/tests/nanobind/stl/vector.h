// See ../nanobind.h: vectors need nothing more.

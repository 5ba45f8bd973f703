// See ../nanobind.h: strings need nothing more.

//! CPU backend: kernels per instruction set, chosen at run time, and the thread pool they run on.

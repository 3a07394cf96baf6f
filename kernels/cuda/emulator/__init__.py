"""The emulator: .cu files, unchanged, on a CPU, for learning and for tests where there is no GPU.

    build.py      a .cu file becomes a library of this machine, by g++
    device.h      CUDA's words as a CPU understands them
    run.py        launches with numpy arrays
    emulator.cpp  blocks on threads, the threads of a block as fibers, barriers, warps
    checked.py    the same with every access watched: what is wrong, and what it costs
    checker.cpp   who watches (emulator.h is what it and emulator.cpp know of each other)
    faults.py     what was wrong, in words

It has CUDA's meaning and none of its speed: what it counts is structure, what it takes says nothing about a GPU.
"""

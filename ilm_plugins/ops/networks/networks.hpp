// All networks, by the names of their classes in spec.py.
#pragma once

#include "attentive/cpu.hpp"
#include "autoencoder/cpu.hpp"
#include "exemplar/cpu.hpp"
#include "switch/cpu.hpp"

#define FOR_EACH_NETWORK(DO) \
    DO(Autoencoder) \
    DO(Exemplar) \
    DO(Switch) \
    DO(SparseSwitch) \
    DO(Attentive)

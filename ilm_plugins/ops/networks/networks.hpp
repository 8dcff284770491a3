// All networks, in the order of __init__.py.
#pragma once

#include "attentive/cpu.hpp"
#include "autoencoder/cpu.hpp"
#include "exemplar/cpu.hpp"
#include "switch/cpu.hpp"

namespace {

template <class... Nets> struct TypeList { };

template <class Real>
using Networks =
    TypeList<Attentive<Real>, Autoencoder<Real>, Exemplar<Real>, SparseSwitch<Real>, Switch<Real>>;

} // namespace

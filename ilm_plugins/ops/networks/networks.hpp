// All networks.
#pragma once

#include "attentive/cpu.hpp"
#include "autoencoder/cpu.hpp"
#include "exemplar/cpu.hpp"
#include "switch/cpu.hpp"

namespace {

template <class... Nets> struct Kinds { };

template <class Real>
using Networks =
    Kinds<Autoencoder<Real>, Exemplar<Real>, Switch<Real>, SparseSwitch<Real>, Attentive<Real>>;

} // namespace
